# ruff: noqa: RUF001
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.sentences import sentence_ends, sentences_of

WHOLE = [  # each is one sentence, and followed by another
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
def test_abbreviations_initials_and_numbers_end_no_sentence(sentence, following):
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
def test_where_sentences_end(text, found):
    assert sentences_of(text) == found


@given(st.text(st.sampled_from("aB .!?\n\r\t。”\"'1…\u0301😀"), max_size=60))
def test_ends_are_apart_and_behind_a_character(text):
    ends = list(sentence_ends(text))
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) and not text[end - 1].isspace() for end in ends)
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())
