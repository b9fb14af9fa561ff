"""Documents to read and hear: one self-contained page with some of a dataset's, drawn at random.

    run(ViewConfig(dataset=(Path("runs/woven"),), out=Path("page.html"), decoder=Path("runs/decoder")))

Written words have one colour and spoken ones another, over a stripe of their codes. With a decoder they play when they
are clicked. The page finds documents by kind, by how much of them is spoken, by word error rates that were measured
when they were made, of all and of their spans, and by their words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.config import Count, Natural
from weft.data.shards import Rows, tokenizer_of
from weft.errors import UserError
from weft.eval.report import Clip, environment
from weft.records import Document, Segment


@dataclass(frozen=True)
class ViewConfig:
    """Which documents to look at, and where."""

    dataset: tuple[Path, ...]
    """Folders of documents."""
    out: Path
    """The .html file to write."""
    decoder: Path | None = None
    """Folder of the decoder that makes their speech heard; without one it is only seen."""
    num: Count = 50
    """How many documents to show, at random."""
    seed: Natural = 0
    """Seed of the choice, and of the decoder's noise."""


class Voice(Protocol):
    """What makes sound of codes: `weft.decoder.decoder.SpeechDecoder`."""

    sample_rate_hz: int

    def synthesize(self, codes: Sequence[int], seed: int) -> np.ndarray:
        """The sound of codes as float32 samples."""


@dataclass(frozen=True)
class Stretch:
    """A segment with its sound, where it has one, and the word error rate of its reading back, where it was taken."""

    segment: Segment
    sound: Clip | None = None
    wer: float | None = None

    @property
    def around(self) -> tuple[str, str, str]:
        """The white space before its text, the text, and the white space after."""
        text = self.segment.text or ""
        words = text.strip()
        before = text[: len(text) - len(text.lstrip())]
        return before, words, text[len(before) + len(words) :]


@dataclass(frozen=True)
class Shown:
    """A document as runs of stretches of one role, None outside dialogues."""

    document: Document
    turns: Sequence[tuple[str | None, Sequence[Stretch]]]


def run(config: ViewConfig) -> None:
    """Write the page. Raises UserError for what is no documents dataset, for datasets of different tokenizers, for a
    decoder of another tokenizer, and for an `out` that cannot be a page."""
    manifests = {str(folder): artifacts.read(folder, "documents") for folder in config.dataset}
    tokenizers = tokenizer_of(manifests)
    if config.decoder:
        _require_same_tokenizer(config.decoder, tokenizers)
    rows = Rows.of(*config.dataset)
    if not len(rows):
        raise UserError(f"{', '.join(manifests)}: no documents to show; make them again")
    artifacts.check_writable(config.out, ".html")
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(len(rows), min(config.num, len(rows)), replace=False)).tolist()
    documents = [document for i in chosen for document in rows.documents(range(i, i + 1))]
    voice = _voice(config.decoder) if tokenizers else None
    page = render(manifests, list(_shown(documents, voice, config.seed)), len(rows))
    artifacts.write_bytes(config.out, page.encode())


def render(manifests: Mapping[str, Manifest], documents: Sequence[Shown], num_documents: int) -> str:
    """The page of some `documents` among `num_documents`, those of the datasets `manifests`, by their names."""
    template = environment(Path(__file__).parent).get_template("view.html")
    facts = {name: dict(_facts(m.counts)) | dict(_facts(m.notes)) for name, m in manifests.items()}
    return template.render(
        manifests=manifests, facts=facts, documents=documents, num_documents=num_documents,
        kinds=sorted({d.document.kind for d in documents}),
        is_heard=any(s.sound for d in documents for _, turn in d.turns for s in turn),
        is_measured=any(s.wer is not None for d in documents for _, turn in d.turns for s in turn),
        has_ratio=any(d.document.meta.speech_ratio is not None for d in documents),
        is_masked=any(not s.loss for d in documents for s in d.document.segments),
    )  # fmt: skip


def _require_same_tokenizer(decoder: Path, tokenizers: Mapping[str, Manifest]) -> None:
    """Raise UserError for a decoder that would make other sounds of the datasets' codes than they stand for."""
    theirs = artifacts.read(decoder, "decoder").parents.get("tokenizer")
    for tokenizer in tokenizers.values():
        if theirs != tokenizer.fingerprint:
            raise UserError(
                f"{decoder} makes sound of the codes of tokenizer {theirs}, and these are of {tokenizer.fingerprint}: "
                "give the decoder of their tokenizer, or none"
            )


def _voice(decoder: Path | None) -> Voice | None:
    if decoder is None:
        return None
    from weft.decoder.decoder import SpeechDecoder  # and with it torch, which a silent page need not wait for

    return SpeechDecoder.load(decoder)


def _shown(documents: Sequence[Document], voice: Voice | None, seed: int) -> Iterator[Shown]:
    with progress.bar("view", len(documents)) as advance:
        for document in documents:
            rates = chain(document.meta.span_wer or (), repeat(None))
            stretches = [
                Stretch(s, _sound(s, voice, seed + i), next(rates)) if s.type == "speech" else Stretch(s)
                for i, s in enumerate(document.segments)
            ]
            turns = [(role, list(turn)) for role, turn in groupby(stretches, key=lambda s: s.segment.role)]
            yield Shown(document, turns)
            advance()


def _sound(segment: Segment, voice: Voice | None, seed: int) -> Clip | None:
    if voice is None or segment.codes is None or not len(segment.codes):
        return None
    return Clip(voice.synthesize(segment.codes, seed), voice.sample_rate_hz, segment.text)


def _facts(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """What a manifest tells, as names and values for people; what is nested, under both names."""
    for key, value in values.items():
        name = f"{within} {key}".replace("_", " ").strip()
        if isinstance(value, dict):
            yield from _facts(value, f"{name}:")
        elif isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        else:
            yield name, str(value)
