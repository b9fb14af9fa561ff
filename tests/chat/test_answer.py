"""The stream of an answer: complete characters, all audio, and the markers of an interruption."""

import numpy as np
import pytest

from weft.alternation import AUDIO_TOKENS, TEXT_TOKENS, interleave_chunks
from weft.chat.answer import AnswerStream


def answer_of(vocab, num_text, num_audio):
    """Return the text ids and the codes of an answer."""
    rng = np.random.default_rng(num_text)
    text_ids = np.resize(vocab.text_ids("the cat sat on the mat"), num_text)
    return text_ids, rng.integers(0, vocab.num_codes, num_audio)


def ids_of(vocab, text_ids, codes):
    audio_ids = vocab.codes_to_ids(codes)
    return interleave_chunks(text_ids, audio_ids, vocab.begin_of_audio_id, vocab.end_of_audio_id).tolist()


@pytest.mark.parametrize(("num_text", "num_audio"), [(5, 9), (TEXT_TOKENS, 3), (30, 60), (30, AUDIO_TOKENS)])
def test_the_pieces_join_to_the_text_and_the_audio_of_the_codes(bundle, vocab, num_text, num_audio):
    text_ids, codes = answer_of(vocab, num_text, num_audio)
    answer = AnswerStream(bundle, seed=4)
    replies = [answer.push(i) for i in ids_of(vocab, text_ids, codes)]
    replies.append(answer.finish())
    text = vocab.tokenizer.decode(text_ids)
    assert "".join(reply.text for reply in replies) == answer.text == text
    assert np.array_equal(np.concatenate([r.samples for r in replies]), bundle.decoder.synthesize(codes, 4))
    assert [(s.role, s.text, s.codes) for s in answer.segments()] == [
        ("assistant", text, None), ("assistant", None, codes.tolist())
    ]  # fmt: skip


@pytest.mark.parametrize(("num_text", "num_audio"), [(5, 9), (30, 60), (30, AUDIO_TOKENS)])
def test_closing_ids_end_an_interrupted_answer_like_a_training_document(bundle, vocab, num_text, num_audio):
    answer, pushed = AnswerStream(bundle, seed=0), []
    for next_id in ids_of(vocab, *answer_of(vocab, num_text, num_audio)):
        answer.push(next_id)
        pushed.append(next_id)
        ids = np.array(pushed)
        text_ids = ids[~vocab.is_audio(ids) & ~vocab.is_control(ids)].tolist()
        if answer.codes:
            assert pushed + answer.closing_ids() == ids_of(vocab, text_ids, answer.codes)
        else:
            assert answer.closing_ids() == []


def test_an_incomplete_character_is_returned_when_it_is_complete_or_the_answer_ends(bundle, vocab):
    answer = AnswerStream(bundle, 0)
    ids = vocab.text_ids("ü€").tolist()
    assert len(ids) == 5
    assert [answer.push(i).text for i in ids] == ["", "ü", "", "", "€"]
    answer.push(ids[0])
    assert answer.finish().text == "\ufffd"
