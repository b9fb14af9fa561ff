"""Unspeakable text is found in prose, and prose is left alone."""

# ruff: noqa: RUF001 - signs in formulas

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.interleave.speakable import unspeakable
from weft.text.segment import word_ends

PIECES = {
    "```python\ndef f(x):\n    return x\n```": "code",
    "~~~\nany thing\n~~~": "code",
    "`len(x)`": "code",
    "def is_prime(n):\n      if n == 1:\n           return False\n      return True": "code",
    "import os\nfrom re import sub\n\nx = sub('a', 'b', y)\nprint(x)": "code",
    "public class Solution {\n    public int f(int n) {\n        return n;\n    }\n}": "code",
    "SELECT name FROM people WHERE age > 5 ORDER BY name;": "code",
    "var d = new Date();\nconsole.log(d);": "code",
    "snake_case_name": "code",
    "Item | Price\n--- | ---\nShirt | $10": "table",
    "|1|2|\n|3|4|": "table",
    "name\tage\tcity\nAnn\t30\tBonn": "table",
    "<table><tr><td>one two</td></tr></table>": "table",
    "<b>": "markup",
    "<!DOCTYPE html>": "markup",
    "<!-- a note -->": "markup",
    "&nbsp;": "markup",
    "$E = mc^2$": "formula",
    "$$\\frac{a}{b} = c$$": "formula",
    "\\begin{equation}\na = b\n\\end{equation}": "formula",
    "\\(a_1 + b\\)": "formula",
    "\\[ x [1] = 3 \\]": "formula",
    "f(x) = 4x^3 - 9x - 14": "formula",
    "(k + 1)^2 ≥ 0": "formula",
    "x>12": "formula",
    "6.02e23": "formula",
    "6.02 × 10^23": "formula",
    "1.5E-9": "formula",
    "10⁻³": "formula",
    "https://a.org/b?c=d&e=f": "address",
    "www.example.org": "address",
    "merriam-webster.com": "address",
    "ann.b+c@mail.example.org": "address",
    "/usr/local/bin": "address",
    "C:\\Users\\ann": "address",
    "src/weft/cli.py": "address",
    "* * * * *": "symbols",
    "=======": "symbols",
    "->": "symbols",
    "@-@": "symbols",
    "9e107d9d372bb6826bd81d3542a419d6": "hash",
    "550e8400-e29b-41d4-a716-446655440000": "hash",
    "QWxhZGRpbjpvcGVuIHNlc2FtZQ1a2B3c4D": "hash",
    "x" * 90: "hash",
}
PROSE = [
    "It cost $5 million (or $6 in all), and 3% more; he/she paid 24/7 on 12/05/2011.",
    "“Well....” he said--and went; the U.S. and AT&T (as ever) won 3-0, 10:30 p.m.!",
    "He wrote _me_ a **very** long letter -- “`Tis,” I said, `and so' on.",
    "    A quatrain of four lines;\n    it goes (as others do);\n    indented, and it ends;",
    "if (as he thought) it was so, return to him\nwith her father, class of 1900:\nimport duties rose.",
    "Ünïcödé naïve café, 中文。 ไทย हिन्दी עברית العربية and state-of-the-art e-mail.",
    "The 1st, 2nd and 3D films of the 1990s; R2-D2 and C-3PO, 10km away, B2B.",
    "Pros & cons: #1 is w/o cost, 1/2 a cup + 3 eggs, 50 * 2, <3.",
    "Mr.  Smith  said.  And  then  it  was  over.",
]


def kinds(text):
    return [(text[u.start : u.stop], u.kind) for u in unspeakable(text, word_ends(text))]


@pytest.mark.parametrize(("piece", "kind"), PIECES.items())
def test_unspeakable_text_is_found_in_prose(piece, kind):
    glue = "\n" if "\n" in piece or piece.startswith("SELECT") else " "
    assert kinds(f"You will see this here:{glue}{piece}{glue}and then no more of it.") == [(piece, kind)]


def test_an_address_ends_before_letters_of_a_script_without_spaces():
    assert kinds("请看https://a.org/b吧。ดูที่www.a.orgนะ") == [("https://a.org/b", "address"), ("www.a.org", "address")]


def test_marks_of_headings_list_items_and_quotations_are_not_spoken():
    text = "# One\n\n## Two # three\n- four - five\n* six\n+ seven\n> eight\n1. nine"
    found = [(text[u.start : u.stop], u.kind) for u in unspeakable(text, word_ends(text))]
    assert found == [(mark, "markup") for mark in ("#", "##", "-", "*", "+", ">")]


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_speakable(text):
    assert kinds(text) == []


ANY = st.sampled_from([*PIECES, "word ", "\n", "\n\n", " ", "```\n", "$", "|", "<", "`", "é\0", "中"])


@given(st.one_of(st.text(), st.lists(ANY, max_size=12).map("".join)))
def test_ranges_are_in_order_without_overlap_and_without_white_space_at_the_ends(text):
    found = unspeakable(text, word_ends(text))
    last = 0
    for u in found:
        assert last <= u.start < u.stop <= len(text)
        assert text[u.start : u.stop].strip() == text[u.start : u.stop]
        last = u.stop
