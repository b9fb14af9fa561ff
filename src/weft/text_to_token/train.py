"""Training a text-to-token model: a causal language model that writes the speech codes of a text.

    run(TextToTokenConfig(out=Path("runs/t2t"), codes=(Path("runs/codes"),), tokenizer=Path("runs/tokenizer")))

Next-code loss on the speech side (the paper, section 2.3; initialisation and data are our choice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count, NonNegative, settings_of
from weft.data.shards import Rows
from weft.errors import UserError
from weft.lm.mixture import permuted
from weft.lm.model import LmConfig, extend_lm, load_hf, new_lm, save
from weft.lm.packing import Batch, check_rows, pack, token_losses
from weft.records import CodedUtterance
from weft.text_to_token.model import KIND, document_ids, max_codes_per_character, spoken_form, tokenizer_text
from weft.text_to_token.normalize import Normalization, normalizer
from weft.tokenizer.tokenizer import codebook_of, frame_rate_of
from weft.training import distributed
from weft.training.loop import TrainConfig, discard_checkpoints, fit
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer


@dataclass(frozen=True)
class TextToTokenConfig:
    """What a text-to-token model is trained from."""

    out: Path
    """Folder of the model to make."""
    codes: tuple[Path, ...]
    """Codes datasets with transcripts."""
    tokenizer: Path
    """Speech tokenizer that made them."""
    speakers: bool = False
    """Whether the model learns the codes' speakers by name, to speak as any of them."""
    normalize: Normalization = "none"
    """What becomes of a text before it is spoken: nothing, or its numbers turn into words."""
    language: str = "en"
    """Language of numbers, as num2words calls it."""
    abbreviations: tuple[tuple[str, str], ...] = ()
    """What turns into words besides: pairs of what is written and what is said, such as `["Dr.", "Doctor"]`."""
    base: Path | None = None
    """Hugging Face folder of a causal LM to start from; without one, `model` is trained from nothing."""
    model: LmConfig = field(default_factory=LmConfig)
    """Shape, where there is no base."""
    vocab_size: Count = 700
    """Text ids, where there is no base."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    batch_utterances: Count = 24
    """Utterances in a step."""
    row_tokens: Count = 256
    """Width of a packed row; longer utterances are left out."""
    temperature: NonNegative = 0.5
    """Temperature that the model speaks with."""
    licence: str | None = None
    """Licence of the base, which the notes of all that is made of it will tell."""


def run(config: TextToTokenConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Its counts tell parameters, utterances, those left out (no transcript, no codes, longer than a row; with `speakers`,
    no speaker), the utterances of each speaker, and what the speech was like: the codes a second, and a pace that none
    of it exceeds. Raises UserError for codes of another tokenizer, for a way to normalize that is not installed or
    makes no sense, and where too few utterances are left.
    """
    tokenizer = artifacts.read(config.tokenizer, "tokenizer")
    manifests = {f"codes {i}": artifacts.read(folder, "codes") for i, folder in enumerate(config.codes)}
    for manifest in manifests.values():
        artifacts.require_parent(manifest, "tokenizer", tokenizer)
    parents = {**manifests, "tokenizer": tokenizer}
    frame_rate_hz = frame_rate_of(config.tokenizer)
    settings = settings_of(config, leave_out=("out", "codes", "tokenizer", "licence"))
    if artifacts.is_made(config.out, KIND, settings, parents):
        return artifacts.read(config.out)
    normalize = normalizer(config.normalize, config.language, config.abbreviations)
    all_utterances = [
        replace(u, text=normalize(u.text or ""), speaker=u.speaker if config.speakers else None)
        for u in Rows.of(*config.codes).utterances()
    ]
    needed = "transcripts and speakers" if config.speakers else "transcripts"
    utterances = [
        u for u in all_utterances if spoken_form(u.text or "") and len(u.codes) and (u.speaker or not config.speakers)
    ]
    with distributed.build(config.out, KIND, settings, parents, config.licence) as draft:
        model, words = _start(config, utterances)
        check_rows(model, config.row_tokens)
        fitting = _fitting(SpeechVocab.of(words), utterances, config.row_tokens)
        rows = [row for _, row in fitting]
        if len(rows) < config.batch_utterances:
            raise UserError(f"only {len(rows)} utterances with {needed} fit row_tokens {config.row_tokens}: give more")
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        fit(model, _Batches(rows, config), _loss, config.train, draft.folder, "text-to-token")
        if distributed.is_first():
            save(model, words, draft.folder)
        discard_checkpoints(draft.folder)
        draft.counts["parameters"] = model.num_parameters()
        draft.counts["utterances"] = len(rows)
        draft.counts["left_out_utterances"] = len(all_utterances) - len(rows)
        if config.speakers:
            draft.counts["speakers"] = _by_speaker(u for u, _ in fitting)
        paces = ((u.text or "", len(u.codes)) for u in utterances)
        draft.counts["max_codes_per_character"] = max_codes_per_character(paces)
        draft.counts["frame_rate_hz"] = frame_rate_hz
    return artifacts.read(config.out)


def _start(
    config: TextToTokenConfig, utterances: Sequence[CodedUtterance]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    codebook, seed = codebook_of(config.tokenizer), config.train.seed
    if config.base is not None:
        model, words = load_hf(config.base, dtype="auto")
        return model, extend_lm(model, words, len(codebook), seed, codebook)
    texts = (tokenizer_text(u.text or "", u.speaker) for u in utterances)
    words = extend_tokenizer(train_text_tokenizer(texts, config.vocab_size), len(codebook))
    return new_lm(config.model, words, seed, codebook), words


Row = tuple[np.ndarray, np.ndarray]


def _fitting(
    vocab: SpeechVocab, utterances: Sequence[CodedUtterance], row_tokens: int
) -> list[tuple[CodedUtterance, Row]]:
    """The utterances that are no longer than a row, with theirs."""
    rows = ((u, document_ids(vocab, u.text or "", np.asarray(u.codes), u.speaker)) for u in utterances)
    return [(u, row) for u, row in rows if len(row[0]) <= row_tokens]


def _by_speaker(utterances: Iterable[CodedUtterance]) -> dict[str, int]:
    """Utterances of each speaker, the one with the most first."""
    counts = Counter(u.speaker or "" for u in utterances)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


@dataclass(frozen=True)
class _Batches:
    """A part of a step's rows: each epoch goes through them in an order of its own."""

    rows: Sequence[Row]
    config: TextToTokenConfig

    def __call__(self, step: int, part: slice = slice(None)) -> Batch | None:
        size = self.config.batch_utterances
        samples = range(step * size, (step + 1) * size)[part]
        return pack([self._row(j) for j in samples]) if samples else None

    def _row(self, sample: int) -> Row:
        epoch, i = divmod(sample, len(self.rows))
        return self.rows[permuted(i, len(self.rows), (self.config.train.seed, epoch))]


def _loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert isinstance(model, PreTrainedModel)
    return {"loss": token_losses(model, batch).mean()}
