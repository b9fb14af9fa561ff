"""Prompts: spoken form, speaker, the ids of words, and the longest plausible speech."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.lm.model import load_causal_lm
from weft.text.normalize import spoken_form
from weft.text_to_token.prompt import max_codes, prompt_ids, prompt_text, slow_codes_per_character
from weft.vocab import SpeechVocab


@given(st.text(), st.text(min_size=1))
def test_a_prompt_separates_speaker_and_text(text, name):
    assert prompt_text(text, name).rsplit(": ", 1) == [f" {name}", spoken_form(text)]


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("\u201cDon\u2019t!\u201d he said", "don't he said"),
        ("At 10:30, 3.5% or $1,000.", "at 10:30 3.5% or $1,000"),
        ("well-known - 'quoted'", "well known quoted"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("...", ""),
    ],
)
def test_a_prompt_contains_the_spoken_form(text, spoken):
    assert prompt_text(text) == f" {spoken}"
    assert prompt_text(spoken) == f" {spoken}"


def test_a_prompt_has_the_ids_of_its_words(trained):
    vocab = SpeechVocab.of(load_causal_lm(trained.out, torch.float32)[1])
    joined = np.concatenate([prompt_ids(vocab, word)[:-1] for word in ("dog", "ran")])
    assert prompt_ids(vocab, "Dog ran.").tolist() == [*joined, vocab.begin_of_audio_id]


def test_nearly_all_training_speech_has_at_most_max_codes():
    rng = np.random.default_rng(0)
    texts = ["a dog ran to me " * int(n) for n in rng.integers(1, 8, 5000)]
    utterances = [(text, int(len(text) * pace)) for text, pace in zip(texts, rng.uniform(0.5, 1.5, 5000), strict=True)]
    pace = slow_codes_per_character(utterances)
    too_long = sum(num_codes > max_codes(text, pace) for text, num_codes in utterances)
    assert too_long <= 0.001 * len(utterances)
