"""Settings that all metrics have, and the models and data that they name.

Annotations are evaluated here, because cyclopts looks up those of a subclass in its own module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from weft.artifacts import MANIFEST, base_manifest, read, read_bundle
from weft.config import NonNegativeInt, PositiveInt
from weft.data.skipped import Skipped
from weft.data.speech import read_manifest, readable, speech_id
from weft.errors import UserError
from weft.eval.results import items_path
from weft.eval.sets import Items, items_in, manifest_of
from weft.files import check_writable
from weft.records import Utterance
from weft.text.error_rate import split_by_words
from weft.tokenizer.artifact import KIND
from weft.tokenizer.tokenizer import SpeechTokenizer

_T = TypeVar("_T")


@dataclass(frozen=True)
class EvalConfig:
    """Settings of all metrics."""

    model: Path
    """Bundle, a directory with tokenizer/, decoder/, text_to_token/ and lm/, or one of these parts."""
    out: Path
    """JSON file for the results. The items are written beside it."""
    data: tuple[Path, ...] = ()
    """What to measure on: manifests of transcribed speech, or a file of items or a directory of `weft eval prepare`."""
    limit: PositiveInt | None = None
    """Number of items to measure, sampled by the seed; not set: all."""
    language: str | None = None
    """Language of data without one, such as en; not set: that of the model's training."""
    training: tuple[Path, ...] = ()
    """Documents or token shards that the language model was trained on: items that occur in them are listed."""
    seed: NonNegativeInt = 0
    """Seed of all sampling."""


def check_output(config: EvalConfig) -> None:
    """Raise UserError for an output that cannot be written."""
    check_writable(config.out)
    check_writable(items_path(config.out))


def check(config: EvalConfig, needed: Sequence[str] = ("tokenizer",)) -> None:
    """Raise UserError for an output that cannot be written, and for a model without the `needed` parts of a bundle."""
    check_output(config)
    if not is_part(config.model, KIND) or tuple(needed) != (KIND,):
        read_bundle(config.model, needed)


def fingerprints(config: EvalConfig, *parts: str) -> dict[str, str]:
    """Return the fingerprints of the model, or of `parts` of a bundle, and of a set of `weft eval prepare`."""
    manifest = manifest_of(config.data[0]) if len(config.data) == 1 else None
    found = {"set": manifest.fingerprint} if manifest else {}
    if (config.model / MANIFEST).is_file() and read(config.model).kind != "bundle":
        return {"model": read(config.model).fingerprint, **found}
    if not (config.model / parts[0]).is_dir():
        return {"model": base_manifest(config.model).fingerprint, **found}
    return {part: read(config.model / part).fingerprint for part in parts if (config.model / part).is_dir()} | found


def is_part(folder: Path, kind: str) -> bool:
    """Whether a directory is an artifact of a kind, and not a bundle."""
    return (folder / MANIFEST).is_file() and read(folder).kind == kind


def load_tokenizer(config: EvalConfig) -> SpeechTokenizer:
    """Return the tokenizer of the bundle, or the tokenizer that is the model."""
    return SpeechTokenizer.from_pretrained(config.model if is_part(config.model, KIND) else config.model / "tokenizer")


def items_file(config: EvalConfig, items: Items, needs: str) -> Path:
    """Return the file of the items that `data` names: a file, or that of a directory of `weft eval prepare`.

    Raises UserError, which begins with what the metric `needs`, without a single path, and for other directories.
    """
    if len(config.data) != 1:
        raise UserError(f"{needs}: give --data {items.upper()}.jsonl")
    return items_in(config.data[0], items)


@dataclass(frozen=True)
class Speech:
    """Transcribed speech that can be read."""

    utterances: list[Utterance]
    id: str
    """Identity of the manifests and the audio."""
    skipped: dict[str, Any]
    """For the details: utterances that cannot be read, with their reasons, if any."""


def load_speech(config: EvalConfig) -> Speech:
    """Return the utterances of `data`, all or a sample of those with transcripts.

    Raises UserError without speech, and if no transcribed utterance is left.
    """
    if not config.data:
        raise UserError("there is no speech to measure on: give --data MANIFEST")
    utterances = [replace(u, language=u.language or config.language) for u in read_manifest(*config.data)]
    with_words, _ = split_by_words(utterances, lambda u: u.text)
    if not with_words:
        raise UserError(f"{', '.join(map(str, config.data))} has no transcripts with words: add `text`")
    skipped = Skipped()
    found = readable(utterances if config.limit is None else sampled(with_words, config.limit, config.seed), skipped)
    if not split_by_words(found, lambda u: u.text)[0]:
        where, reason = skipped.bad[0]
        raise UserError(f"no transcribed speech can be read: fix it; the first utterance is {where} ({reason})")
    bad = {"skipped": skipped.num_bad, "skipped_reasons": dict(skipped.bad)} if skipped.bad else {}
    return Speech(found, str(speech_id(found)), bad)


def sampled(items: list[_T], num: int | None, seed: int) -> list[_T]:
    """Return `num` of the items in their order, or all."""
    if num is None or num >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), num, replace=False)
    return [items[i] for i in sorted(chosen)]
