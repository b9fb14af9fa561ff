"""Viewer of documents: one self-contained page with a random sample of a dataset.

    run(ViewConfig(dataset=(Path("runs/interleaved"),), out=Path("page.html"), decoder=Path("runs/decoder")))

Written and spoken words have different colours, and spoken words a stripe of their codes. With a decoder, they play
when they are clicked. The page filters documents by kind, spoken fraction, word error rate and words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft import artifacts, progress
from weft.artifacts import Manifest
from weft.config import NonNegativeInt, PositiveInt
from weft.data.datasets import Rows, tokenizer_parent
from weft.errors import UserError
from weft.files import check_writable, write_bytes
from weft.pages.components import Clip, environment
from weft.records import Document, Segment

if TYPE_CHECKING:
    from weft.decoder.decoder import SpeechDecoder


@dataclass(frozen=True)
class ViewConfig:
    """Documents to view, and the page to write."""

    dataset: tuple[Path, ...]
    """Documents datasets."""
    out: Path
    """HTML file to write."""
    decoder: Path | None = None
    """Directory of the decoder that makes speech audible; not set: no audio."""
    num: PositiveInt = 50
    """Number of documents, sampled at random."""
    seed: NonNegativeInt = 0
    """Seed of the sample and of the decoder's noise."""


@dataclass(frozen=True)
class ShownSegment:
    """A segment with its audio and its word error rate, if known."""

    segment: Segment
    clip: Clip | None = None
    wer: float | None = None

    @property
    def parts(self) -> tuple[str, str, str]:
        """The white space before its text, the text, and the white space after."""
        text = self.segment.text or ""
        words = text.strip()
        before = text[: len(text) - len(text.lstrip())]
        return before, words, text[len(before) + len(words) :]


@dataclass(frozen=True)
class ShownDocument:
    """A document as runs of segments of one role, which is None outside dialogues."""

    document: Document
    turns: Sequence[tuple[str | None, Sequence[ShownSegment]]]


def run(config: ViewConfig) -> None:
    """Write the page.

    Raises UserError for other artifacts, for datasets and a decoder of different tokenizers, and an unwritable `out`.
    """
    manifests = {str(folder): artifacts.read(folder, "documents") for folder in config.dataset}
    tokenizers = tokenizer_parent(manifests)
    if config.decoder:
        _check_tokenizer(config.decoder, tokenizers)
    rows = Rows.of(*config.dataset)
    if not len(rows):
        raise UserError(f"{', '.join(manifests)} has no documents: create it again")
    check_writable(config.out, ".html")
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(len(rows), min(config.num, len(rows)), replace=False)).tolist()
    documents = [document for i in chosen for document in rows.documents(range(i, i + 1))]
    decoder = None
    if config.decoder and tokenizers:
        from weft.decoder.decoder import SpeechDecoder  # imports torch

        decoder = SpeechDecoder.from_pretrained(config.decoder)
    page = render(manifests, list(_shown(documents, decoder, config.seed)), len(rows))
    write_bytes(config.out, page.encode())


def render(manifests: Mapping[str, Manifest], documents: Sequence[ShownDocument], num_documents: int) -> str:
    """Return the page of `documents`, a sample of the `num_documents` of the datasets `manifests`, by name."""
    template = environment().get_template("view.html")
    facts = {name: dict(_facts(m.counts)) | dict(_facts(m.notes)) for name, m in manifests.items()}
    return template.render(
        manifests=manifests, facts=facts, documents=documents, num_documents=num_documents,
        kinds=sorted({d.document.kind for d in documents}),
        has_audio=any(s.clip for d in documents for _, turn in d.turns for s in turn),
        has_wer=any(s.wer is not None for d in documents for _, turn in d.turns for s in turn),
        has_ratio=any(d.document.meta.speech_ratio is not None for d in documents),
        has_untrained=any(not s.loss for d in documents for s in d.document.segments),
    )  # fmt: skip


def _check_tokenizer(decoder: Path, tokenizers: Mapping[str, Manifest]) -> None:
    """Raise UserError for a decoder of another tokenizer than that of the codes."""
    found = artifacts.read(decoder, "decoder").parents.get("tokenizer")
    for tokenizer in tokenizers.values():
        if found != tokenizer.fingerprint:
            raise UserError(
                f"{decoder} decodes the codes of tokenizer {found}, not of {tokenizer.fingerprint}: give another "
                "decoder, or none"
            )


def _shown(documents: Sequence[Document], decoder: SpeechDecoder | None, seed: int) -> Iterator[ShownDocument]:
    with progress.bar("view", len(documents)) as advance:
        for document in documents:
            rates = chain(document.meta.span_wer or (), repeat(None))
            segments = [
                ShownSegment(s, _clip(s, decoder, seed + i), next(rates)) if s.type == "speech" else ShownSegment(s)
                for i, s in enumerate(document.segments)
            ]
            turns = [(role, list(turn)) for role, turn in groupby(segments, key=lambda s: s.segment.role)]
            yield ShownDocument(document, turns)
            advance()


def _clip(segment: Segment, decoder: SpeechDecoder | None, seed: int) -> Clip | None:
    if decoder is None or segment.codes is None or not len(segment.codes):
        return None
    return Clip(decoder.synthesize(segment.codes, seed), decoder.sample_rate_hz, segment.text)


def _facts(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a manifest as text, nested ones under both names."""
    for key, value in values.items():
        name = f"{within} {key}".replace("_", " ").strip()
        if isinstance(value, dict):
            yield from _facts(value, f"{name}:")
        elif isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        else:
            yield name, str(value)
