"""Which numbers are found in a text, with a stand-in for num2words; and what the real one makes of them."""

import re
import sys
from types import SimpleNamespace

import pytest

from weft.errors import UserError
from weft.text_to_token.model import spoken_form
from weft.text_to_token.normalize import normalizer


def named(number, lang, to="cardinal"):
    """Words that tell what num2words was asked for."""
    if lang not in ("en", "de"):
        raise NotImplementedError
    return f"{to[0]}<{number}>"


@pytest.fixture
def num2words(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", SimpleNamespace(num2words=named))


@pytest.mark.parametrize(
    ("language", "text", "said"),
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
def test_numbers_are_found(num2words, language, text, said):
    assert normalizer("numbers", language)(text).split() == said.split()


def test_what_is_normalized_has_no_digits_left(num2words):
    normalize = normalizer("numbers", "en")
    for text in ("1,23", "1,0000 5th", "2024-01-05", "1.2.3", "+44 20 7946 0958", "x\u00b2"):
        assert not re.search(r"\d", re.sub("<.*?>", "", normalize(text)))


def test_none_leaves_a_text_as_it_is_and_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert normalizer("none", "xx")("1,250 \u00b2") == "1,250 \u00b2"
    with pytest.raises(UserError, match=r"needs num2words: pip install weft-speech\[numbers\]"):
        normalizer("numbers", "en")


def test_an_unknown_language_is_refused(num2words):
    with pytest.raises(UserError, match="num2words knows no language 'xx'"):
        normalizer("numbers", "xx")


def test_the_real_one():
    pytest.importorskip("num2words")
    normalize = normalizer("numbers", "en")
    text = "On the 3rd, 1,250 of 3.5 came at 10:30."
    assert spoken_form(normalize(text)) == (
        "on the third one thousand two hundred and fifty of three point five came at ten thirty"
    )
    assert spoken_form(normalizer("numbers", "de")("1.250,5")) == "eintausendzweihundertfünfzig komma fünf"
