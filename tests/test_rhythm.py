"""Woven answers: nothing is lost, the rhythm holds, and sampling walks as training is written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.rhythm import AUDIO_TOKENS, TEXT_TOKENS, Rhythm, weave

BEGIN, END, TURN_END = -1, -2, -3
lengths = st.integers(0, 120)


def woven(num_text, num_audio):
    return weave(range(1000, 1000 + num_text), range(2000, 2000 + num_audio), BEGIN, END).tolist()


def test_thirteen_text_tokens_twenty_six_codes_and_the_rest_at_the_end():
    ids = woven(31, 90)
    assert (TEXT_TOKENS, AUDIO_TOKENS) == (13, 26)
    text, audio = list(range(1000, 1031)), list(range(2000, 2090))
    assert ids == [*text[:13], *audio[:26], *text[13:26], *audio[26:52], *text[26:], BEGIN, *audio[52:], END]


def test_where_speech_ends_first_the_rest_of_the_text_follows():
    assert woven(17, 20) == [*range(1000, 1013), *range(2000, 2020), END, *range(1013, 1017)]


def test_a_short_text_is_followed_by_its_whole_speech():
    assert woven(12, 60) == [*range(1000, 1012), BEGIN, *range(2000, 2060), END]


@given(lengths, lengths)
def test_nothing_is_lost_or_moved_within_its_modality(num_text, num_audio):
    ids = woven(num_text, num_audio)
    assert [i for i in ids if 1000 <= i < 2000] == list(range(1000, 1000 + num_text))
    assert [i for i in ids if i >= 2000] == list(range(2000, 2000 + num_audio))
    assert ids.count(END) == 1
    assert ids.count(BEGIN) <= 1


@given(lengths, lengths)
def test_sampling_walks_through_every_woven_answer_to_its_end(num_text, num_audio):
    rhythm = Rhythm()
    for i in [*woven(num_text, num_audio), TURN_END]:
        if i == TURN_END and rhythm.over:
            break
        own = {"text": range(1000, 2000), "audio": range(2000, 3000)}[rhythm.part]
        marker = END if rhythm.part == "audio" else TURN_END if rhythm.alone else BEGIN
        assert i in own or i == marker
        rhythm.advance(ended=i == marker)
    assert rhythm.over


def test_masks_are_woven_like_their_ids():
    text, audio = np.arange(30), np.arange(70)
    ids = weave(text, audio + 100, 1000, 1000)
    mask = weave(np.full(30, False), np.full(70, True), True, True)
    assert mask.dtype == bool
    assert np.array_equal(mask, ids >= 100)


def test_nothing_follows_the_end():
    rhythm = Rhythm()
    rhythm.advance(ended=True)
    rhythm.advance(ended=True)
    with pytest.raises(AssertionError, match="nothing follows"):
        rhythm.advance(ended=False)
