import pytest

from weft.eval.match import has_answer, normalized


@pytest.mark.parametrize(
    ("text", "answer", "by_tokens", "by_words"),
    [
        ("It is Paris, I think.", "Paris", True, True),
        ("PARIS", "paris", True, True),
        ("Parisian", "Paris", False, False),
        ("the City of Light", "City of Light", True, True),
        ("City, of Light", "City of Light", False, True),  # punctuation is a token of the first rule only
        ("He has twenty five dogs", "25", False, True),
        ("25 dogs", "twenty five", False, True),
        ("Padme\u0301 Amidala", "Padm\u00e9 Amidala", True, True),
        ("Padme Amidala", "Padm\u00e9 Amidala", False, True),
        ("Beatles", "The Beatles", False, True),
        ("of Light City", "City of Light", False, False),
        ("", "Paris", False, False),
        ("Paris", "", False, False),
        ("Paris", "the", False, False),
        ("C# is it", "C#", True, True),
    ],
)
def test_an_answer_is_found_as_tokens_or_as_words(text: str, answer: str, by_tokens: bool, by_words: bool) -> None:
    assert has_answer(text, ["nothing", answer]) == by_tokens
    assert normalized(text, ["nothing", answer]) == by_words


def test_another_language_has_the_basic_normalizer() -> None:
    assert normalized("Es sind zwei K\u00f6nige!", ["Zwei K\u00f6nige"], language="de")
    assert not normalized("twenty five", ["25"], language="de")
