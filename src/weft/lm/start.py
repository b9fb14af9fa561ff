"""Where a speech-text language model starts: a text LM that is given speech tokens, or one from nothing.

    run(StartConfig(out=Path("runs/lm-start"), tokenizer=Path("runs/tokenizer"), base=Path("Qwen2.5-0.5B")))

The vocabulary is settled here, once: `pack` makes token shards for it and `pretrain` begins from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, Natural
from weft.data.corpus import read_texts
from weft.errors import UserError
from weft.lm.model import KIND, LmConfig, extend_lm, load_hf, new_lm, save
from weft.tokenizer.tokenizer import codebook_of, frame_rate_of
from weft.vocab import extend_tokenizer, train_text_tokenizer


@dataclass(frozen=True)
class StartConfig:
    """What a language model starts from."""

    out: Path
    """Folder of the language model to make."""
    tokenizer: Path
    """Speech tokenizer whose codes it will know."""
    base: Path | None = None
    """Hugging Face folder of a causal LM; without one, an untrained `model` with a vocabulary trained on `texts`."""
    texts: tuple[Path, ...] = ()
    """Text corpus that the vocabulary is trained on, where there is no base."""
    vocab_size: Count = 1024
    """Text ids, where there is no base."""
    model: LmConfig = field(default_factory=LmConfig)
    """Shape, where there is no base."""
    seed: Natural = 0
    """Seed of new weights."""
    licence: str | None = None
    """Licence of base or texts, which the notes of all that is made of it will tell."""


def run(config: StartConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError without base and texts, and for a base that does not load or knows another codebook.
    """
    if config.base is None and not config.texts:
        raise UserError("a language model needs a base, or texts to train its vocabulary on: give one of them")
    parents = {"tokenizer": artifacts.read(config.tokenizer, "tokenizer")}
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "tokenizer", "licence")}
    if artifacts.is_made(config.out, KIND, settings, parents):
        return artifacts.read(config.out)
    frame_rate_hz, codebook = frame_rate_of(config.tokenizer), codebook_of(config.tokenizer)
    num_codes = len(codebook)
    with artifacts.build(config.out, KIND, settings, parents, config.licence) as draft:
        if config.base is not None:
            model, tokenizer = load_hf(config.base, dtype="auto")
            tokenizer = extend_lm(model, tokenizer, num_codes, config.seed, codebook)
        else:
            texts = (document.text for document in read_texts(*config.texts))
            tokenizer = extend_tokenizer(train_text_tokenizer(texts, config.vocab_size), num_codes)
            model = new_lm(config.model, tokenizer, config.seed, codebook)
        save(model, tokenizer, draft.folder)
        draft.counts["parameters"] = model.num_parameters()
        draft.counts["frame_rate_hz"] = frame_rate_hz
    return artifacts.read(config.out)
