"""Selection of the spans of a text that become speech: an exact fraction of the words of a document.

    selection = select(text, speech_ratio=0.3, mean_span_words=10, rng=np.random.default_rng(hash64(seed, document_id)))
    "".join(part.text for part in selection.parts) == text

Policies: "poisson" (the paper's) places spans of Poisson lengths anywhere; "sentences" selects whole sentences;
"alternate" alternates written and spoken spans, both of Poisson lengths. Code, tables, addresses and other unspeakable
text (`weft.interleave.speakable`) stays text. Spans lie between it and within a paragraph, and are never cut inside a
number (`weft.interleave.boundaries`, `weft.interleave.placement`).

Source: the paper, section 3 (Poisson span lengths, no overlap, a fraction eta of the text).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Literal

import numpy as np

from weft.interleave.boundaries import joined_words, paragraph_starts
from weft.interleave.placement import Span, cut, place, with_whole_numbers
from weft.interleave.speakable import unspeakable
from weft.records import Segment
from weft.text.segment import sentence_ends, word_ends

Policy = Literal["poisson", "sentences", "alternate"]

_LINE_BREAKS = re.compile(r"[^\S\n]*+\n\s*+")
_MAX_SENTENCE = 3.0  # in mean spans; text-to-token models rarely see more in training
_MIN_SPEAKABLE = 0.2  # documents with a lower speakable fraction are mostly code or tables


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A range of words of a document: its exact text, with the white space before each word.

    Line breaks before a spoken range are the end of the written one before it.
    """

    text: str
    num_words: int
    spoken: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """A document split into parts, and the number of its words that cannot be spoken, by kind.

    `left_whole` means that the whole document stays text, because too few of its words can be spoken.
    """

    parts: list[TextSpan]
    unspeakable_words: dict[str, int]
    left_whole: bool


def hash64(*parts: object) -> int:
    """Return a stable 64-bit hash, for seeds that depend on the item and not on the order of processing."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def select(
    text: str, speech_ratio: float, mean_span_words: float, rng: np.random.Generator, policy: Policy = "poisson"
) -> Selection:
    """Split `text` into written and spoken parts whose texts concatenate to it; written parts are never adjacent.

    The spoken fraction of all words is `speech_ratio` to within a word (a number of several words, or a sentence),
    without bias for short documents; if fewer words can be spoken, all of those are. At 1.0 everything is spoken,
    sentence by sentence.
    """
    ends = word_ends(text)
    num_words = len(ends)
    by_kind, excluded = _unspeakable_words(text, ends)
    edges = [0, *chain.from_iterable(excluded), num_words]
    speakable = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
    num_speakable = sum(stop - start for start, stop in speakable)
    left_whole = bool(num_words) and num_speakable < _MIN_SPEAKABLE * num_words
    spans = [] if left_whole else select_spans(text, ends, speakable, speech_ratio, mean_span_words, rng, policy)
    return Selection(split_text(text, ends, spans), by_kind, left_whole)


def select_spans(
    text: str,
    ends: np.ndarray,
    speakable: list[Span],
    speech_ratio: float,
    mean_span_words: float,
    rng: np.random.Generator,
    policy: Policy = "poisson",
) -> list[Span]:
    """Return the spans of words to speak, in order, for a text whose words end at `ends`.

    Spans lie within the ranges `speakable`, which are in order, and within a paragraph. One that would leave them is
    moved, or split if there is no space for it between the others.
    """
    ranges = cut(speakable, paragraph_starts(text, ends).tolist())
    joined = np.zeros(len(ends) + 1, bool)
    joined[joined_words(text, ends)] = True
    joined[[place for span in ranges for place in span]] = False
    if speech_ratio >= 1 or policy == "sentences":
        longest = max(1, round(_MAX_SENTENCE * mean_span_words))
        units = list(_sentences(text, ends, ranges, longest))
        spans = units if speech_ratio >= 1 else sample_spans(units, speech_ratio * len(ends), rng)
        return with_whole_numbers(spans, joined)
    num_speakable = sum(stop - start for start, stop in ranges)
    num_spoken = min(int(len(ends) * speech_ratio + rng.random()), num_speakable)  # random rounding has no bias
    sample = poisson_spans if policy == "poisson" else alternating_spans
    spans = sample(num_speakable, num_spoken, mean_span_words, rng)
    return with_whole_numbers(place(spans, ranges), joined)


def poisson_spans(num_words: int, num_spoken: int, mean_span_words: float, rng: np.random.Generator) -> list[Span]:
    """Return non-overlapping spans of `num_spoken` words in total, in order, uniform over all placements.

    Lengths are Poisson samples without zeros; the last one is shortened to the exact total. At least one word stays
    between spans if there are enough words.
    """
    if num_spoken == 0:
        return []
    lengths = _lengths(num_spoken, mean_span_words, rng)
    num_free = num_words - num_spoken
    gap = 1 if num_free >= len(lengths) - 1 else 0
    num_free -= gap * (len(lengths) - 1)
    places = np.sort(rng.choice(num_free + len(lengths), len(lengths), replace=False))
    starts = places + np.arange(len(lengths)) * (gap - 1) + np.cumsum(lengths) - lengths
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


def alternating_spans(num_words: int, num_spoken: int, mean_span_words: float, rng: np.random.Generator) -> list[Span]:
    """Return spoken spans of `num_spoken` words in total, in order, that alternate with written spans.

    Both have Poisson lengths of at least one word, and the written lengths sum to the remaining words. The sequence of
    spans is rotated by a random number of words, so that every word is spoken with the same probability. If there are
    fewer written words than spans, adjacent spoken spans are merged.
    """
    num_written = num_words - num_spoken
    if num_spoken == 0 or num_written == 0:
        return [(0, num_words)] if num_spoken else []
    lengths = _lengths(num_spoken, mean_span_words, rng)
    if len(lengths) > num_written:
        lengths = np.add.reduceat(lengths, np.arange(num_written) * len(lengths) // num_written)
    num = len(lengths)
    # Poisson variables with a known sum are multinomial.
    gaps = 1 + rng.multinomial(num_written - num, np.full(num, 1 / num))
    stops = np.cumsum(lengths + gaps) - gaps + int(rng.integers(num_words))
    starts = stops - lengths
    rotated = zip((starts % num_words).tolist(), (starts % num_words + lengths).tolist(), strict=True)
    pieces = (piece for a, b in rotated for piece in ((a, min(b, num_words)), (0, b - num_words)))
    return sorted(piece for piece in pieces if piece[0] < piece[1])


def sample_spans(units: list[Span], num_spoken: float, rng: np.random.Generator) -> list[Span]:
    """Return a random subset of `units`, in order, with `num_spoken` words to within a unit, in expectation exactly."""
    chosen: list[int] = []
    remaining = num_spoken
    for i in rng.permutation(len(units)).tolist():
        length = units[i][1] - units[i][0]
        if length > remaining:
            if rng.random() * length < remaining:
                chosen.append(i)
            break
        chosen.append(i)
        remaining -= length
    return [units[i] for i in sorted(chosen)]


def _lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Return span lengths that sum to `total`, in random order."""
    lengths: list[int] = []
    remaining = total
    while remaining > 0:
        if length := min(int(rng.poisson(mean)), remaining):
            lengths.append(length)
            remaining -= length
    return rng.permutation(lengths)


