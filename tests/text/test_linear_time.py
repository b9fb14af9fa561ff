"""The time of every function that reads text is linear in its length, for any punctuation that is repeated.

The eightfold length needs about 8 times as long, and 64 times if the time is quadratic. Processor time is measured.
"""

import time

import pytest

from weft.errors import without_secrets
from weft.eval.words import words_of
from weft.interleave.speakable import unspeakable
from weft.text.normalize import comparison_form, label_form, spoken_form, text_normalizer
from weft.text.segment import sentences_of, word_ends

FUNCTIONS = {
    "sentences": sentences_of,
    "words": word_ends,
    "abbreviations": text_normalizer("none", "en", [("Dr.", "Doctor"), ("U. S.", "US"), ("a b c", "x")]),
    "spoken form": spoken_form,
    "comparison form": comparison_form,
    "label form": lambda text: label_form([text]),
    "words of an evaluation": lambda text: words_of(text, str.lower),
    "speakable": lambda text: unspeakable(text, word_ends(text)),
    "secrets": without_secrets,
}
REPEATED = [
    "!", "!\"", "! ", "؟ ", "।", "。 ", "... ", "\n \n", "a.", "A. ", "Dr. ", "U. ", "0[", "0(", "0<", "<", "[a",
    "1 ", "1 000 ", " 000", "+1 1", "1,", "a b ", "a  ", "`", "```\n", "~~~\n", "<a", "<!--", "<pre>", "&amp", "|a",
    "   a", "x=", "= ", "$", "$a", "\\[", "\\(", "\\begin{math}", "http://", "://", "a@", "a.com/", "/a", "_a", "a_",
    "()", "->", "- ", ". ", "a" * 64 + " ", "ก", "一", "เ ", "{\n", "if (", "def f(\n", "import a, ",
    "\u0300", "0x", "\t", "(a)", "|", "a   ", "a|b\n", "<code>", "{", "\\begin{align}", "1a", "x(", "import a\n",
    "# c\n", "$$a", "_", "-", "a=", "&a", " = = =", "a = ", "a = b ", "a <b ", "x" * 130 + "=",
]  # fmt: skip


def seconds(function, text):
    start = time.process_time()
    function(text)
    return time.process_time() - start


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_time_is_linear_in_the_length_of_the_text(name):
    for unit in REPEATED:
        short, long = (unit * (n // len(unit)) + "1" for n in (1000, 8000))
        for _ in range(3):  # the machine may be busy
            needed = seconds(FUNCTIONS[name], long)
            if needed < 0.03 or needed < 24 * seconds(FUNCTIONS[name], short):
                break
        else:
            pytest.fail(f"{name} needs {needed:.2f} s for 8000 characters of {unit!r}")
