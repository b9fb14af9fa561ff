"""The WER filter, with a synthesizer that returns the characters of given transcripts as codes."""

import pytest

from weft.text.error_rate import Errors
from weft.text_to_token.wer_filter import synthesize, transcribed_error_rate


class Scripted:
    """A synthesizer of `transcripts[text, seed]`. None is speech without an end."""

    language = "nl"

    def __init__(self, transcripts):
        self.transcripts, self.calls = transcripts, []

    def synthesize(self, texts, seeds, speakers):
        self.calls.append(list(zip(texts, seeds, strict=True)))
        found = [self.transcripts[pair] for pair in zip(texts, seeds, strict=True)]
        return [None if text is None else [ord(c) for c in text] for text in found]

    def normalize(self, text):
        return text.replace("13", "thirteen")

    def problem_of(self, text, speaker):
        return "too_long" if len(text) > 100 else None


class Transcriber:
    def transcribe(self, codes, languages):
        assert languages == ["nl"] * len(codes)
        return ["".join(map(chr, row)) for row in codes]


def test_a_text_is_synthesized_again_until_it_passes():
    good, bad = "one two three four", "one two tree for"
    transcripts = {("one two three four", seed): text for seed, text in enumerate((None, bad, "", good, good))}
    synthesizer = Scripted(transcripts | {("all well", seed): "all well" for seed in range(5)})
    seeds = [[seed, seed] for seed in range(5)]
    hard, easy = synthesize(synthesizer, ["one two three four", "all well"], seeds, Transcriber(), max_wer=0.25)
    assert (hard.num_attempts, easy.num_attempts) == (4, 1)
    assert [chr(c) for c in hard.kept.codes] == [*good]
    assert hard.kept.errors == Errors(0, 4, False)
    assert hard.first.errors == Errors(2, 4, False)
    assert easy.kept is easy.first
    assert [len(call) for call in synthesizer.calls] == [2, 1, 1, 1]


def test_a_text_keeps_its_speaker_when_it_is_synthesized_again():
    class Speakers(Scripted):
        def synthesize(self, texts, seeds, speakers):
            self.calls.append(speakers)
            return [None if seed == 0 else [1] for seed in seeds]

    synthesizer = Speakers({})
    synthesize(synthesizer, ["a", "b", "c"], [[1, 0, 0], [1, 1, 1]], speakers=["x", "y", "z"])
    assert synthesizer.calls == [["x", "y", "z"], ["y", "z"]]


def test_a_text_that_never_passes_is_not_kept():
    transcripts = {("one two", 0): None, ("one two", 1): "won too", ("one two", 2): "one too"}
    [outcome] = synthesize(Scripted(transcripts), ["one two"], [[0], [1], [2]], Transcriber(), max_wer=0.4)
    assert (outcome.kept, outcome.num_attempts) == (None, 3)
    assert outcome.first.errors.rate == 1.0
    [outcome] = synthesize(Scripted(transcripts), ["one two"], [[0], [1], [2]], Transcriber(), max_wer=0.5)
    assert outcome.kept.errors.rate == 0.5


def test_a_rejected_text_has_a_reason():
    long = "one two " * 20
    transcripts = {("never", 0): None, ("wrong", 0): "right", (long, 0): None, ("fine", 0): "fine"}
    texts = ["never", "wrong", long, "fine"]
    outcomes = synthesize(Scripted(transcripts), texts, [[0] * 4], Transcriber(), max_wer=0.4)
    assert [outcome.rejection for outcome in outcomes] == ["no_end", "above_max_wer", "too_long", None]


def test_without_max_wer_the_first_codes_are_kept():
    transcripts = {("one two", 0): None, ("one two", 1): "won too"}
    [measured] = synthesize(Scripted(transcripts), ["one two"], [[0], [1]], Transcriber())
    assert measured.kept is measured.first
    assert measured.kept.errors.rate == 1.0
    [unmeasured] = synthesize(Scripted(transcripts), ["one two"], [[0], [1]])
    assert (unmeasured.kept.codes, unmeasured.kept.errors) == (measured.kept.codes, None)
    assert synthesize(Scripted({}), [], [[], []], Transcriber()) == []


@pytest.mark.parametrize(
    ("text", "transcript", "errors"),
    [
        ("Don't (he said) go!", "don't he said go", Errors(0, 5, False)),
        ("北京很大。", "北京 很小", Errors(1, 4, True)),
        ("ภาษาไทย", "ภาษาไท", Errors(1, 7, True)),
        ("한국어 텍스트", "한국어", Errors(1, 2, False)),
        ("%&", "per cent and", None),
        ("13 mats", "thirteen mats", Errors(0, 2, False)),
        ("thirteen mats", "13 mats", Errors(0, 2, False)),
    ],
)
def test_errors_are_in_words_or_in_characters_of_scripts_without_spaces(text, transcript, errors):
    [outcome] = synthesize(Scripted({(text, 0): transcript}), [text], [[0]], Transcriber(), max_wer=1.0)
    assert outcome.kept.errors == errors


def test_missing_codes_count_as_deleted_words():
    error = transcribed_error_rate(
        Transcriber(), [[ord(c) for c in "a red dog"], None], ["A red dog.", "to me"], ["nl"] * 2
    )
    assert (error.rate, error.num_units) == (2 / 5, 5)
    assert transcribed_error_rate(Transcriber(), [None], ["to me"], ["nl"]).rate == 1
