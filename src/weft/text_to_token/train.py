"""Training of a text-to-token model: `weft train-text-to-token`.

    run(TextToTokenConfig(out=Path("runs/t2t"), codes=(Path("runs/codes"),), tokenizer=Path("runs/tokenizer")))

The loss is next-token prediction on the speech side (the paper, section 2.3; initialization and data are our choice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weft import launch, progress
from weft.artifacts import Manifest, base_manifest
from weft.config import MODEL, NOT_IN_PLAN, NonNegativeFloat, PositiveInt
from weft.data.datasets import Rows, codes_parents
from weft.device import default_device
from weft.errors import UserError
from weft.lm.estimate import config_of, estimate_lm
from weft.lm.micro_batches import MicroBatches
from weft.lm.mixture import permuted
from weft.lm.model import LmConfig, SaveDtype, dtype_to_save, extend_lm, llama_config, load_causal_lm, new_lm, save
from weft.lm.packing import Batch, check_seq_len, pack, token_losses
from weft.plan import Draft, Plan
from weft.records import CodedUtterance
from weft.text.normalize import Normalization, spoken_form, text_normalizer
from weft.text_to_token.prompt import KIND, document_ids, prompt_text, slow_codes_per_character
from weft.tokenizer.artifact import load_bottleneck_config, load_codebook, load_frame_rate
from weft.training import distributed, parallel
from weft.training.config import TrainConfig
from weft.training.loop import discard_checkpoints, fit
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer


@dataclass(frozen=True)
class TextToTokenConfig:
    """Training of a text-to-token model."""

    out: Path
    """Output directory of the model."""
    codes: tuple[Path, ...]
    """Codes datasets with transcripts."""
    tokenizer: Path
    """Directory of the speech tokenizer that computed the codes."""
    speakers: bool = False
    """Train with the names of the speakers, which are then the voices of the model."""
    normalize: Normalization = "none"
    """Text normalization before synthesis: none, or numbers as words."""
    language: str = "en"
    """Language of the number words, as num2words calls it."""
    abbreviations: tuple[tuple[str, str], ...] = ()
    """Pairs of written and spoken form, such as `["Dr.", "Doctor"]`."""
    base: Annotated[Path | None, MODEL] = None
    """Hugging Face causal LM to start from, a directory or a name on the Hub; not set: random weights of the shape
    `model`."""
    model: LmConfig = field(default_factory=LmConfig)
    """Shape of the model without a base."""
    vocab_size: PositiveInt = 700
    """Text vocabulary without a base."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000))
    batch_utterances: PositiveInt = 24
    """Utterances per step."""
    max_seq_len: PositiveInt = 256
    """Longest utterance in tokens; longer ones are left out."""
    temperature: NonNegativeFloat = 0.5
    """Sampling temperature of the trained model."""
    save_dtype: SaveDtype = "auto"
    """Number format of the saved weights; auto: that of the base, fp32 without one. They are trained in fp32."""
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the base, passed on to the notes of everything made from it."""
    dry_run: Annotated[bool, NOT_IN_PLAN] = False
    """Train nothing; print the number of parameters, memory and training time."""


def run(config: TextToTokenConfig) -> Manifest | None:
    """Create the artifact `config.out`, or print an estimate for a `dry_run`.

    Counts: parameters; utterances, and those left out (without transcript, codes or, with `speakers`, speaker, or
    longer than `max_seq_len`); utterances per speaker; languages; codes per second, and per character of slow
    speech. Raises UserError for codes of another tokenizer, unavailable text normalization, and too few utterances.
    """
    if config.dry_run:
        if launch.rank() == 0:
            progress.show(*_estimate_lines(config))
        return None
    distributed.init()
    parents = distributed.compute_once(lambda: codes_parents(config.codes, config.tokenizer))
    if config.base:
        parents["base"] = distributed.compute_once(lambda: base_manifest(config.base))  # type: ignore[arg-type]
    plan = Plan.of(KIND, config, parents)
    return distributed.create(config.out, plan, lambda draft: _train(config, draft), config.licence)


def _train(config: TextToTokenConfig, draft: Draft) -> None:
    """Train a model and write it into the draft."""
    normalize = text_normalizer(config.normalize, config.language, config.abbreviations)
    all_utterances = [
        replace(u, text=normalize(u.text or ""), speaker=u.speaker if config.speakers else None)
        for u in Rows.of(*config.codes).utterances()
    ]
    utterances = [
        u for u in all_utterances if spoken_form(u.text or "") and len(u.codes) and (u.speaker or not config.speakers)
    ]
    needed = "transcripts and speakers" if config.speakers else "transcripts"
    if not utterances:
        raise UserError(
            f"{', '.join(map(str, config.codes))} has no utterances with {needed}: tokenize a manifest that has them"
        )
    model, text_tokenizer = _initial_model(config, utterances)
    check_seq_len(model, config.max_seq_len)
    vocab = SpeechVocab.of(text_tokenizer)
    encoded = ((u, document_ids(vocab, u.text or "", np.asarray(u.codes), u.speaker)) for u in utterances)
    fitting = [(u, document) for u, document in encoded if len(document[0]) <= config.max_seq_len]
    documents = [document for _, document in fitting]
    if len(documents) < config.batch_utterances:
        raise UserError(
            f"only {len(documents)} utterances with {needed} fit max_seq_len {config.max_seq_len}, fewer than "
            f"batch_utterances {config.batch_utterances}: give more"
        )
    parallel.replicate_model(model, default_device())
    batches = _Batches(documents, config)
    fit(model, batches.batch_at, _loss, config.train, draft.folder, "text-to-token", parts_of=batches.parts.parts_of)
    if distributed.is_main_process():
        save(model, text_tokenizer, draft.folder, dtype_to_save(config.save_dtype, config.base))
    discard_checkpoints(draft.folder)
    draft.counts["parameters"] = model.num_parameters()
    draft.counts["utterances"] = len(documents)
    draft.counts["left_out_utterances"] = len(all_utterances) - len(documents)
    if config.speakers:
        counts = Counter(u.speaker or "" for u, _ in fitting)
        draft.counts["speakers"] = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    if languages := sorted({u.language for u, _ in fitting if u.language}):
        draft.counts["languages"] = languages
    draft.counts["max_codes_per_character"] = slow_codes_per_character((u.text or "", len(u.codes)) for u in utterances)
    draft.counts["frame_rate_hz"] = load_frame_rate(config.tokenizer)


def _initial_model(
    config: TextToTokenConfig, utterances: Sequence[CodedUtterance]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    codebook, seed = load_codebook(config.tokenizer), config.train.seed
    if config.base is not None:
        on_meta = not distributed.is_main_process()
        # bf16 would round small updates away.
        model, text_tokenizer = load_causal_lm(config.base, torch.float32, on_meta)
        return model, extend_lm(model, text_tokenizer, len(codebook), seed, codebook)
    texts = (prompt_text(u.text or "", u.speaker) for u in utterances)
    text_tokenizer = extend_tokenizer(train_text_tokenizer(texts, config.vocab_size), len(codebook))
    return new_lm(config.model, text_tokenizer, seed, codebook), text_tokenizer


def _estimate_lines(config: TextToTokenConfig) -> list[str]:
    """Return the estimate of training, as if all utterances had `max_seq_len` tokens."""
    if config.base is not None:
        model_config = config_of(config.base)
    else:
        num_codes = load_bottleneck_config(config.tokenizer).quantizer.num_codes
        model_config = llama_config(config.model, config.vocab_size + num_codes)
    batch_tokens = config.batch_utterances * config.max_seq_len
    tokens = batch_tokens * config.train.steps
    estimate, details = estimate_lm(model_config, config.train, batch_tokens, config.max_seq_len, tokens)
    return estimate.lines(details | {"tokens": f"{tokens:,} (at most)"})


_Document = tuple[np.ndarray, np.ndarray]  # ids and loss mask


class _Batches:
    """Batches of documents by step. Every epoch has another order."""

    def __init__(self, documents: Sequence[_Document], config: TextToTokenConfig) -> None:
        self._documents, self._seed, size = documents, config.train.seed, config.batch_utterances
        self.parts = MicroBatches(
            lambda step: range(step * size, (step + 1) * size),
            lambda sample: len(self._document(sample)[0]),
            size * config.max_seq_len,
            config.train.grad_accum_steps,
        )

    def batch_at(self, step: int, part: slice) -> Batch | None:
        samples = self.parts.samples(step, part)
        return pack([self._document(j) for j in samples]) if samples else None

    def _document(self, sample: int) -> _Document:
        epoch, i = divmod(sample, len(self._documents))
        return self._documents[permuted(i, len(self._documents), (self._seed, epoch))]


def _loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    assert isinstance(model, PreTrainedModel)
    return {"loss": token_losses(model, batch).mean()}