def _unspeakable_words(text: str, ends: np.ndarray) -> tuple[dict[str, int], list[Span]]:
    """Return the number of words that overlap unspeakable text, by kind, and their ranges, in order."""
    by_kind: dict[str, int] = {}
    ranges: list[Span] = []
    done = 0
    for found in unspeakable(text, ends):
        first = max(done, int(np.searchsorted(ends, found.start, "right")))
        done = int(np.searchsorted(ends, found.stop, "left")) + 1
        if first < done:
            ranges.append((first, done))
            by_kind[found.kind] = by_kind.get(found.kind, 0) + done - first
    return by_kind, ranges


def _sentences(text: str, ends: np.ndarray, ranges: list[Span], longest: int) -> Iterator[Span]:
    """Yield spans that cover `ranges`: to the end of a sentence or paragraph, or of at most `longest` words."""
    places = np.fromiter(sentence_ends(text), np.int64)
    stops = np.searchsorted(ends, places, "left") + 1
    for start, stop in ranges:
        low, high = np.searchsorted(stops, [start, stop], "right")
        for end in (*stops[low:high].tolist(), stop):
            while start < end:
                yield start, min(start + longest, end)
                start = min(start + longest, end)


def split_text(text: str, ends: np.ndarray, spans: list[Span]) -> list[TextSpan]:
    """Split a text, whose words end at `ends`, at spans that are in order."""
    parts: list[TextSpan] = []
    num_words, done, offset = len(ends), 0, 0
    for start, stop in (*spans, (num_words, num_words)):
        for word, spoken in ((start, False), (stop, True)):
            if done < word:
                end = len(text) if word == num_words else int(ends[word - 1])
                if spoken and parts and not parts[-1].spoken and (breaks := _LINE_BREAKS.match(text, offset)):
                    parts[-1] = replace(parts[-1], text=parts[-1].text + breaks[0])
                    offset = breaks.end()
                parts.append(TextSpan(text[offset:end], word - done, spoken))
                done, offset = word, end
    return parts or [TextSpan(text, 0, False)]


def segments_of(parts: Iterable[tuple[TextSpan, Sequence[int] | None]]) -> tuple[Segment, ...]:
    """Return parts with their codes as segments: adjacent parts without codes form one text segment."""
    segments: list[Segment] = []
    for is_text, run in groupby(parts, key=lambda pair: pair[1] is None):
        if is_text:
            segments.append(Segment.of_text("".join(part.text for part, _ in run)))
        else:
            segments += [Segment.of_speech(codes, part.text) for part, codes in run if codes is not None]
    return tuple(segments)
