"""The gate, with a speaker that says what it is told to and a reader that hears exactly that."""

import pytest

from weft.text_to_token.gate import SpanErrors, say


class Speaker:
    """Says the transcript that stands under (text, seed); None is a run-away."""

    def __init__(self, heard):
        self.heard, self.asked = heard, []

    def speak(self, texts, seeds, speakers):
        self.asked.append(list(zip(texts, seeds, strict=True)))
        said = [self.heard[pair] for pair in zip(texts, seeds, strict=True)]
        return [None if text is None else [ord(c) for c in text] for text in said]

    def normalize(self, text):
        return text.replace("13", "thirteen")


class Reader:
    def transcribe(self, codes):
        return ["".join(map(chr, row)) for row in codes]


def test_a_text_is_said_again_until_it_reads_back():
    good, bad = "one two three four", "one two tree for"
    heard = {("one two three four", seed): text for seed, text in enumerate((None, bad, "", good, good))}
    speaker = Speaker(heard | {("all well", seed): "all well" for seed in range(5)})
    seeds = [[seed, seed] for seed in range(5)]
    hard, easy = say(speaker, ["one two three four", "all well"], seeds, Reader(), max_wer=0.25)
    assert (hard.num_tries, easy.num_tries) == (4, 1)
    assert [chr(c) for c in hard.kept.codes] == [*good]
    assert hard.kept.errors == SpanErrors(0, 4, False)
    assert hard.first.errors == SpanErrors(2, 4, False)
    assert easy.kept is easy.first
    assert [len(asked) for asked in speaker.asked] == [2, 1, 1, 1]


def test_a_text_is_said_again_by_its_own_speaker():
    class Choir(Speaker):
        def speak(self, texts, seeds, speakers):
            self.asked.append(speakers)
            return [None if seed == 0 else [1] for seed in seeds]

    choir = Choir({})
    say(choir, ["a", "b", "c"], [[1, 0, 0], [1, 1, 1]], speakers=["x", "y", "z"])
    assert choir.asked == [["x", "y", "z"], ["y", "z"]]


def test_what_never_reads_back_is_not_kept():
    heard = {("one two", 0): None, ("one two", 1): "won too", ("one two", 2): "one too"}
    [outcome] = say(Speaker(heard), ["one two"], [[0], [1], [2]], Reader(), max_wer=0.4)
    assert (outcome.kept, outcome.num_tries) == (None, 3)
    assert outcome.first.errors.rate == 1.0
    [outcome] = say(Speaker(heard), ["one two"], [[0], [1], [2]], Reader(), max_wer=0.5)
    assert outcome.kept.errors.rate == 0.5


def test_without_a_threshold_the_first_codes_are_kept():
    heard = {("one two", 0): None, ("one two", 1): "won too"}
    [measured] = say(Speaker(heard), ["one two"], [[0], [1]], Reader())
    assert measured.kept is measured.first
    assert measured.kept.errors.rate == 1.0
    [plain] = say(Speaker(heard), ["one two"], [[0], [1]])
    assert (plain.kept.codes, plain.kept.errors) == (measured.kept.codes, None)
    assert say(Speaker({}), [], [[], []], Reader()) == []


@pytest.mark.parametrize(
    ("text", "heard", "errors"),
    [
        ("Don't (he said) go!", "don't he said go", SpanErrors(0, 5, False)),
        ("北京很大。", "北京 很小", SpanErrors(1, 4, True)),
        ("ภาษาไทย", "ภาษาไท", SpanErrors(1, 7, True)),
        ("한국어 텍스트", "한국어", SpanErrors(1, 2, False)),
        ("%&", "per cent and", None),
        ("13 mats", "thirteen mats", SpanErrors(0, 2, False)),
        ("thirteen mats", "13 mats", SpanErrors(0, 2, False)),
    ],
)
def test_errors_are_of_words_or_where_there_are_no_spaces_of_characters(text, heard, errors):
    [outcome] = say(Speaker({(text, 0): heard}), [text], [[0]], Reader(), max_wer=1.0)
    assert outcome.kept.errors == errors
