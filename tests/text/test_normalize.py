"""Normal forms of text, and numbers and abbreviations as words, with a fake num2words and the real one."""

import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.config import load_recipe
from weft.errors import UserError
from weft.text.normalize import comparison_form, label_form, spoken_form, text_normalizer
from weft.text_to_token.train import TextToTokenConfig


def tagged(number, lang, to="cardinal"):
    """Return a number with its kind, in place of words."""
    if lang not in ("en", "de"):
        raise NotImplementedError
    return f"{to[0]}<{number}>"


@pytest.fixture
def num2words(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", SimpleNamespace(num2words=tagged))


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "on the 3rd 1,250 came", "on the o<3> c<1250> came"),
        ("en", "3.5% of $1,000.25", "c<3.5> % of $ c<1000.25>"),
        ("en", "10:30, 1,2,3 and 10 000", "c<10> : c<30> , c<1> , c<2> , c<3> and c<10000>"),
        ("en", "mp3 x2", "mp c<3> x c<2>"),
        ("en", "007 or 1.05", "c<0> c<0> c<7> or c<1.05>"),
        ("en", "1234567890123456", " ".join(f"c<{d}>" for d in "1234567890123456")),
        ("en", "\u0663 cats, \uff11\u00a0\uff10\uff10\uff10 dogs", "c<3> cats, c<1000> dogs"),
        ("de", "1.250,5 am 3. Mai", "c<1250.5> am c<3> . Mai"),
        ("de", "die 3th 1,250", "die c<3> th c<1.250>"),
        ("en", "no numbers", "no numbers"),
    ],
)
def test_numbers_become_words(num2words, language, text, expected):
    assert text_normalizer("numbers", language)(text).split() == expected.split()


def test_no_digits_are_left(num2words):
    normalize = text_normalizer("numbers", "en")
    for text in ("1,23", "1,0000 5th", "2024-01-05", "1.2.3", "+44 20 7946 0958", "x\u00b2"):
        assert not re.search(r"\d", re.sub("<.*?>", "", normalize(text)))


def test_none_leaves_a_text_unchanged_without_num2words(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert text_normalizer("none", "xx")("1,250 \u00b2") == "1,250 \u00b2"
    with pytest.raises(UserError, match=r"needs num2words: pip install weft-speech\[numbers\]"):
        text_normalizer("numbers", "en")


def test_an_unsupported_language_is_rejected(num2words):
    with pytest.raises(UserError, match="num2words does not support 'xx'"):
        text_normalizer("numbers", "xx")


def test_numbers_become_the_words_of_num2words():
    pytest.importorskip("num2words")
    normalize = text_normalizer("numbers", "en")
    text = "On the 3rd, 1,250 of 3.5 came at 10:30."
    assert spoken_form(normalize(text)) == (
        "on the third one thousand two hundred and fifty of three point five came at ten thirty"
    )
    assert spoken_form(text_normalizer("numbers", "de")("1.250,5")) == "eintausendzweihundertfünfzig komma fünf"


ABBREVIATIONS = [
    ("Dr.", "Doctor"),
    ("U.S.", "United States"),
    ("U.S.A.", "America"),
    ("No.", "number"),
    ("km", "kilometres"),
    ("&", "and"),
    ("et al.", "and others"),
    ("gov't", "government"),
    ("24/7", "all 7 days"),
    ("\u0921\u0949.", "\u0921\u0949\u0915\u094d\u091f\u0930"),
    ("\u5317\u5927", "\u5317\u4eac\u5927\u5b66"),
    ("[sic]", ""),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Who's and Dr.'s", "Doctor Who's and Doctor's"),
        ("the U.S.A., the U.S. (U.S.)", "the America, the United States (United States)"),
        ("U.S.S.R. and E.U.S.", "U.S.S.R. and E.U.S."),
        ("No.5, No. 5, no. 5", "number 5, number 5, no. 5"),
        ("5km 5 \u339e km2 kmx xkm km.h", "5 kilometres 5 kilometres km2 kmx xkm km.h"),
        ("Smith & Co, AT&T", "Smith and Co, AT&T"),
        ("Lee et\n al. say", "Lee and others say"),
        ("the gov\u2019t [sic]", "the government"),
        ("24/7, 124/7, 1.24/7, 24/75", "all 7 days, 124/7, 1.24/7, 24/75"),
        ("\u0921\u0949. x", "\u0921\u0949\u0915\u094d\u091f\u0930 x"),
        ("\u5728\u5317\u5927\u8bfb", "\u5728\u5317\u4eac\u5927\u5b66\u8bfb"),
        ("3km\u5730", "3 kilometres\u5730"),
        ("nothing short", "nothing short"),
    ],
)
def test_abbreviations_are_expanded_where_they_are_whole_words(text, expected):
    expand = text_normalizer("none", "xx", ABBREVIATIONS)
    assert expand(text).split() == expected.split()
    assert text_normalizer("none", "xx", ABBREVIATIONS[::-1])(text) == expand(text)  # in any order


def test_abbreviations_are_pairs_in_a_recipe_and_on_the_command_line(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('out = "x"\ncodes = ["y"]\ntokenizer = "z"\nabbreviations = [["e.g.", "say"], ["-", "minus"]]')
    assert load_recipe(TextToTokenConfig, recipe).abbreviations == (("e.g.", "say"), ("-", "minus"))
    given = load_recipe(TextToTokenConfig, recipe, ["--abbreviations", "No.", "number", "et al.", "and others"])
    assert given.abbreviations == (("No.", "number"), ("et al.", "and others"))
    with pytest.raises(UserError, match="abbreviations"):
        load_recipe(TextToTokenConfig, recipe, ["--abbreviations", "No."])


@given(st.text(alphabet="aA.& 1'", max_size=12), st.text(alphabet="aA.& 1'", min_size=1, max_size=4))
def test_only_the_abbreviation_is_expanded_and_only_once(text, written):
    if not written.split():
        return
    expand = text_normalizer("none", "xx", [(written, f"<{written}>")])
    assert expand(f"- {written} -").split() == ["-", *f"<{written}>".split(), "-"]
    if "".join(written.split()) not in "".join(text.split()):
        assert expand(text) == text


def test_abbreviations_come_before_numbers(num2words):
    assert text_normalizer("numbers", "en", ABBREVIATIONS)("24/7, No.5").split() == [
        "all",
        "c<7>",
        "days,",
        "number",
        "c<5>",
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("Dr.", "Doctor"), (" ", "nobody")], "abbreviations contain an empty written form for 'nobody': give pairs"),
        ([("et  al.", "and others"), ("et al.", "and more")], "abbreviations contain 'et al.' twice: give it once"),
    ],
)
def test_empty_and_repeated_abbreviations_are_rejected(pairs, message):
    with pytest.raises(UserError, match=message):
        text_normalizer("none", "en", pairs)


def test_normalizing_twice_for_comparison_changes_nothing():
    for text in ("  Hello,   World! ", "naïve (aside) café", "ünïcode—dash", "13 mats"):
        assert comparison_form(comparison_form(text)) == comparison_form(text)


def test_labels_are_lower_case_words_with_apostrophes():
    assert label_form(["The cat's  3 hats!", "x_y — Où?", "..."]) == ["the cat's 3 hats", "xy où", ""]
