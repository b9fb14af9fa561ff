"""Alternation of text and speech in training answers, and the schedule that sampling follows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.alternation import AUDIO_TOKENS, TEXT_TOKENS, ChunkSchedule, interleave_chunks

BEGIN, END, TURN_END = -1, -2, -3
lengths = st.integers(0, 120)


def answer(num_text, num_audio):
    return interleave_chunks(range(1000, 1000 + num_text), range(2000, 2000 + num_audio), BEGIN, END).tolist()


def test_thirteen_text_tokens_and_twenty_six_codes_alternate_and_the_rest_follows():
    ids = answer(31, 90)
    assert (TEXT_TOKENS, AUDIO_TOKENS) == (13, 26)
    text, audio = list(range(1000, 1031)), list(range(2000, 2090))
    assert ids == [*text[:13], *audio[:26], *text[13:26], *audio[26:52], *text[26:], BEGIN, *audio[52:], END]


def test_the_rest_of_the_text_follows_speech_that_ends_first():
    assert answer(17, 20) == [*range(1000, 1013), *range(2000, 2020), END, *range(1013, 1017)]


def test_a_short_text_is_followed_by_its_whole_speech():
    assert answer(12, 60) == [*range(1000, 1012), BEGIN, *range(2000, 2060), END]


@given(lengths, lengths)
def test_every_id_is_kept_in_the_order_of_its_modality(num_text, num_audio):
    ids = answer(num_text, num_audio)
    assert [i for i in ids if 1000 <= i < 2000] == list(range(1000, 1000 + num_text))
    assert [i for i in ids if i >= 2000] == list(range(2000, 2000 + num_audio))
    assert ids.count(END) == 1
    assert ids.count(BEGIN) <= 1


@given(lengths, lengths)
def test_the_schedule_follows_every_training_answer_to_its_end(num_text, num_audio):
    schedule = ChunkSchedule()
    for i in [*answer(num_text, num_audio), TURN_END]:
        if i == TURN_END and schedule.over:
            break
        own = {"text": range(1000, 2000), "audio": range(2000, 3000)}[schedule.modality]
        marker = END if schedule.modality == "audio" else TURN_END if schedule.alone else BEGIN
        assert i in own or i == marker
        schedule.advance(ended=i == marker)
    assert schedule.over
    assert schedule.silent == (num_audio == 0)


def test_masks_alternate_like_their_ids():
    text, audio = np.arange(30), np.arange(70)
    ids = interleave_chunks(text, audio + 100, 1000, 1000)
    mask = interleave_chunks(np.full(30, False), np.full(70, True), True, True)
    assert mask.dtype == bool
    assert np.array_equal(mask, ids >= 100)


def test_the_schedule_ends_with_both_modalities():
    schedule = ChunkSchedule()
    schedule.advance(ended=True)
    schedule.advance(ended=True)
    with pytest.raises(AssertionError, match="the answer has ended"):
        schedule.advance(ended=False)
