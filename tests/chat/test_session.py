"""Conversations: the streamed answer is the one in the history, text and speech alternate, sessions are independent."""

import numpy as np
import pytest
import torch

from tests.chat.conftest import TEXTS, noise
from weft.alternation import AUDIO_TOKENS, TEXT_TOKENS
from weft.chat.bundle import Bundle
from weft.chat.session import ChatSession, respond
from weft.engine.sampling import Sampling
from weft.errors import UserError
from weft.lm.model import LmConfig, new_lm
from weft.records import Document, Segment

SAMPLES_PER_CODE = 1280
HOT = Sampling(temperature=1.0)
GREEDY = Sampling(temperature=0)
QUESTION, SECOND_QUESTION = noise(30_000), noise(21_000, seed=8)


def collect(session, max_sec=10.0):
    replies = list(session.answer(max_sec))
    samples = np.concatenate([np.zeros(0, np.float32), *(r.samples for r in replies)])
    return "".join(r.text for r in replies), samples


def codes_of(segments, role):
    return [c for s in segments if s.role == role for c in s.codes or ()]


def text_of(segments, role):
    return "".join(s.text or "" for s in segments if s.role == role and s.type == "text")


def answer_ids(session, vocab):
    """Return the ids after the last `<|assistant|>` and its newline."""
    start = vocab.turn_start_ids("assistant")
    last = max(i for i, x in enumerate(session.ids) if x == start[0])
    return session.ids[last + len(start) :]


def decoded_like_its_document(session, vocab):
    document = Document("d", "dialogue", tuple(session.history))
    ids = vocab.document_ids(document)[0]
    return vocab.tokenizer.decode([*session.ids, vocab.eos_id]) == vocab.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def dialogue(bundle):
    """Two exchanges. The first answer is longer than two chunks of text and speech, the second shorter than one."""
    speech, next_speech = bundle.tokenizer.encode([QUESTION, SECOND_QUESTION])
    rng = np.random.default_rng(3)
    segments = (
        Segment.of_speech(speech.tolist(), None, "user", loss=False),
        Segment.of_text(TEXTS[0] + " " + TEXTS[1], "assistant"),
        Segment.of_speech(rng.integers(0, 32, 71).tolist(), None, "assistant"),
        Segment.of_speech(next_speech.tolist(), None, "user", loss=False),
        Segment.of_text("A bird sang.", "assistant"),
        Segment.of_speech(rng.integers(0, 32, 17).tolist(), None, "assistant"),
    )
    return Document("d", "dialogue", segments)


