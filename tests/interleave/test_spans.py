"""Spans: parts join to the exact text, the spoken fraction is exact, and no word is preferred."""

import re
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.spans import alternating_spans, hash64, poisson_spans, sample_spans, select, select_spans
from weft.text.segment import num_words, word_ends

RATIOS = st.floats(0.01, 1.0)
MEANS = st.floats(1.0, 30.0)
SINGLE_WORDS = [
    "https://a.org/x?y=1.5&z=",
    "10 000",
    "$1 234 567.89",
    "3,141.59",
    "e.g.",
    "—",
    "me@home.net",
    "词",
    "三百五十",
    "cat",
]


def rng(*parts):
    return np.random.default_rng(hash64(*parts))


def cuts(parts):
    return np.cumsum([len(part.text) for part in parts])[:-1].tolist()


POLICIES = ("poisson", "sentences", "alternate")
PIECES = [
    "word ", "Mr. Ann ", "end.\n\n", "it ends. ", "\r\n", "\0", "😀👨‍👩‍👧 ", "שָׁלוֹם ", "e\u0301 ", "ที่นี่", "词。", " ",
    "https://a.org ", "\n```\nx = 1\n```\n", "a | b | c | d\n",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def rounded(num, ratio, seed):
    return int(num * ratio + rng("round", seed).random())


@given(st.one_of(st.text(), TEXTS), RATIOS, MEANS, st.integers(0, 99), st.sampled_from(POLICIES))
def test_parts_join_to_the_exact_text(text, ratio, mean, seed, policy):
    parts = select(text, ratio, mean, rng(seed), policy).parts
    assert "".join(part.text for part in parts) == text
    assert sum(part.num_words for part in parts) == num_words(text)
    assert all(part.num_words for part in parts if part.spoken)
    assert not any(not a.spoken and not b.spoken for a, b in pairwise(parts))


@given(st.lists(st.sampled_from(SINGLE_WORDS), min_size=1, max_size=60), RATIOS, MEANS, st.integers(0, 99))
def test_cuts_are_before_spaces_and_never_inside_numbers_or_urls(words, ratio, mean, seed):
    text = " " + "\u3000".join(words)
    allowed = set(np.cumsum([len(word) + 1 for word in words]).tolist())
    assert set(cuts(select(text, ratio, mean, rng(seed)).parts)) <= allowed


NUMBERS = ["101 000 Pa", "3.5 km", "May 5, 2020", "12. März 2020", "5:30 p.m.", "6 × 10", "1 234 567", "30 %"]  # noqa: RUF001
SCIENTIFIC = ["6.02e23", "6.02 × 10^23", "1.5E-9", "10⁻³"]  # noqa: RUF001
PHRASES = st.sampled_from([*NUMBERS, *SCIENTIFIC, "the old man", "went", "to the sea, and", "so it was."])
PARAGRAPHS = st.builds(
    str.__add__, st.sampled_from(["", "", "## ", "- ", "> "]), st.lists(PHRASES, min_size=1, max_size=30).map(" ".join)
)


@given(st.lists(PARAGRAPHS, min_size=1, max_size=8), RATIOS, MEANS, st.integers(0, 99), st.sampled_from(POLICIES))
def test_spans_are_within_a_paragraph_and_never_cut_inside_a_number(paragraphs, ratio, mean, seed, policy):
    text = "\n\n".join(paragraphs)
    parts = select(text, ratio, mean, rng(seed), policy).parts
    assert "".join(part.text for part in parts) == text
    inside = {m.start() + i for n in NUMBERS for m in re.finditer(re.escape(n), text) for i in range(1, len(n))}
    assert inside.isdisjoint(cuts(parts))
    spoken = [part.text for part in parts if part.spoken]
    assert not any("\n" in span.strip() for span in spoken)
    assert not any(a.spoken < b.spoken and b.text[0] == "\n" for a, b in pairwise(parts))
    assert not any(number in span for number in SCIENTIFIC for span in spoken)
    assert not any(span.split()[0] in ("##", "-", ">") for span in spoken)


@pytest.mark.parametrize("policy", ["poisson", "alternate"])
def test_paragraphs_and_numbers_hardly_change_the_ratio_and_the_length_of_spans(policy):
    random = rng("ordinary text")
    words = [*(["the", "old", "man", "went", "over", "to", "the", "sea", "and", "sat"] * 4), *NUMBERS]
    lengths = []
    for i in range(12):
        sizes = random.integers(40, 160, 12)
        text = "\n\n".join(" ".join(random.choice(words) for _ in range(size)) for size in sizes)
        parts = select(text, 0.3, 10, rng(i), policy).parts
        spoken = [part.num_words for part in parts if part.spoken]
        assert abs(sum(spoken) - 0.3 * num_words(text)) < 5
        lengths += spoken
    assert np.mean(lengths) == pytest.approx(10, rel=0.05)


# The numbers of words of spoken parts, and of written parts as negative numbers.
STABLE = [
    ("What is the town of Winslow famous for? The town of Winslow is famous for bread. Clara was a busy baker in "
     "Verona. She made the dough and baked a small pie. By mistake she put salt in the sweet dough. Nobody wanted to "
     "eat the pie because of the salt. What does a goat like to eat? A goat likes to eat flowers. Every morning David "
     "lit the bakery oven in Verona. He put a loaf of sweet dough in the oven. By mistake he put salt in the sweet "
     "dough. Nobody wanted to eat the loaf because of the salt.",
     [-9, 2, -20, 8, -15, 8, -5, 4, -12, 6, -9, 3, -1]),
    ("The soldiers of Harlow went to the smith Olga. She put iron in the forge for a sword. She hit the cold iron very "
     "hard. Olga heard the sword break and was ashamed. The town of Ashford is famous for cheese. The fire in the "
     "forge of Nadia lit Carmel. She put iron in the forge for a sword. She dropped the hot iron on the wood. The "
     "forge burned, and Nadia saved only the sword. A donkey likes to eat hay.",
     [4, -2, 2, -10, 2, -11, 2, -6, 3, -9, 8, -15, 3, -5]),
    ("one two three four five six seven eight nine ten " * 10, [7, -14, 6, -7, 8, -15, 5, -19, 3, -11, 1, -4]),
    ("它很好。三百五十个人，都来了！" * 6, [-1, 4, -7, 2, -10, 3, -3, 8, -16]),  # noqa: RUF001
]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_a_seed_selects_the_same_spans_in_every_version(number):
    text, lengths = STABLE[number]
    selection = select(text, 0.3, 5, rng(7, f"d{number}"))
    assert [part.num_words if part.spoken else -part.num_words for part in selection.parts] == lengths
    assert selection.unspeakable_words == {}


@given(TEXTS, RATIOS, MEANS, st.integers(0, 99), st.sampled_from(POLICIES))
def test_unspeakable_text_is_never_spoken(text, ratio, mean, seed, policy):
    selection = select(text, ratio, mean, rng(seed), policy)
    spoken = [part for part in selection.parts if part.spoken]
    assert not any(sign in part.text for part in spoken for sign in ("://", "```", "x = 1", "|"))
    num_speakable = num_words(text) - sum(selection.unspeakable_words.values())
    assert sum(part.num_words for part in spoken) <= num_speakable
    if ratio == 1.0 and not selection.left_whole:
        assert sum(part.num_words for part in spoken) == num_speakable


@pytest.mark.parametrize("policy", POLICIES)
def test_the_spoken_fraction_is_of_all_words_and_limited_to_speakable_ones(policy):
    text = "```\n" + "x = y\n" * 20 + "```\n\n" + "One two three four five six. " * 15  # 62 and 90 words
    for ratio, fraction in ((0.3, 0.3), (0.8, 90 / 152)):
        selections = [select(text, ratio, 4, rng(i), policy) for i in range(200)]
        spoken = [sum(p.num_words for p in s.parts if p.spoken) / 152 for s in selections]
        assert np.mean(spoken) == pytest.approx(fraction, abs=0.005)
    assert selections[0].unspeakable_words == {"code": 62}


def test_a_document_with_few_speakable_words_stays_whole():
    code = "```\n" + "x = y\n" * 200 + "```\n\n"
    selection = select(code + "That was it, my friend.", 0.3, 4, rng(0))
    assert selection.left_whole
    assert [part.spoken for part in selection.parts] == [False]
    assert not select(code + "That was it, my friend. " * 60, 0.3, 4, rng(0)).left_whole
    assert not select("", 0.3, 4, rng(0)).left_whole


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_sentences", [1, 2, 5, 40])
def test_every_word_of_short_documents_is_spoken_with_the_same_probability(policy, num_sentences):
    text = "Now six words are in here. And four in this. " * num_sentences
    ends = word_ends(text)
    counts = np.zeros(len(ends))
    for i in range(1500):
        for start, stop in select_spans(text, ends, [(0, len(ends))], 0.3, 5, rng(policy, i), policy):
            counts[start:stop] += 1 / 1500
    assert counts.mean() == pytest.approx(0.3, abs=0.02)
    if policy != "poisson":  # its spans are uniform over placements and therefore rarer at the edges
        assert counts.min() > 0.22
        assert counts.max() < 0.38


def test_sentences_are_spoken_whole():
    text = "Mr. J. Smith has come. Is it 5 p.m.? Yes.\n\nThen I say, e.g., this. " * 20
    sentences = {"Mr. J. Smith has come.", "Is it 5 p.m.?", "Yes.", "Then I say, e.g., this."}
    parts = select(text, 0.4, 10, rng(0), "sentences").parts
    assert {part.text.strip() for part in parts if part.spoken} == sentences
    assert abs(sum(part.num_words for part in parts if part.spoken) - 0.4 * num_words(text)) < 5


@given(st.lists(st.integers(1, 40), max_size=50), st.floats(0, 1), st.integers(0, 99))
def test_chosen_units_have_the_requested_words_to_within_a_unit(lengths, ratio, seed):
    stops = np.cumsum([0, *lengths]).tolist()
    units = list(pairwise(stops))
    chosen = sample_spans(units, ratio * stops[-1], rng(seed))
    assert chosen == sorted(set(chosen))
    assert abs(sum(b - a for a, b in chosen) - ratio * stops[-1]) < max(lengths, default=1)


@given(st.integers(0, 2000), st.floats(0.01, 0.99), MEANS, st.integers(0, 99))
def test_alternating_spans_have_exactly_the_requested_words(num, ratio, mean, seed):
    num_spoken = rounded(num, ratio, seed)
    spans = alternating_spans(num, num_spoken, mean, rng(seed))
    assert sum(stop - start for start, stop in spans) == num_spoken
    assert all(start < stop for start, stop in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= num)


def test_alternating_spans_have_poisson_lengths():
    spans = alternating_spans(200_000, 60_000, 10, rng(0))
    spoken = np.array([b - a for a, b in spans])
    written = np.array([b[0] - a[1] for a, b in pairwise(spans)])
    assert np.mean(spoken) == pytest.approx(10, abs=0.2)
    assert np.mean(written) == pytest.approx(23.3, abs=0.5)
    assert np.var(written) == pytest.approx(22.3, rel=0.1)  # for spans placed anywhere it is 500


@pytest.mark.parametrize("policy", POLICIES)
def test_long_texts_take_little_time_and_memory(policy):
    text = "The quick brown fox, it is said, jumped over Mr. Dog on May 5. " * 4000
    for long in (text, "x" * len(text)):
        tracemalloc.start()
        start_sec = time.process_time()
        select(long, 0.3, 10, rng(0), policy)
        seconds, peak = time.process_time() - start_sec, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seconds < 2  # tracing of memory takes most of it
        assert peak < 20 * len(long)


@given(st.integers(0, 3000), st.floats(0.01, 0.99), MEANS, st.integers(0, 99))
def test_placed_spans_are_separate_and_have_exactly_the_requested_words(num, ratio, mean, seed):
    num_spoken = rounded(num, ratio, seed)
    spans = poisson_spans(num, num_spoken, mean, rng(seed))
    assert all(start < stop for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= num)
    covered = sum(stop - start for start, stop in spans)
    assert covered == num_spoken
    if num - covered >= len(spans) - 1:
        assert all(a[1] < b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("num", [1, 3, 10, 30, 50, 57, 200, 1000])
def test_the_spoken_fraction_is_exact_for_short_documents(num):
    text = "a " * num
    ends = word_ends(text)
    spans = (select_spans(text, ends, [(0, num)], 0.3, 10, rng("d", num, i)) for i in range(1000))
    fractions = [sum(stop - start for start, stop in found) / num for found in spans]
    assert np.mean(fractions) == pytest.approx(0.3, abs=0.05 if num < 10 else 0.005)
    if num >= 50:
        assert min(fractions) >= 0.28
        assert max(fractions) <= 0.32


def test_span_lengths_are_poisson():
    lengths = [b - a for i in range(200) for a, b in poisson_spans(2000, 600, 10, rng(i))]
    assert np.mean(lengths) == pytest.approx(10, abs=0.3)
    assert np.var(lengths) == pytest.approx(10, rel=0.15)


def test_spans_cover_the_whole_document_evenly():
    covered = np.zeros(200)
    for i in range(3000):
        for start, stop in poisson_spans(200, 60, 10, rng(i)):
            covered[start:stop] += 1 / 3000
    assert covered[20:-20].min() > 0.25
    assert covered[20:-20].max() < 0.36
    assert min(covered[0], covered[-1]) > 0.02


def test_a_selection_depends_on_seed_and_document_only():
    text = "one two three four five six seven eight nine ten " * 10
    assert select(text, 0.3, 5, rng(1, "a")) == select(text, 0.3, 5, rng(1, "a"))
    assert select(text, 0.3, 5, rng(1, "a")) != select(text, 0.3, 5, rng(1, "b")) != select(text, 0.3, 5, rng(2, "b"))


def test_a_speech_ratio_of_one_speaks_everything_sentence_by_sentence():
    text = 'Hello there. "Is it on?" she said\n\nA title\n\n它很好。真的！ ' + "and on " * 40 + "end\n"  # noqa: RUF001
    parts = select(text, 1.0, 10, rng(0)).parts
    assert all(part.spoken for part in parts)
    assert "".join(part.text for part in parts) == text
    assert [part.text.strip() for part in parts[:5]] == [
        "Hello there.", '"Is it on?" she said', "A title", "它很好。", "真的！",  # noqa: RUF001
    ]  # fmt: skip
    assert max(part.num_words for part in parts) == 30


def test_hash64_is_the_same_everywhere():
    assert hash64(0, "document", 3) == 3958869411349179091
