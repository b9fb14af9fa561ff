from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.spans import draw, hash64, num_words, place

RATIOS = st.floats(0.01, 1.0)
MEANS = st.floats(1.0, 30.0)
WHOLE = [
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


@given(st.text(), RATIOS, MEANS, st.integers(0, 99))
def test_parts_join_to_the_exact_text(text, ratio, mean, seed):
    parts = draw(text, ratio, mean, rng(seed))
    assert "".join(part.text for part in parts) == text
    assert sum(part.num_words for part in parts) == num_words(text)
    assert all(part.num_words for part in parts if part.spoken)
    assert not any(not a.spoken and not b.spoken for a, b in pairwise(parts))


@given(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=60), RATIOS, MEANS, st.integers(0, 99))
def test_cuts_fall_before_spaces_and_never_inside_numbers_or_urls(words, ratio, mean, seed):
    text = " " + "\u3000".join(words)
    allowed = set(np.cumsum([len(word) + 1 for word in words]).tolist())
    assert set(cuts(draw(text, ratio, mean, rng(seed)))) <= allowed


@given(st.integers(0, 3000), st.floats(0.01, 0.99), MEANS, st.integers(0, 99))
def test_spans_are_in_order_apart_and_cover_the_share_to_the_word(num, ratio, mean, seed):
    spans = place(num, ratio, mean, rng(seed))
    assert all(start < stop for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= num)
    covered = sum(stop - start for start, stop in spans)
    assert abs(covered - ratio * num) < 1
    if num - covered >= len(spans) - 1:
        assert all(a[1] < b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("num", [1, 3, 10, 30, 50, 57, 200, 1000])
def test_the_share_does_not_overshoot_on_short_documents(num):
    shares = [sum(b - a for a, b in place(num, 0.3, 10, rng("d", num, i))) / num for i in range(1000)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.05 if num < 10 else 0.005)
    if num >= 50:
        assert min(shares) >= 0.28
        assert max(shares) <= 0.32


def test_span_lengths_are_poisson():
    lengths = [b - a for i in range(200) for a, b in place(2000, 0.3, 10, rng(i))]
    assert np.mean(lengths) == pytest.approx(10, abs=0.3)
    assert np.var(lengths) == pytest.approx(10, rel=0.15)


def test_the_whole_document_is_in_reach():
    covered = np.zeros(200)
    for i in range(3000):
        for start, stop in place(200, 0.3, 10, rng(i)):
            covered[start:stop] += 1 / 3000
    assert covered[20:-20].min() > 0.25
    assert covered[20:-20].max() < 0.36
    assert min(covered[0], covered[-1]) > 0.02


def test_a_draw_depends_on_seed_and_document_alone():
    text = "one two three four five six seven eight nine ten " * 10
    assert draw(text, 0.3, 5, rng(1, "a")) == draw(text, 0.3, 5, rng(1, "a"))
    assert draw(text, 0.3, 5, rng(1, "a")) != draw(text, 0.3, 5, rng(1, "b")) != draw(text, 0.3, 5, rng(2, "b"))


def test_a_full_share_speaks_everything_sentence_by_sentence():
    text = 'Hello there. "Is it on?" she said\n\nA title\n\n它很好。真的！ ' + "and on " * 40 + "end\n"  # noqa: RUF001
    parts = draw(text, 1.0, 10, rng(0))
    assert all(part.spoken for part in parts)
    assert "".join(part.text for part in parts) == text
    assert [part.text.strip() for part in parts[:6]] == [
        "Hello there.", '"Is it on?"', "she said", "A title", "它很好。", "真的！",  # noqa: RUF001
    ]  # fmt: skip
    assert max(part.num_words for part in parts) == 30


def test_hash64_is_the_same_everywhere():
    assert hash64(0, "document", 3) == 3958869411349179091
