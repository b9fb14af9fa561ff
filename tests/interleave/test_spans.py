import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.spans import alternate, choose, draw, hash64, place
from weft.interleave.words import num_words

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
    parts = draw(text, ratio, mean, rng(seed), policy).parts
    assert "".join(part.text for part in parts) == text
    assert sum(part.num_words for part in parts) == num_words(text)
    assert all(part.num_words for part in parts if part.spoken)
    assert not any(not a.spoken and not b.spoken for a, b in pairwise(parts))


@given(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=60), RATIOS, MEANS, st.integers(0, 99))
def test_cuts_fall_before_spaces_and_never_inside_numbers_or_urls(words, ratio, mean, seed):
    text = " " + "\u3000".join(words)
    allowed = set(np.cumsum([len(word) + 1 for word in words]).tolist())
    assert set(cuts(draw(text, ratio, mean, rng(seed)).parts)) <= allowed


# What was drawn (words of written parts, negative, and of spoken ones) before anything was left as text: seeds keep.
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
def test_draws_of_plain_text_stay_as_they_were(number):
    text, lengths = STABLE[number]
    drawn = draw(text, 0.3, 5, rng(7, f"d{number}"))
    assert [part.num_words if part.spoken else -part.num_words for part in drawn.parts] == lengths
    assert drawn.unspeakable_words == {}


@given(TEXTS, RATIOS, MEANS, st.integers(0, 99), st.sampled_from(POLICIES))
def test_what_cannot_be_spoken_never_is(text, ratio, mean, seed, policy):
    drawn = draw(text, ratio, mean, rng(seed), policy)
    spoken = [part for part in drawn.parts if part.spoken]
    assert not any(sign in part.text for part in spoken for sign in ("://", "```", "x = 1", "|"))
    num_free = num_words(text) - sum(drawn.unspeakable_words.values())
    assert sum(part.num_words for part in spoken) <= num_free
    if ratio == 1.0 and not drawn.left_whole:
        assert sum(part.num_words for part in spoken) == num_free


@pytest.mark.parametrize("policy", POLICIES)
def test_the_share_is_of_all_words_as_far_as_they_can_be_spoken(policy):
    text = "```\n" + "x = y\n" * 20 + "```\n\n" + "One two three four five six. " * 15  # 62 and 90 words
    for ratio, share in ((0.3, 0.3), (0.8, 90 / 152)):
        draws = [draw(text, ratio, 4, rng(i), policy) for i in range(200)]
        spoken = [sum(p.num_words for p in d.parts if p.spoken) / 152 for d in draws]
        assert np.mean(spoken) == pytest.approx(share, abs=0.005)
    assert draws[0].unspeakable_words == {"code": 62}


def test_a_document_of_which_hardly_anything_can_be_spoken_stays_whole():
    code = "```\n" + "x = y\n" * 200 + "```\n\n"
    drawn = draw(code + "That was it, my friend.", 0.3, 4, rng(0))
    assert drawn.left_whole
    assert [part.spoken for part in drawn.parts] == [False]
    assert not draw(code + "That was it, my friend. " * 60, 0.3, 4, rng(0)).left_whole
    assert not draw("", 0.3, 4, rng(0)).left_whole


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_sentences", [1, 2, 5, 40])
def test_no_policy_is_biased_on_short_documents(policy, num_sentences):
    text = "Now six words are in here. And four in this. " * num_sentences
    counts = np.zeros(10 * num_sentences)
    for i in range(1500):
        done = 0
        for part in draw(text, 0.3, 5, rng(policy, i), policy).parts:
            counts[done : done + part.num_words] += part.spoken / 1500
            done += part.num_words
    assert counts.mean() == pytest.approx(0.3, abs=0.02)
    if policy != "poisson":  # whose spans are uniform in their placements, and so rarer at the edges
        assert counts.min() > 0.22
        assert counts.max() < 0.38


def test_sentences_are_spoken_whole():
    text = "Mr. J. Smith has come. Is it 5 p.m.? Yes.\n\nThen I say, e.g., this. " * 20
    whole = {"Mr. J. Smith has come.", "Is it 5 p.m.?", "Yes.", "Then I say, e.g., this."}
    parts = draw(text, 0.4, 10, rng(0), "sentences").parts
    assert {part.text.strip() for part in parts if part.spoken} == whole
    assert abs(sum(part.num_words for part in parts if part.spoken) - 0.4 * num_words(text)) < 5


