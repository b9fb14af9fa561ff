"""The initial speech-text language model: a text LM extended with speech tokens, or random weights.

    run(InitLmConfig(out=Path("runs/lm"), tokenizer=Path("runs/tokenizer"), base=Path("Qwen2.5-0.5B")))

This determines the vocabulary: `weft pack` writes token shards for it, and `weft pretrain` starts from the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from weft import artifacts
from weft.artifacts import Manifest, base_manifest
from weft.config import MODEL, NOT_IN_PLAN, NonNegativeInt, PositiveInt
from weft.data.corpus import TextCorpus, read_texts
from weft.errors import UserError
from weft.lm.model import KIND, LmConfig, extend_lm, load_causal_lm, new_lm, save
from weft.lm.packing import check_position_ids
from weft.plan import Draft, Plan, create
from weft.tokenizer.artifact import load_codebook, load_frame_rate
from weft.vocab import extend_tokenizer, train_text_tokenizer


@dataclass(frozen=True)
class InitLmConfig:
    """Creation of a language model with speech tokens."""

    out: Path
    """Output directory of the language model."""
    tokenizer: Path
    """Directory of the speech tokenizer whose codes become tokens."""
    base: Annotated[Path | None, MODEL] = None
    """Hugging Face causal LM, a directory or a name on the Hub; not set: a `model` of random weights, and a vocabulary
    from `texts`."""
    texts: tuple[Path, ...] = ()
    """Text corpus for the vocabulary without a base."""
    vocab_size: PositiveInt = 1024
    """Text vocabulary without a base."""
    model: LmConfig = field(default_factory=LmConfig)
    """Shape of the model without a base."""
    seed: NonNegativeInt = 0
    """Seed of new weights."""
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of base or texts, passed on to the notes of everything made from them."""


def run(config: InitLmConfig) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError without base and texts, and for a base that does not load, cannot be trained on packed documents
    or was extended for another codebook.
    """
    if config.base is None and not config.texts:
        raise UserError("a language model needs a base, or texts to train a vocabulary: give --base or --texts")
    parents = {"tokenizer": artifacts.read_parent(config.tokenizer, "tokenizer")}
    inputs: dict[str, Any] = {}
    if config.base is not None:
        parents["base"] = base_manifest(config.base)
    else:
        inputs["texts"] = TextCorpus.of(*config.texts).identity

    def write(draft: Draft) -> None:
        codebook = load_codebook(config.tokenizer)
        if config.base is not None:
            model, text_tokenizer = load_causal_lm(config.base, dtype="auto")
            check_position_ids(model)
            text_tokenizer = extend_lm(model, text_tokenizer, len(codebook), config.seed, codebook)
        else:
            texts = (document.text for document in read_texts(*config.texts))
            text_tokenizer = extend_tokenizer(train_text_tokenizer(texts, config.vocab_size), len(codebook))
            model = new_lm(config.model, text_tokenizer, config.seed, codebook)
        save(model, text_tokenizer, draft.folder)
        draft.counts["parameters"] = model.num_parameters()
        draft.counts["frame_rate_hz"] = load_frame_rate(config.tokenizer)

    return create(config.out, Plan.of(KIND, config, parents, **inputs), write, config.licence)
