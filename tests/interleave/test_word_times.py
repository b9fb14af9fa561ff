"""Word times: every format gives the same words, whatever its encoding, and errors say what is wrong."""

import json

import pytest

from weft.errors import UserError
from weft.interleave.alignments import Alignments
from weft.interleave.word_times import TimedWord, ctm_word, json_word, words_of_text_grid
from weft.records import Utterance

WORDS = [TimedWord('a "café"', 0.0, 0.5), TimedWord("is", 0.75, 1.0), TimedWord("open", 1.0, 1.5)]
INTERVALS = [(0.0, 0.5, 'a "café"'), (0.5, 0.75, ""), (0.75, 1.0, "is"), (1.0, 1.5, "open"), (1.5, 2.0, "sil")]


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def short(tiers):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "2", "<exists>", str(len(tiers))]
    for kind, name, items in tiers:
        lines += [quoted(kind), quoted(name), "0", "2", str(len(items))]
        lines += [quoted(value) if isinstance(value, str) else str(value) for item in items for value in item]
    return "\n".join(lines)


def long(tiers):
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", "xmax = 2 ", "tiers? <exists> "]
    lines += [f"size = {len(tiers)} ", "item []: "]
    for number, (kind, name, items) in enumerate(tiers, 1):
        lines += [f"    item [{number}]:", f"        class = {quoted(kind)} ", f"        name = {quoted(name)} "]
        lines += ["        xmin = 0 ", "        xmax = 2 ", f"        intervals: size = {len(items)} "]
        for i, item in enumerate(items, 1):
            lines += [
                f"        intervals [{i}]:",
                *(f"            x = {v if not isinstance(v, str) else quoted(v)} " for v in item),
            ]
    return "\n".join(lines)


TIERS = [
    ("IntervalTier", "ann - words", INTERVALS),
    ("TextTier", "clicks", [(0.3, "here 1 2")]),
    ("IntervalTier", "ann - phones", [(0.0, 2.0, "K 3")]),
]


@pytest.mark.parametrize("form", [short, long])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_words_of_a_text_grid_are_those_of_its_word_tier(form, encoding):
    assert words_of_text_grid(form(TIERS).encode(encoding)) == WORDS
    assert words_of_text_grid(form([("IntervalTier", "any", INTERVALS)]).encode(encoding)) == WORDS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "it ends before its last tier"),
        (b'"ooTextFile" "TextGrid" 0 2 <exists> 1e999', "it ends before its last tier"),
        (b'"ooTextFile" "Pitch"', "it is not a TextGrid"),
        (short(TIERS)[:200].encode(), "it ends before its last tier|in place of a string"),
        (
            short([("IntervalTier", "a", []), ("IntervalTier", "b", [])]).encode(),
            "it has the tiers a, b: name",
        ),
        (short([]).encode(), "it has the tiers none"),
        (short(TIERS).encode("utf-16-be"), "not UTF-8"),
    ],
)
def test_other_contents_are_named(content, reason):
    with pytest.raises(ValueError, match=reason):
        words_of_text_grid(content)


def test_lines_of_ctm_may_have_comments_and_confidences():
    assert ctm_word(";; a comment") is None
    assert ctm_word("u1 1 0.75 0.25 is") == ("u1", TimedWord("is", 0.75, 1.0))
    assert ctm_word("u1 A 0.75 0.25 is 0.98 lex s1") == ("u1", TimedWord("is", 0.75, 1.0))
    for line in ("u1 1 0.75 is", "u1 1 * * <ALT_BEGIN>", ""):
        with pytest.raises(ValueError, match="it is not `recording channel start duration word`"):
            ctm_word(line)


def test_words_of_json_are_objects_or_rows():
    assert (
        json_word(["is", 0.75, 1]) == json_word({"word": "is", "start": 0.75, "end": 1}) == TimedWord("is", 0.75, 1.0)
    )
    assert json_word({"word": "is"}).text == "is"
    for value in ("is", ["is", 0.5], [5, 0.5, 1.0], {"start": 0.5}):
        with pytest.raises(ValueError, match="a word is not a string with its start and end"):
            json_word(value)
    with pytest.raises(ValueError, match="the time of word 'is' is '1': give seconds"):
        json_word(["is", "1", 2])
    with pytest.raises(ValueError, match="the time of word 'is' is 10000"):
        json_word(["is", 10**400, 2])


def test_all_formats_give_the_same_alignment(tmp_path):
    rows = [[word.text, word.start, word.end] for word in WORDS]
    (tmp_path / "words.jsonl").write_text(json.dumps({"id": "u1", "words": rows}) + "\n")
    lines = [f"u1 1 {w.start} {w.end - w.start} {w.text.replace(' ', '')} 0.9" for w in WORDS]
    (tmp_path / "words.ctm").write_text("\n".join([";; of u1", *lines, "u2 1 0.0 0.5 other"]))
    (tmp_path / "grids/deep").mkdir(parents=True)
    (tmp_path / "grids/deep/u1.TextGrid").write_text(long(TIERS))
    utterance = Utterance("u1", "u1.wav", 'A "café" is open.')
    found = [Alignments.of(tmp_path / name) for name in ("words.jsonl", "grids")]
    timed = [alignments.timed(utterance) for alignments in found]
    assert [t.ends.tolist() for t in timed] == [[8, 11, 17]] * 2
    assert [t.seconds.tolist() for t in timed] == [[[w.start, w.end] for w in WORDS]] * 2
    ctm = Alignments.of(tmp_path / "words.ctm")
    assert list(ctm.places) == ["u1", "u2"]
    assert ctm.timed(utterance).seconds.tolist() == timed[0].seconds.tolist()
    assert ctm.timed(Utterance("u2", "u2.wav")).text == "other"


def test_lines_of_one_recording_are_together(tmp_path):
    (tmp_path / "words.ctm").write_text("u1 1 0 1 a\nu2 1 0 1 b\nu1 1 1 1 c\n")
    with pytest.raises(UserError, match="line 3: id 'u1' occurs twice: make ids unique, with their words together"):
        Alignments.of(tmp_path / "words.ctm")
    with pytest.raises(UserError, match=r"has no word times: give a file or a directory of files, \.jsonl, \.ctm"):
        Alignments.of(tmp_path / "other.txt")