@pytest.fixture(scope="module")
def trained(dialogue, vocab, make_bundle):
    """A bundle whose language model has memorized the answers of `dialogue`."""
    model = new_lm(LmConfig(hidden=64, layers=2, heads=2, ffn=128), vocab.tokenizer, seed=1)
    ids, trained = (torch.from_numpy(x)[None] for x in vocab.document_ids(dialogue))
    labels = ids.masked_fill(~trained, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return make_bundle(model=model)


def test_a_conversation_has_the_ids_of_its_document(trained, dialogue, vocab):
    session = ChatSession(trained, sampling=GREEDY)
    for question, answer in ((QUESTION, dialogue.segments[1:3]), (SECOND_QUESTION, dialogue.segments[4:6])):
        for chunk in np.array_split(question, 7):
            session.add_speech(chunk)
        text, samples = collect(session)
        assert text == answer[0].text
        assert len(samples) == len(answer[1].codes) * SAMPLES_PER_CODE
    assert session.history == [
        Segment(s.type, s.text, list(s.codes) if s.codes else None, s.role, s.loss) for s in dialogue.segments
    ]
    assert [*session.ids, vocab.eos_id] == vocab.document_ids(dialogue)[0].tolist()


@pytest.mark.parametrize("max_sec", [0.08, 0.96, 26 / 12.5, 3.28, 52 / 12.5])
def test_a_conversation_continues_after_an_answer_of_the_maximum_length(trained, dialogue, vocab, max_sec):
    session = ChatSession(trained, sampling=GREEDY)
    session.add_speech(QUESTION)
    text, samples = collect(session, max_sec)
    assert len(samples) == round(max_sec * 16_000)
    assert dialogue.segments[1].text.startswith(text)
    session.add_speech(SECOND_QUESTION)
    list(session.answer(0.5))
    assert decoded_like_its_document(session, vocab)


def test_the_beginning_of_an_interrupted_answer_is_kept(trained, vocab):
    session = ChatSession(trained, sampling=GREEDY)
    session.add_speech(QUESTION)
    answer, num_samples = session.answer(), 0
    for reply in answer:
        num_samples += len(reply.samples)
        if num_samples:
            break
    answer.close()
    assert len(codes_of(session.history, "assistant")) * SAMPLES_PER_CODE >= num_samples
    session.add_text("the cat")
    assert session.ids[-len(vocab.text_ids("the cat")) :] == vocab.text_ids("the cat").tolist()
    assert collect(session, 2)
    assert decoded_like_its_document(session, vocab)


def test_the_first_audio_follows_one_chunk_of_text_and_one_block_of_codes(trained, vocab):
    session = ChatSession(trained, sampling=GREEDY)
    session.add_speech(QUESTION)
    next(r for r in session.answer() if len(r.samples))
    assert len(answer_ids(session, vocab)) <= TEXT_TOKENS + 4 + 1  # the next id, or the end of the abandoned answer


@pytest.mark.parametrize("seed", range(4))
def test_the_streamed_answer_is_the_one_in_the_history_and_alternates(bundle, vocab, seed):
    session = ChatSession(bundle, seed, HOT)
    session.add_speech(QUESTION)
    num_before = len(session.history) + 1
    text, samples = collect(session, 5)
    codes = codes_of(session.history, "assistant")
    assert text == text_of(session.history, "assistant")
    assert np.array_equal(samples, bundle.decoder.synthesize(codes, seed + num_before))
    ids = np.array(answer_ids(session, vocab))
    assert np.array_equal(vocab.codes_to_ids(codes), ids[vocab.is_audio(ids)])
    assert not np.isin(ids, [*vocab.role_start_ids.values(), vocab.eos_id]).any()
    together = ids[: next((i for i, x in enumerate(ids) if vocab.is_control(np.array([x]))[0]), len(ids))]
    place = np.arange(len(together)) % (TEXT_TOKENS + AUDIO_TOKENS)
    assert np.array_equal(vocab.is_audio(together), place >= TEXT_TOKENS)


def test_answers_depend_on_the_seed_only(bundle):
    first, same, other = (respond(bundle, QUESTION, seed, max_sec=1) for seed in (0, 0, 1))
    assert (first.text, first.codes) == (same.text, same.codes)
    assert np.array_equal(first.samples, same.samples)
    assert (first.text, first.codes) != (other.text, other.codes)


def test_sessions_are_independent(bundle):
    alone = ChatSession(bundle, 0, HOT)
    alone.add_speech(QUESTION)
    expected = collect(alone, 2)
    one, other = ChatSession(bundle, 0, HOT), ChatSession(bundle, 5, HOT)
    for a, b in zip(np.array_split(QUESTION, 5), np.array_split(SECOND_QUESTION, 5), strict=True):
        one.add_speech(a)
        other.add_speech(b)
    text, samples, others = "", [], other.answer(2)
    for reply in one.answer(2):
        next(others, None)
        text += reply.text
        samples.append(reply.samples)
    assert text == expected[0]
    assert np.array_equal(np.concatenate(samples), expected[1])
    assert one.history == alone.history


def test_speech_is_processed_in_complete_blocks_however_it_is_divided(bundle, vocab):
    whole, pieces = ChatSession(bundle), ChatSession(bundle)
    whole.add_speech(QUESTION)
    assert vocab.is_audio(np.array(whole.ids)).sum() == 20  # two blocks of 0.8 s; the third is not complete
    for chunk in np.array_split(QUESTION, 40):
        pieces.add_speech(chunk)
    assert pieces.ids == whole.ids


class Endless(Bundle):
    """A bundle whose text never ends; its speech never ends either or, if `speechless`, ends at once."""

    speechless = False

    def allowed(self, schedule):
        if self.speechless and schedule.modality == "audio":
            return torch.arange(self.vocab.size) == self.vocab.end_of_audio_id
        ends = torch.isin(torch.arange(self.vocab.size), torch.tensor(list(self.ends(schedule))))
        return super().allowed(schedule) & ~ends


@pytest.mark.parametrize("max_sec", [0.4, 2.4])
def test_speech_without_end_has_the_maximum_length(make_bundle, max_sec):
    session = ChatSession(make_bundle(kind=Endless), 0, HOT)
    session.add_speech(QUESTION)
    _, samples = collect(session, max_sec)
    assert len(samples) == round(max_sec * 16_000)


def test_text_without_end_is_limited(make_bundle, vocab, monkeypatch):
    monkeypatch.setattr(Endless, "speechless", True)
    session = ChatSession(make_bundle(kind=Endless), 0, HOT)
    session.add_speech(QUESTION)
    text, samples = collect(session, 2.0)
    assert text
    assert len(samples) == 0
    assert len(answer_ids(session, vocab)) == TEXT_TOKENS + AUDIO_TOKENS


class MarkerAfterAudio(Endless):
    """A bundle whose text ends after the first chunk of text and speech."""

    def allowed(self, schedule):
        if schedule.modality == "text" and not schedule.silent:
            return torch.arange(self.vocab.size) == self.vocab.begin_of_audio_id
        return super().allowed(schedule)


def test_an_answer_that_is_limited_at_the_marker_of_its_audio_has_the_ids_of_its_document(make_bundle, vocab):
    parts = vocab.turn_start_ids("user"), vocab.text_ids("the cat"), vocab.turn_start_ids("assistant")
    max_positions = sum(map(len, parts)) + TEXT_TOKENS + AUDIO_TOKENS + 1 + 2  # two for the ids that close the answer
    session = ChatSession(make_bundle(kind=MarkerAfterAudio, max_position_tokens=max_positions), 0, HOT)
    session.add_text("the cat")
    list(session.answer())
    ids = answer_ids(session, vocab)
    assert len(ids) == TEXT_TOKENS + AUDIO_TOKENS + 2
    assert ids[-2:] == [vocab.begin_of_audio_id, vocab.end_of_audio_id]


def test_full_positions_end_the_answer_and_are_then_an_error(make_bundle):
    session = ChatSession(make_bundle(max_position_tokens=60), 0, HOT)
    session.add_speech(QUESTION)
    list(session.answer())
    assert len(session.ids) <= 60
    with pytest.raises(UserError, match="60 positions"):
        session.add_text("the cat sat " * 20)


def test_turns_must_alternate(bundle):
    session = ChatSession(bundle)
    with pytest.raises(ValueError, match="needs a turn of the user"):
        next(session.answer())
    session.add_speech(QUESTION)
    answer = session.answer()
    next(answer)
    with pytest.raises(ValueError, match="an answer is not finished"):
        session.add_speech(QUESTION)
