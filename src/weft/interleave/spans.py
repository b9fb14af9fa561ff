"""Which words of a text are spoken: spans over the whole document, to an exact share of its words.

    drawn = draw(text, speech_ratio=0.3, mean_span_words=10, rng=np.random.default_rng(hash64(seed, document_id)))
    "".join(part.text for part in drawn.parts) == text

Policies: "poisson" (the paper's) places spans of Poisson lengths anywhere; "sentences" speaks whole sentences;
"alternate" weaves written and spoken stretches in turn, both of Poisson lengths. Code, tables, addresses and the like
(`weft.interleave.speakable`) stay text, and no span crosses them: one that would is cut in two there.

Source: section 3 of arXiv 2411.17607 (Poisson span lengths, non-overlapping, a share eta of the text).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from weft.interleave.speakable import unspeakable
from weft.interleave.words import word_ends
from weft.records import Segment
from weft.sentences import sentence_ends

Policy = Literal["poisson", "sentences", "alternate"]
Span = tuple[int, int]  # a range of words, [start, stop)

_LONGEST_SENTENCE = 3.0  # in mean spans: what the text-to-token model rarely sees more than
_LEAST_SPEAKABLE = 0.2  # a document of which less can be spoken is code or a table with some words about it


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document: its exact text, with the white space before each word, and whether it is spoken."""

    text: str
    num_words: int
    spoken: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """A document cut into parts, and what of it could not be spoken: words by kind (`weft.interleave.speakable`).

    `left_whole` says that so little of it can be spoken that all of it stays text.
    """

    parts: list[Part]
    unspeakable_words: dict[str, int]
    left_whole: bool


def hash64(*parts: object) -> int:
    """A stable 64-bit hash, for seeds that depend on what is drawn for and not on the order of work."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def draw(
    text: str, speech_ratio: float, mean_span_words: float, rng: np.random.Generator, policy: Policy = "poisson"
) -> Drawn:
    """Cut `text` into written and spoken parts that join to it exactly; written ones never follow one another.

    The spoken share of all the words is `speech_ratio` up to less than a word (or a sentence), and on average exactly
    that at any length of document; where less than that can be spoken, all that can is. At 1.0 everything is spoken,
    sentence by sentence.
    """
    ends = word_ends(text)
    num_words = len(ends)
    by_kind, barred = _unspeakable_words(text, ends)
    free = _between(barred, num_words)
    num_free = sum(stop - start for start, stop in free)
    left_whole = bool(num_words) and num_free < _LEAST_SPEAKABLE * num_words
    spans = [] if left_whole else spans_of(text, ends, free, speech_ratio, mean_span_words, rng, policy)
    return Drawn(cut(text, ends, spans), by_kind, left_whole)


def spans_of(
    text: str,
    ends: np.ndarray,
    free: list[Span],
    speech_ratio: float,
    mean_span_words: float,
    rng: np.random.Generator,
    policy: Policy = "poisson",
) -> list[Span]:
    """The spans that `policy` speaks of the words of `text`, which end at `ends`, in order.

    Only the words of the ranges `free`, in order, are spoken; a span that would go beyond one is cut in two there.
    """
    if speech_ratio >= 1 or policy == "sentences":
        longest = max(1, round(_LONGEST_SENTENCE * mean_span_words))
        units = list(_sentences(text, ends, free, longest))
        return units if speech_ratio >= 1 else choose(units, speech_ratio * len(ends), rng)
    num_free = sum(stop - start for start, stop in free)
    num_spoken = min(int(len(ends) * speech_ratio + rng.random()), num_free)  # at random: no bias when short
    placed = {"poisson": place, "alternate": alternate}[policy](num_free, num_spoken, mean_span_words, rng)
    return _into(placed, free)


def place(num_words: int, num_spoken: int, mean_span_words: float, rng: np.random.Generator) -> list[Span]:
    """Non-overlapping spans of `num_spoken` of the words, in order, uniform over all their placements.

    Lengths are Poisson draws without zeros; the last drawn is trimmed so that the share is met. Where the share leaves
    room, at least one word stays between spans.
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


