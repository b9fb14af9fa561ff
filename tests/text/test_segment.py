"""Segmentation into sentences and words, in many scripts."""

# ruff: noqa: RUF001, SIM905
import sys
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from weft.text import segment
from weft.text.segment import num_words, sentence_ends, sentences_of, word_ends

WHOLE = [  # single sentences
    "Mr. J. K. Smith and Mrs. A. B. Jones met Dr. Brown.",
    "The train leaves at 5 p.m. from platform No. 5.",
    "Some animals, e.g. cats, i.e. pets, sleep.",
    "The U.S. Army and Acme Inc. Chairman Bob agreed.",
    "See Fig. 3 and pp. 12 of Vol. II, cf. Knuth.",
    "It weighs 3.5 kg and costs $1,000.50.",
    '"Is it on?" she asked.',
    '"Stop!" he cried.',
    "Wait... what is that?",
    "He was born on Jan. 5 in St. Petersburg.",
    "He arrived.[12]",
    "She said (and I quote) “No.”",
    "Am 3. Mai kam Hr. Meyer, z. B. mit Frl. Schmidt.",
    "Mme. Dupont et M. Martin sont partis.",
    "Vive Gen. Foch!",
    "El Sr. García y la Sra. López llegaron.",
    "В 1999 г. Иванов приехал в г. Москва.",
    "Он жил на ул. Ленина.",
    "これはペンです。",
    "真的！",
    "यह एक वाक्य है।",
    "هل هذا كتاب؟",
    "ეს წინადადებაა.",
    "នេះជាប្រយោគ។",
]


@pytest.mark.parametrize("sentence", WHOLE)
@pytest.mark.parametrize("following", ["The next one came.", "Then 5 men left!", "“Who is it?”"])
def test_abbreviations_initials_and_numbers_do_not_end_sentences(sentence, following):
    assert sentences_of(f"{sentence} {following}\n") == [sentence, following]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("They met at 5 p.m. The sun set.", ["They met at 5 p.m.", "The sun set."]),
        ("He likes cats, dogs, etc. They like him.", ["He likes cats, dogs, etc.", "They like him."]),
        ("No. I will not.", ["No.", "I will not."]),
        ("Take vitamin C. The rest is luck.", ["Take vitamin C.", "The rest is luck."]),
        ("1. Open it.\n2. Close it.", ["1. Open it.", "2. Close it."]),
        ("It was in 1999. We left.", ["It was in 1999.", "We left."]),
        ("A title\n\nIts text, Mr.\n\nX", ["A title", "Its text, Mr.", "X"]),
        ("A title\r\n\r\nIts text.", ["A title", "Its text."]),
        ("It ended . Then it began . . . again .", ["It ended .", "Then it began . . . again ."]),
        ("“It is [ ... ] a word.” So!", ["“It is [ ... ] a word.”", "So!"]),
        ("好。坏！", ["好。", "坏！"]),
        (" \n ", []),
    ],
)
def test_sentences_end_as_readers_expect(text, found):
    assert sentences_of(text) == found


@given(st.text(st.sampled_from("aB .!?\n\r\t。”\"'1…\u0301😀"), max_size=60))
def test_sentence_ends_ascend_and_follow_characters(text):
    ends = list(sentence_ends(text))
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) and not text[end - 1].isspace() for end in ends)
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())


SENTENCES = {
    "thai": "ฉันชอบกินข้าวผัดกับเพื่อนที่ร้านอาหารใกล้บ้าน",
    "lao": "ຂ້ອຍມັກກິນເຂົ້າຜັດກັບໝູ່ຢູ່ຮ້ານອາຫານ",
    "khmer": "ខ្ញុំចូលចិត្តញ៉ាំបាយឆានៅភោជនីយដ្ឋាន។",
    "burmese": "ကျွန်တော်ထမင်းကြော်စားရတာကြိုက်တယ်။",
}
PIECES = """a 1 22 333 e\u0301 か\u3099 👨‍👩‍👧 🇫🇷 葛\U000e0100 שָׁ مَ ที่ เ ၊ 中 。 ( +""".split()
ODD = st.lists(st.sampled_from([*PIECES, " ", "\u00a0", "\n", "\r\n", "\0"]), max_size=40).map("".join)


def words_of(text):
    ends = word_ends(text).tolist()
    return [text[a:b].strip() for a, b in pairwise([0, *ends])]


@given(ODD)
def test_no_word_ends_inside_a_grapheme(text):
    clusters = {found.end() for found in regex.finditer(r"\X", text)}
    ends = word_ends(text).tolist()
    assert ends == sorted(set(ends))
    assert all(end in clusters or text[end].isspace() for end in ends)
    assert "".join("".join(words_of(text)).split()) == "".join(text.split())


@given(st.text())
def test_words_contain_everything_but_white_space(text):
    ends = word_ends(text).tolist()
    assert not text[ends[-1] if ends else 0 :].strip()
    assert all(words_of(text))


@pytest.mark.parametrize(
    "word",
    ["10 000", "$1 234 567.89", "+1 555 123 4567", "(555) 123-4567", "a1 234", "x", "1999", "e.g.", "三百五十", "好，"],
)
def test_numbers_are_one_word(word):
    assert words_of(f"an {word} it") == ["an", word, "it"]


def test_adjacent_numbers_are_separate_words():
    text = "in 1999 2000 and 10 0000 men"
    assert words_of(text) == text.split()


@pytest.mark.parametrize("language", SENTENCES)
def test_scripts_without_spaces_are_split_between_graphemes(language, monkeypatch):
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    segment._segmenter.cache_clear()
    try:
        assert segment.segmenter() == "grapheme clusters"
        text = SENTENCES[language] * 3 + " 2 000"
        ends = word_ends(text)
        clusters = {found.end() for found in regex.finditer(r"\X", text)}
        assert num_words(text) > 20
        assert set(ends.tolist()) <= clusters
        assert not {text[end] for end in ends[:-2]} & set("။។")
        assert not any(text[end - 1] in "เໂ" for end in ends.tolist())
    finally:
        segment._segmenter.cache_clear()


@pytest.mark.parametrize("language", SENTENCES)
def test_icu_finds_words_of_scripts_without_spaces(language):
    pytest.importorskip("icu4py")
    assert segment.segmenter() == "icu"
    text = SENTENCES[language]
    assert 4 <= num_words(text) <= len(text) / 2


def test_a_long_text_is_counted_across_chunks():
    text = "ab  cd\n" * 400_000
    ends = word_ends(text)
    np.testing.assert_array_equal(ends[:4], [2, 6, 9, 13])
    assert len(ends) == 800_000
    assert ends[-1] == len(text) - 1
