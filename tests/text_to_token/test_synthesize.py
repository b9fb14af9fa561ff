"""Synthesis: codes match their text, depend on text, seed and speaker only, and failures give None."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.completions import StandIn, completion, served
from tests.text_to_token.conftest import LETTERS, LetterTranscriber, codes_of, sentences
from weft import artifacts
from weft.errors import UserError
from weft.lm.model import load_causal_lm, save
from weft.plan import Plan, open_draft
from weft.text_to_token.synthesize import Synthesizer
from weft.text_to_token.wer_filter import transcribed_error_rate
from weft.vocab import SpeechVocab


class Num2words:
    """A fake of the module of that name."""

    @staticmethod
    def num2words(number, lang, to="cardinal"):
        return ["zero", "one", "two"][number]


def copy(folder, trained, model=None, settings=None):
    """Create a text-to-token artifact from a trained one, with other weights or settings."""
    manifest, parents = artifacts.read(trained.out), {"tokenizer": artifacts.read(trained.tokenizer)}
    loaded, tokenizer = load_causal_lm(trained.out, torch.float32)
    with open_draft(folder, Plan(manifest.kind, settings or manifest.settings, parents)) as draft:
        save(model or loaded, tokenizer, draft.folder)
        draft.counts.update(manifest.counts)
    return folder


def test_codes_of_unseen_texts_are_transcribed_as_the_texts(synthesizer):
    unseen = [t for t in sentences(100, seed=2) if t not in sentences(400, seed=1)]
    codes = synthesizer.synthesize(unseen, range(len(unseen)))
    assert all(0 <= code < len(LETTERS) for row in codes for code in row or [])
    assert transcribed_error_rate(LetterTranscriber(), codes, unseen, [None] * len(unseen)).rate < 0.45
    others = codes[1:] + codes[:1]
    assert transcribed_error_rate(LetterTranscriber(), others, unseen, [None] * len(unseen)).rate > 0.7


def test_codes_depend_on_text_and_seed_and_not_on_the_batch(trained, synthesizer):
    texts = sentences(12, seed=3)
    together = synthesizer.synthesize(texts, range(12))
    assert synthesizer.synthesize(texts[::-1], range(11, -1, -1))[::-1] == together
    assert [synthesizer.synthesize([t], [i])[0] for i, t in enumerate(texts)] == together
    assert Synthesizer.from_pretrained(trained.out).synthesize(texts, range(12)) == together
    assert synthesizer.synthesize(texts, range(100, 112)) != together


@pytest.mark.parametrize(
    ("languages", "settings", "language"),
    [
        (["de"], {}, "de"),
        (["de", "en"], {}, None),
        ([], {"normalize": "none", "language": "en"}, None),
    ],
)
def test_the_language_is_that_of_the_training_data(synthesizer, languages, settings, language):
    manifest = replace(synthesizer.manifest, counts=synthesizer.manifest.counts | {"languages": languages})
    manifest = replace(manifest, settings=manifest.settings | settings)
    assert Synthesizer(synthesizer._engine, synthesizer._vocab, manifest).language == language


def test_codes_do_not_depend_on_punctuation_and_capitals(synthesizer):
    assert synthesizer.synthesize(["Old, dog!"], [0]) == synthesizer.synthesize(['  "old dog'], [0])


def test_texts_without_words_and_texts_that_are_too_long_give_none(synthesizer):
    texts = ["...", "a red dog " * 60, "a dog"]
    assert synthesizer.synthesize(texts, [0, 1, 2])[:2] == [None, None]
    assert [synthesizer.problem_of(text) for text in texts] == ["nothing_to_pronounce", "too_long", None]
    assert synthesizer.synthesize([], []) == []


def test_a_model_that_never_ends_gives_none(trained, tmp_path):
    model, tokenizer = load_causal_lm(trained.out, torch.float32)
    vocab = SpeechVocab.of(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocab.end_of_audio_id] = 0
        model.get_input_embeddings().weight[vocab.first_audio_id : vocab.end_of_audio_id - 1] *= 9
    endless = Synthesizer.from_pretrained(copy(tmp_path / "endless", trained, model))
    assert endless.synthesize(sentences(8, seed=4), range(8)).count(None) > 4


def test_a_server_of_the_model_gives_the_codes_of_its_answers(trained, tmp_path):
    """By ids and by text. The server answers with the letters of the prompt, like a perfect model."""
    vocab = SpeechVocab.of(load_causal_lm(trained.out, torch.float32)[1])
    texts = [*sentences(5, seed=6), "..."]

    def answer(body):
        *words, begin = body["prompt"]
        assert begin == vocab.begin_of_audio_id
        ids = [*vocab.codes_to_ids(codes_of(vocab.tokenizer.decode(words))).tolist(), vocab.end_of_audio_id]
        assert set(ids) <= set(body["allowed_token_ids"])
        assert body["stop_token_ids"] == ids[-1:]
        generated = {"token_ids": ids} if body["seed"] % 2 else {"text": vocab.tokenizer.decode(ids[:-1])}
        return 200, completion(**generated, finish_reason="stop")

    with served(StandIn(answer)) as url:
        synthesizer = Synthesizer.from_pretrained(trained.out, url)
        assert synthesizer.synthesize(texts, range(6)) == [*map(codes_of, texts[:-1]), None]
        with pytest.raises(UserError, match="this synthesizer uses a URL and has no weights: load its directory"):
            synthesizer.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_saved_synthesizer_gives_the_same_codes_and_has_the_same_manifest(trained, synthesizer, tmp_path):
    saved = synthesizer.save_pretrained(tmp_path / "saved")
    manifest = artifacts.read(trained.out, "text_to_token")
    for name in ("kind", "parents", "settings", "counts", "notes"):
        assert getattr(saved, name) == getattr(manifest, name)
    texts = sentences(6, seed=5)
    loaded = Synthesizer.from_pretrained(tmp_path / "saved")
    assert loaded.synthesize(texts, range(6)) == synthesizer.synthesize(texts, range(6))
    with pytest.raises(UserError, match="saved already exists"):
        synthesizer.save_pretrained(tmp_path / "saved")


def test_each_speaker_has_its_voice_and_the_first_is_the_default(trained_with_speakers):
    synthesizer = Synthesizer.from_pretrained(trained_with_speakers.out)
    assert synthesizer.speakers == ("low", "high: up")
    texts = sentences(12, seed=9)
    low, high = (synthesizer.synthesize(texts, range(12), [name] * 12) for name in synthesizer.speakers)
    assert synthesizer.synthesize(texts, range(12)) == low
    alternating = synthesizer.synthesize(texts, range(12), [*synthesizer.speakers] * 6)
    assert alternating == [(low, high)[i % 2][i] for i in range(12)]
    below, above = ([code < 7 for row in rows for code in row or []] for rows in (low, high))
    assert np.mean(below) > 0.95
    assert np.mean(above) < 0.05


def test_an_unknown_speaker_is_an_error(trained_with_speakers, synthesizer):
    with pytest.raises(UserError, match=r"has no speaker 'Low': give one of its 2, low, high: up"):
        Synthesizer.from_pretrained(trained_with_speakers.out).synthesize(["a dog"], [0], ["Low"])
    with pytest.raises(UserError, match=r"has no speaker 'low', because it was trained without names"):
        synthesizer.synthesize(["a dog"], [0], ["low"])


def test_texts_get_the_text_normalization_of_the_training(trained, synthesizer, tmp_path, monkeypatch):
    settings = artifacts.read(trained.out).settings
    monkeypatch.setitem(sys.modules, "num2words", Num2words)

    def with_settings(name, settings):
        return Synthesizer.from_pretrained(copy(tmp_path / name, trained, settings=settings))

    expected = synthesizer.synthesize(["two dogs ran", "a dog"], [0, 1])
    numbers = with_settings("numbers", settings | {"normalize": "numbers"})
    assert numbers.synthesize(["2 dogs ran", "a dog"], [0, 1]) == expected
    assert numbers.normalize("1") != synthesizer.normalize("1") == "1"
    abbreviations = with_settings("full", settings | {"abbreviations": [["2", "two"], ["d.", "dogs"]]})
    assert abbreviations.synthesize(["2 d. ran", "a dog"], [0, 1]) == expected
    names = ("normalize", "language", "abbreviations")
    older = {name: value for name, value in settings.items() if name not in names}
    assert with_settings("older", older).normalize("1") == "1"
