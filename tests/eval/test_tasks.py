from types import SimpleNamespace

import pytest

from weft.engine.sampling import Generated
from weft.eval.tasks import synthesize, task_prompt, transcribe
from weft.records import Document, Segment
from weft.vocab import SpeechVocab, extend_tokenizer, train_text_tokenizer


@pytest.fixture(scope="module")
def vocab() -> SpeechVocab:
    return SpeechVocab.of(extend_tokenizer(train_text_tokenizer(["Transcribe Speak a b"], 280), 8))


def test_a_prompt_is_the_start_of_a_training_document(vocab: SpeechVocab) -> None:
    speech, text = [1, 2, 3], "a b"
    spoken, written = Segment.of_speech(speech, None, loss=False), Segment.of_text(text, loss=False)
    asr = Document("x", "asr", (spoken, Segment.of_text(text)))
    tts = Document("x", "tts", (written, Segment.of_speech(speech, None)))
    for document, given, answer in (
        (asr, vocab.speech_ids(speech), vocab.text_ids(text)),
        (tts, vocab.text_ids(text), vocab.speech_ids(speech)),
    ):
        prompt, (ids, losses) = task_prompt(vocab, document.kind, given), vocab.document_ids(document)
        assert prompt.tolist() == ids[: len(prompt)].tolist()
        assert ids[len(prompt) :].tolist() == [*answer, vocab.eos_id]
        assert not losses[: len(prompt)].any()


def test_answers_are_of_the_modality_of_the_task(vocab: SpeechVocab) -> None:
    calls = []

    def generate(requests, sampling, stop, allowed, max_repeats):
        calls.append((requests, stop, set(allowed)))
        answer = vocab.codes_to_ids([5, 6]) if vocab.end_of_audio_id in stop else vocab.text_ids(" a b ")
        return [Generated(answer.tolist(), True) for _ in requests]

    engine = SimpleNamespace(generate=generate, batch_size=2)
    assert transcribe(engine, vocab, [[1], [2, 3], [4]], 12.5) == ["a b"] * 3
    assert synthesize(engine, vocab, ["a", "b"], 12.5) == [[5, 6]] * 2
    assert [len(requests) for requests, *_ in calls] == [2, 1, 2]
    _, stop, allowed = calls[0]
    assert stop <= allowed
    assert not allowed & set(vocab.codes_to_ids(range(8)).tolist())
    assert calls[2][2] == {*vocab.codes_to_ids(range(8)).tolist(), vocab.end_of_audio_id}
    assert calls[2][0][0].ids[-1] == vocab.begin_of_audio_id
