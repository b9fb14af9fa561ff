"""Conversations: what is streamed is what is kept, the rhythm holds, and nothing leaks between sessions."""

import numpy as np
import pytest
import torch

from tests.chat.conftest import TEXTS, noise
from weft.audio import load, save
from weft.chat import session as module
from weft.chat.bundle import Bundle
from weft.chat.session import ChatConfig, ChatSession, chat, respond
from weft.engine.generate import Sampling
from weft.errors import UserError
from weft.lm.model import LmConfig, new_lm
from weft.records import Document, Segment
from weft.rhythm import AUDIO_TOKENS, TEXT_TOKENS

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
    """The ids after the last `<|assistant|>` and its newline."""
    start = vocab.turn_start_ids("assistant")
    last = max(i for i, x in enumerate(session.ids) if x == start[0])
    return session.ids[last + len(start) :]


@pytest.fixture(scope="module")
def dialogue(bundle):
    """Two turns: one answer of over two rounds of the rhythm, one that is shorter than a round."""
    heard, heard_next = bundle.tokenizer.encode([QUESTION, SECOND_QUESTION])
    rng = np.random.default_rng(3)
    segments = (
        Segment.of_speech(heard.tolist(), None, "user", loss=False),
        Segment.of_text(TEXTS[0] + " " + TEXTS[1], "assistant"),
        Segment.of_speech(rng.integers(0, 32, 71).tolist(), None, "assistant"),
        Segment.of_speech(heard_next.tolist(), None, "user", loss=False),
        Segment.of_text("A bird sang.", "assistant"),
        Segment.of_speech(rng.integers(0, 32, 17).tolist(), None, "assistant"),
    )
    return Document("d", "dialogue", segments)