def alternate(num_words: int, num_spoken: int, mean_span_words: float, rng: np.random.Generator) -> list[Span]:
    """Spoken stretches of `num_spoken` of the words, in order, with written ones between them.

    Both have Poisson lengths of at least a word, those of the written ones such that all are used up: the stretches lie
    on a circle that is cut open at a random word, so that each word is spoken with the same chance. Where the share
    leaves fewer written words than stretches, spoken neighbours are joined.
    """
    num_written = num_words - num_spoken
    if num_spoken == 0 or num_written == 0:
        return [(0, num_words)] if num_spoken else []
    lengths = _lengths(num_spoken, mean_span_words, rng)
    if len(lengths) > num_written:
        lengths = np.add.reduceat(lengths, np.arange(num_written) * len(lengths) // num_written)
    num = len(lengths)
    # Poisson variables of a known sum are multinomial.
    gaps = 1 + rng.multinomial(num_written - num, np.full(num, 1 / num))
    stops = np.cumsum(lengths + gaps) - gaps + int(rng.integers(num_words))
    starts = stops - lengths
    whole = [*zip((starts % num_words).tolist(), (starts % num_words + lengths).tolist(), strict=True)]
    cut = [piece for a, b in whole for piece in ((a, min(b, num_words)), (0, b - num_words)) if piece[0] < piece[1]]
    return sorted(cut)


def choose(units: list[Span], num_spoken: float, rng: np.random.Generator) -> list[Span]:
    """Some of the `units`, in order, at random: together `num_spoken` words up to less than a unit, on average so."""
    chosen: list[int] = []
    left = num_spoken
    for i in rng.permutation(len(units)).tolist():
        length = units[i][1] - units[i][0]
        if length > left:
            if rng.random() * length < left:
                chosen.append(i)
            break
        chosen.append(i)
        left -= length
    return [units[i] for i in sorted(chosen)]


def _lengths(total: int, mean: float, rng: np.random.Generator) -> np.ndarray:
    """Span lengths that sum to `total`, in random order."""
    lengths: list[int] = []
    left = total
    while left > 0:
        if length := min(int(rng.poisson(mean)), left):
            lengths.append(length)
            left -= length
    return rng.permutation(lengths)


def _unspeakable_words(text: str, ends: np.ndarray) -> tuple[dict[str, int], list[Span]]:
    """How many words touch what cannot be spoken, by kind, and the ranges of them, in order."""
    by_kind: dict[str, int] = {}
    barred: list[Span] = []
    done = 0
    for found in unspeakable(text, ends):
        first = max(done, int(np.searchsorted(ends, found.start, "right")))
        done = int(np.searchsorted(ends, found.stop, "left")) + 1
        if first < done:
            barred.append((first, done))
            by_kind[found.kind] = by_kind.get(found.kind, 0) + done - first
    return by_kind, barred


def _between(spans: Iterable[Span], num_words: int) -> list[Span]:
    """The ranges of words that `spans`, in order, leave."""
    edges = [0, *(edge for span in spans for edge in span), num_words]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _into(placed: list[Span], free: list[Span]) -> list[Span]:
    """Spans placed among the words of `free`, as if nothing lay between, in the words of the document."""
    if len(free) == 1:
        return [(start + free[0][0], stop + free[0][0]) for start, stop in placed]
    result: list[Span] = []
    runs = iter(free)
    run, before = (0, 0), 0  # a run of free words, and how many lie before it
    for start, stop in placed:
        while start < stop:
            while start >= before + run[1] - run[0]:
                before += run[1] - run[0]
                run = next(runs)
            end = min(stop, before + run[1] - run[0])
            result.append((run[0] + start - before, run[0] + end - before))
            start = end
    return result


def _sentences(text: str, ends: np.ndarray, free: list[Span], longest: int) -> Iterator[Span]:
    """Ranges of words that cover `free`: up to the end of a sentence or a paragraph, or `longest` words."""
    places = np.fromiter(sentence_ends(text), np.int64)
    stops = np.searchsorted(ends, places, "left") + 1
    for start, stop in free:
        low, high = np.searchsorted(stops, [start, stop], "right")
        for end in (*stops[low:high].tolist(), stop):
            while start < end:
                yield start, min(start + longest, end)
                start = min(start + longest, end)


def cut(text: str, ends: np.ndarray, spans: list[Span]) -> list[Part]:
    """The text, whose words end at `ends`, cut at the spans, which are in order."""
    parts: list[Part] = []
    num_words, done, place = len(ends), 0, 0
    for start, stop in (*spans, (num_words, num_words)):
        for word, spoken in ((start, False), (stop, True)):
            if done < word:
                end = len(text) if word == num_words else int(ends[word - 1])
                parts.append(Part(text[place:end], word - done, spoken))
                done, place = word, end
    return parts or [Part(text, 0, False)]


def segments_of(parts: Iterable[tuple[Part, Sequence[int] | None]]) -> tuple[Segment, ...]:
    """Parts with their codes as segments: those without codes stay text, one with the text around them."""
    segments: list[Segment] = []
    for silent, run in groupby(parts, key=lambda pair: pair[1] is None):
        if silent:
            segments.append(Segment.of_text("".join(part.text for part, _ in run)))
        else:
            segments += [Segment.of_speech(codes, part.text) for part, codes in run if codes is not None]
    return tuple(segments)
