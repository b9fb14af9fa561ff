"""Upper-case transcripts in sentence case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.text.normalize import comparison_form
from weft.text.recase import recased

LANGUAGES = [None, "en", "en-GB", "English", "de", "tr", "az_AZ"]
TEXTS = st.one_of(st.text(max_size=12), st.text("AI'’.- ßẞİıΣÉǄⅧº中ა1", max_size=12), st.text("IM'. ", max_size=8))  # noqa: RUF001


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("I THINK THAT I'M LATE AND I'LL RUN", None, "I think that I'm late and I'll run"),
        ("'TIS ALL, SAID I: I, I.E. DON'T I", "en-US", "'Tis all, said I: I, i.e. don't I"),
        ("JUST SO’N’I", "English", "Just so’n’i"),  # noqa: RUF001
        ("IO E I RAGAZZI", "it", "Io e i ragazzi"),
        ("DIE STRAẞE ÜBER MÜNCHEN", "de", "Die straße über münchen"),
        ("ΤΗΣ ΟΔΥΣΣΕΙΑΣ", "el", "Της οδυσσειας"),
        ("İZMİR ILIK", "tr", "İzmir \u0131l\u0131k"),
        ("24 HOURS", "en", "24 Hours"),
        ("ZOË", "en", "Zoë"),
    ],
)
def test_an_upper_case_text_becomes_sentence_case(text: str, language: str | None, expected: str) -> None:
    assert recased(text, language) == expected


@pytest.mark.parametrize("text", ["", "12 %", "The BBC", "mcDONALD", "中文 USB", "ქართული A", "אבג DVD", "日本"])
def test_texts_with_lower_case_or_uncased_letters_stay_as_they_are(text: str) -> None:
    assert all(recased(text, language) == text for language in LANGUAGES)


@given(TEXTS, st.sampled_from(LANGUAGES))
def test_recasing_again_changes_nothing(text: str, language: str | None) -> None:
    once = recased(text.upper(), language)
    assert recased(once, language) == once


@given(TEXTS, st.sampled_from([language for language in LANGUAGES if language not in ("tr", "az_AZ")]))
def test_the_form_in_which_words_are_compared_does_not_change(text: str, language: str | None) -> None:
    for original in (text, text.upper()):
        assert comparison_form(recased(original, language)) == comparison_form(original)
        assert recased(original, language).lower() == original.lower()
