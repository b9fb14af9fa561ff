# ruff: noqa: RUF001, SIM905
import sys

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave import words
from weft.interleave.words import num_words, word_ends

SENTENCES = {
    "thai": "ฉันชอบกินข้าวผัดกับเพื่อนที่ร้านอาหารใกล้บ้าน",
    "lao": "ຂ້ອຍມັກກິນເຂົ້າຜັດກັບໝູ່ຢູ່ຮ້ານອາຫານ",
    "khmer": "ខ្ញុំចូលចិត្តញ៉ាំបាយឆានៅភោជនីយដ្ឋាន។",
    "burmese": "ကျွန်တော်ထမင်းကြော်စားရတာကြိုက်တယ်။",
}
PIECES = """a 1 22 333 e\u0301 か\u3099 👨‍👩‍👧 🇫🇷 葛\U000e0100 שָׁ مَ ที่ เ ၊ 中 。 ( +""".split()
ODD = st.lists(st.sampled_from([*PIECES, " ", "\u00a0", "\n", "\r\n", "\0"]), max_size=40).map("".join)


def texts(ends, text):
    return [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]


@given(ODD)
def test_no_word_ends_inside_a_grapheme(text):
    clusters = {found.end() for found in regex.finditer(r"\X", text)}
    ends = word_ends(text).tolist()
    assert ends == sorted(set(ends))
    assert all(end in clusters or text[end].isspace() for end in ends)
    assert "".join("".join(texts(ends, text)).split()) == "".join(text.split())


@given(st.text())
def test_words_leave_out_nothing_but_white_space(text):
    ends = word_ends(text).tolist()
    assert not text[ends[-1] if ends else 0 :].strip()
    assert all(word for word in texts(ends, text))


@pytest.mark.parametrize(
    "word",
    ["10 000", "$1 234 567.89", "+1 555 123 4567", "(555) 123-4567", "a1 234", "x", "1999", "e.g.", "三百五十", "好，"],
)
def test_numbers_are_one_word(word):
    assert texts(word_ends(f"an {word} it"), f"an {word} it") == ["an", word, "it"]


def test_numbers_side_by_side_are_two():
    text = "in 1999 2000 and 10 0000 men"
    assert texts(word_ends(text), text) == text.split()


@pytest.mark.parametrize("language", SENTENCES)
def test_scripts_without_spaces_are_cut_between_graphemes(language, monkeypatch):
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    words._segmenter.cache_clear()
    try:
        assert words.segmenter() == "grapheme clusters"
        text = SENTENCES[language] * 3 + " 2 000"
        ends = word_ends(text)
        clusters = {found.end() for found in regex.finditer(r"\X", text)}
        assert num_words(text) > 20
        assert set(ends.tolist()) <= clusters
        assert not {text[end] for end in ends[:-2]} & set("။។")
        assert not any(text[end - 1] in "เໂ" for end in ends.tolist())
    finally:
        words._segmenter.cache_clear()


@pytest.mark.parametrize("language", SENTENCES)
def test_icu_finds_words_of_scripts_without_spaces(language):
    pytest.importorskip("icu4py")
    assert words.segmenter() == "icu"
    text = SENTENCES[language]
    assert 4 <= num_words(text) <= len(text) / 2


def test_a_long_text_is_counted_across_chunks():
    text = "ab  cd\n" * 400_000
    ends = word_ends(text)
    np.testing.assert_array_equal(ends[:4], [2, 6, 9, 13])
    assert len(ends) == 800_000
    assert ends[-1] == len(text) - 1