@given(st.lists(st.integers(1, 40), max_size=50), st.floats(0, 1), st.integers(0, 99))
def test_units_are_chosen_to_the_share_within_one(lengths, ratio, seed):
    stops = np.cumsum([0, *lengths]).tolist()
    units = list(pairwise(stops))
    chosen = choose(units, ratio * stops[-1], rng(seed))
    assert chosen == sorted(set(chosen))
    assert abs(sum(b - a for a, b in chosen) - ratio * stops[-1]) < max(lengths, default=1)


@given(st.integers(0, 2000), st.floats(0.01, 0.99), MEANS, st.integers(0, 99))
def test_stretches_alternate_and_cover_the_share_exactly(num, ratio, mean, seed):
    num_spoken = rounded(num, ratio, seed)
    spans = alternate(num, num_spoken, mean, rng(seed))
    assert sum(stop - start for start, stop in spans) == num_spoken
    assert all(start < stop for start, stop in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= num)


def test_written_and_spoken_stretches_are_regular():
    spans = alternate(200_000, 60_000, 10, rng(0))
    spoken = np.array([b - a for a, b in spans])
    written = np.array([b[0] - a[1] for a, b in pairwise(spans)])
    assert np.mean(spoken) == pytest.approx(10, abs=0.2)
    assert np.mean(written) == pytest.approx(23.3, abs=0.5)
    assert np.var(written) == pytest.approx(22.3, rel=0.1)  # Poisson; of spans placed anywhere it is 500


def test_long_texts_take_little_time_and_memory():
    text = "The quick brown fox, it is said, jumped over Mr. Dog on May 5. " * 20_000
    for policy in POLICIES:
        for long in (text, "x" * len(text)):
            tracemalloc.start()
            begun = time.process_time()
            draw(long, 0.3, 10, rng(0), policy)
            seconds, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert seconds < 10  # while memory is traced, which takes most of it
            assert peak < 20 * len(long)


@given(st.integers(0, 3000), st.floats(0.01, 0.99), MEANS, st.integers(0, 99))
def test_spans_are_in_order_apart_and_cover_the_share_to_the_word(num, ratio, mean, seed):
    num_spoken = rounded(num, ratio, seed)
    spans = place(num, num_spoken, mean, rng(seed))
    assert all(start < stop for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0] >= 0 and spans[-1][1] <= num)
    covered = sum(stop - start for start, stop in spans)
    assert covered == num_spoken
    if num - covered >= len(spans) - 1:
        assert all(a[1] < b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("num", [1, 3, 10, 30, 50, 57, 200, 1000])
def test_the_share_does_not_overshoot_on_short_documents(num):
    text = "a " * num
    draws = [draw(text, 0.3, 10, rng("d", num, i)).parts for i in range(1000)]
    shares = [sum(part.num_words for part in parts if part.spoken) / num for parts in draws]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.05 if num < 10 else 0.005)
    if num >= 50:
        assert min(shares) >= 0.28
        assert max(shares) <= 0.32


def test_span_lengths_are_poisson():
    lengths = [b - a for i in range(200) for a, b in place(2000, 600, 10, rng(i))]
    assert np.mean(lengths) == pytest.approx(10, abs=0.3)
    assert np.var(lengths) == pytest.approx(10, rel=0.15)


def test_the_whole_document_is_in_reach():
    covered = np.zeros(200)
    for i in range(3000):
        for start, stop in place(200, 60, 10, rng(i)):
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
    parts = draw(text, 1.0, 10, rng(0)).parts
    assert all(part.spoken for part in parts)
    assert "".join(part.text for part in parts) == text
    assert [part.text.strip() for part in parts[:5]] == [
        "Hello there.", '"Is it on?" she said', "A title", "它很好。", "真的！",  # noqa: RUF001
    ]  # fmt: skip
    assert max(part.num_words for part in parts) == 30


def test_hash64_is_the_same_everywhere():
    assert hash64(0, "document", 3) == 3958869411349179091