@pytest.fixture(scope="module")
def taught(dialogue, vocab, make_bundle):
    """A bundle whose language model knows the answers of `dialogue` by heart."""
    model = new_lm(LmConfig(hidden=64, layers=2, heads=2, ffn=128), vocab.tokenizer, seed=1)
    ids, trained = (torch.from_numpy(x)[None] for x in vocab.document_ids(dialogue))
    labels = ids.masked_fill(~trained, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return make_bundle(model=model)


def test_a_conversation_runs_as_its_document_is_written(taught, dialogue, vocab):
    session = ChatSession(taught, sampling=GREEDY)
    for question, answer in ((QUESTION, dialogue.segments[1:3]), (SECOND_QUESTION, dialogue.segments[4:6])):
        for chunk in np.array_split(question, 7):
            session.hear(chunk)
        text, samples = collect(session)
        assert text == answer[0].text
        assert len(samples) == len(answer[1].codes) * SAMPLES_PER_CODE
    assert session.history == [
        Segment(s.type, s.text, list(s.codes) if s.codes else None, s.role, s.loss) for s in dialogue.segments
    ]
    assert [*session.ids, vocab.eos_id] == vocab.document_ids(dialogue)[0].tolist()


@pytest.mark.parametrize("max_sec", [0.08, 0.96, 26 / 12.5, 3.28, 52 / 12.5])
def test_a_conversation_goes_on_after_an_answer_that_was_cut_off(taught, dialogue, vocab, max_sec):
    session = ChatSession(taught, sampling=GREEDY)
    session.hear(QUESTION)
    text, samples = collect(session, max_sec)
    assert len(samples) == round(max_sec * 16_000)
    assert dialogue.segments[1].text.startswith(text)
    session.hear(SECOND_QUESTION)
    list(session.answer(0.5))
    said = Document("d", "dialogue", tuple(session.history))
    assert vocab.tokenizer.decode([*session.ids, vocab.eos_id]) == vocab.tokenizer.decode(vocab.document_ids(said)[0])


def test_what_was_said_before_an_interruption_is_kept(taught, vocab):
    session = ChatSession(taught, sampling=GREEDY)
    session.hear(QUESTION)
    answer, num_samples = session.answer(), 0
    for reply in answer:
        num_samples += len(reply.samples)
        if num_samples:
            break
    answer.close()
    assert len(codes_of(session.history, "assistant")) * SAMPLES_PER_CODE >= num_samples
    session.read("the cat")
    assert session.ids[-len(vocab.text_ids("the cat")) :] == vocab.text_ids("the cat").tolist()
    assert collect(session)
    said = Document("d", "dialogue", tuple(session.history))
    assert vocab.tokenizer.decode([*session.ids, vocab.eos_id]) == vocab.tokenizer.decode(vocab.document_ids(said)[0])


def test_the_first_sound_comes_after_one_text_part_and_one_block(taught, vocab):
    session = ChatSession(taught, sampling=GREEDY)
    session.hear(QUESTION)
    next(r for r in session.answer() if len(r.samples))
    assert len(answer_ids(session, vocab)) <= TEXT_TOKENS + 4 + 1  # the id and what closes an abandoned answer


@pytest.mark.parametrize("seed", range(4))
def test_what_is_streamed_is_what_is_kept_and_the_rhythm_holds(bundle, vocab, seed):
    session = ChatSession(bundle, seed, HOT)
    session.hear(QUESTION)
    num_before = len(session.history) + 1
    text, samples = collect(session)
    codes = codes_of(session.history, "assistant")
    assert text == text_of(session.history, "assistant")
    assert np.array_equal(samples, bundle.decoder.synthesize(codes, seed + num_before))
    ids = np.array(answer_ids(session, vocab))
    assert np.array_equal(vocab.codes_to_ids(codes), ids[vocab.is_audio(ids)])
    assert not np.isin(ids, [*vocab.role_start_ids.values(), vocab.eos_id]).any()
    together = ids[: next((i for i, x in enumerate(ids) if vocab.is_control(np.array([x]))[0]), len(ids))]
    place = np.arange(len(together)) % (TEXT_TOKENS + AUDIO_TOKENS)
    assert np.array_equal(vocab.is_audio(together), place >= TEXT_TOKENS)


def test_answers_are_decided_by_the_seed_alone(bundle):
    first, same, other = (respond(bundle, QUESTION, seed, max_sec=3) for seed in (0, 0, 1))
    assert (first.text, first.codes) == (same.text, same.codes)
    assert np.array_equal(first.samples, same.samples)
    assert (first.text, first.codes) != (other.text, other.codes)


def test_sessions_do_not_touch_each_other(bundle):
    alone = ChatSession(bundle, 0, HOT)
    alone.hear(QUESTION)
    expected = collect(alone, 3)
    one, other = ChatSession(bundle, 0, HOT), ChatSession(bundle, 5, HOT)
    for a, b in zip(np.array_split(QUESTION, 5), np.array_split(SECOND_QUESTION, 5), strict=True):
        one.hear(a)
        other.hear(b)
    text, samples, others = "", [], other.answer(3)
    for reply in one.answer(3):
        next(others, None)
        text += reply.text
        samples.append(reply.samples)
    assert text == expected[0]
    assert np.array_equal(np.concatenate(samples), expected[1])
    assert one.history == alone.history


def test_what_the_user_says_is_fed_while_it_is_said(bundle, vocab):
    whole, pieces = ChatSession(bundle), ChatSession(bundle)
    whole.hear(QUESTION)
    assert vocab.is_audio(np.array(whole.ids)).sum() == 20  # two blocks of 0.8 s; the third is not finished
    for chunk in np.array_split(QUESTION, 40):
        pieces.hear(chunk)
    assert pieces.ids == whole.ids


class Endless(Bundle):
    """A bundle whose text never ends, and its speech neither or (`speechless`) at once."""

    speechless = False

    def allowed(self, rhythm):
        if self.speechless and rhythm.part == "audio":
            return torch.arange(self.vocab.size) == self.vocab.end_of_audio_id
        ends = torch.isin(torch.arange(self.vocab.size), torch.tensor(list(self.ends(rhythm))))
        return super().allowed(rhythm) & ~ends


@pytest.mark.parametrize("max_sec", [0.4, 4.0])
def test_sound_without_end_is_bounded(make_bundle, max_sec):
    session = ChatSession(make_bundle(kind=Endless), 0, HOT)
    session.hear(QUESTION)
    _, samples = collect(session, max_sec)
    assert len(samples) == round(max_sec * 16_000)


def test_text_without_end_is_bounded(make_bundle, vocab, monkeypatch):
    monkeypatch.setattr(Endless, "speechless", True)
    session = ChatSession(make_bundle(kind=Endless), 0, HOT)
    session.hear(QUESTION)
    text, samples = collect(session, 2.0)
    assert text
    assert len(samples) == 0
    assert len(answer_ids(session, vocab)) == TEXT_TOKENS + AUDIO_TOKENS


def test_a_full_model_ends_the_answer_and_then_refuses(make_bundle, vocab):
    session = ChatSession(make_bundle(max_position_tokens=60), 0, HOT)
    session.hear(QUESTION)
    list(session.answer())
    assert len(session.ids) <= 60
    with pytest.raises(UserError, match="60 positions"):
        session.read("the cat sat " * 20)


def test_turns_must_alternate(bundle):
    session = ChatSession(bundle)
    with pytest.raises(ValueError, match="needs a turn of the user"):
        next(session.answer())
    session.hear(QUESTION)
    answer = session.answer()
    next(answer)
    with pytest.raises(ValueError, match="under way"):
        session.hear(QUESTION)


def test_only_words_are_text_and_spare_rows_are_never_drawn(vocab, make_bundle):
    model = new_lm(LmConfig(hidden=64, layers=1, heads=1), vocab.tokenizer, seed=0)
    model.resize_token_embeddings(vocab.size + 7, mean_resizing=False)
    roomy = make_bundle(model=model)
    rhythm = module.AnswerStream(roomy, 0).rhythm
    allowed = roomy.allowed(rhythm).nonzero()[:, 0].numpy()
    assert allowed.max() < vocab.size
    assert vocab.tokenizer.pad_token_id not in allowed
    assert set(allowed[vocab.is_control(allowed)]) == {vocab.begin_of_audio_id}
    assert not vocab.is_audio(allowed).any()


def test_half_a_character_waits_for_its_other_half(bundle, vocab):
    answer = module.AnswerStream(bundle, 0)
    ids = vocab.text_ids("ü€").tolist()
    assert len(ids) == 5
    assert [answer.take(i).text for i in ids] == ["", "ü", "", "", "€"]
    answer.take(ids[0])
    assert answer.finish().text == "\ufffd"


def test_one_spoken_turn_from_file_to_file(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.Bundle, "load", lambda folder: bundle)
    save(tmp_path / "in.wav", QUESTION, 16_000)
    chat(ChatConfig(tmp_path, wav=tmp_path / "in.wav", out=tmp_path / "out.wav", max_sec=2))
    expected = respond(bundle, load(tmp_path / "in.wav"), max_sec=2)
    assert expected.first_audio_ms > 0
    assert expected.text in capsys.readouterr().out
    assert len(load(tmp_path / "out.wav")) == len(expected.samples)


def test_a_conversation_in_the_terminal(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.Bundle, "load", lambda folder: bundle)
    lines = iter(["the cat", "the dog", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat(ChatConfig(tmp_path, out=tmp_path / "said", max_sec=2))
    session = ChatSession(bundle)
    for line in ("the cat", "the dog"):
        session.read(line)
        list(session.answer(2))
    assert text_of(session.history[:3], "assistant") in capsys.readouterr().out
    assert [p.name for p in sorted((tmp_path / "said").iterdir())] == ["answer-1.wav", "answer-2.wav"]
