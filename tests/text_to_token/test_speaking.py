"""Text-to-token: training, speaking and reading back, on speech whose codes are the letters of its text."""

import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.completions import StandIn, completion, served
from weft import artifacts
from weft.data.shards import write_codes
from weft.errors import UserError
from weft.lm.model import LmConfig, load_hf, save
from weft.records import CodedUtterance
from weft.text_to_token.gate import read_back
from weft.text_to_token.model import prompt_ids, spoken_form, tokenizer_text
from weft.text_to_token.synthesize import Synthesizer
from weft.text_to_token.train import TextToTokenConfig, run
from weft.training.loop import TrainConfig
from weft.training.metrics import read_metrics
from weft.vocab import SpeechVocab

LETTERS = " abdegilmnorstu"
WORDS = ("a", "red", "dog", "ran", "to", "me", "and", "sat", "bird", "all", "is", "old", "mill")


def codes_of(text: str) -> list[int]:
    return [LETTERS.index(c) for c in spoken_form(text)]


class Num2words:
    """A stand-in for the module of that name."""

    @staticmethod
    def num2words(number, lang, to="cardinal"):
        return ["zero", "one", "two"][number]


class LetterTokenizer:
    """Reads codes back as the letters that they are."""

    def transcribe(self, codes):
        return ["".join(LETTERS[c] for c in row) for row in codes]


def sentences(num: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))).capitalize() + "." for _ in range(num)]


def new_tokenizer(folder, seed: int = 0):
    codebook = torch.randn(len(LETTERS), 8, generator=torch.Generator().manual_seed(seed))
    settings = {"model": {"pooling": 4, "quantizer": {"num_codes": len(LETTERS)}}}
    with artifacts.build(folder, "tokenizer", settings) as draft:
        save_file({"quantizer.codebook": codebook}, draft.folder / "model.safetensors")
    return folder


def new_codes(folder, tokenizer, utterances):
    with artifacts.build(folder, "codes", {}, {"tokenizer": artifacts.read(tokenizer)}) as draft:
        write_codes(draft.folder, 0, utterances)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learnt to spell, with two utterances that nothing can be learnt from."""
    folder = tmp_path_factory.mktemp("text_to_token")
    tokenizer = new_tokenizer(folder / "tokenizer")
    texts = sentences(400, seed=1)
    utterances = [CodedUtterance(str(i), codes_of(t), t) for i, t in enumerate(texts)]
    utterances += [CodedUtterance("silent", [1, 2], None), CodedUtterance("endless", [1] * 300, "a " * 90)]
    config = TextToTokenConfig(
        out=folder / "model",
        codes=(new_codes(folder / "codes", tokenizer, utterances),),
        tokenizer=tokenizer,
        model=LmConfig(hidden=64, layers=2, heads=2, ffn=128, max_position_tokens=256),
        vocab_size=300,
        batch_utterances=16,
        row_tokens=96,
        train=TrainConfig(steps=260, lr=5e-3, warmup_steps=20, precision="fp32"),
    )
    run(config)
    return config


@pytest.fixture(scope="module")
def synthesizer(trained):
    return Synthesizer.load(trained.out)


def test_what_is_spoken_reads_back_as_the_text(trained, synthesizer):
    unseen = [t for t in sentences(100, seed=2) if t not in sentences(400, seed=1)]
    losses = [line["loss"] for line in read_metrics(trained.out / "log")]
    assert losses[-1] < 0.2 * losses[0]
    codes = synthesizer.speak(unseen, range(len(unseen)))
    assert all(0 <= code < len(LETTERS) for row in codes for code in row or [])
    assert read_back(LetterTokenizer(), codes, unseen).rate < 0.45
    others = codes[1:] + codes[:1]
    assert read_back(LetterTokenizer(), others, unseen).rate > 0.7


def test_codes_depend_on_text_and_seed_and_not_on_the_batch(trained, synthesizer):
    texts = sentences(20, seed=3)
    together = synthesizer.speak(texts, range(20))
    assert synthesizer.speak(texts[::-1], range(19, -1, -1))[::-1] == together
    assert [synthesizer.speak([t], [i])[0] for i, t in enumerate(texts)] == together
    assert Synthesizer.load(trained.out).speak(texts, range(20)) == together
    assert synthesizer.speak(texts, range(100, 120)) != together


def test_the_same_words_are_said_wherever_they_are_cut(synthesizer):
    assert synthesizer.speak(["Old, dog!"], [0]) == synthesizer.speak(['  "old dog'], [0])


def test_nothing_to_say_and_too_much_to_say_give_none(synthesizer):
    assert synthesizer.speak(["...", "a red dog " * 60, "a dog"], [0, 1, 2])[:2] == [None, None]
    assert synthesizer.speak([], []) == []


def test_a_model_that_never_ends_gives_none(trained, tmp_path):
    manifest = artifacts.read(trained.out)
    model, tokenizer = load_hf(trained.out, torch.float32)
    vocab = SpeechVocab.of(tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocab.end_of_audio_id] = 0
        model.get_input_embeddings().weight[vocab.first_audio_id : vocab.end_of_audio_id - 1] *= 9
    settings, parents = manifest.settings, {"tokenizer": artifacts.read(trained.tokenizer)}
    with artifacts.build(tmp_path / "endless", manifest.kind, settings, parents) as draft:
        save(model, tokenizer, draft.folder)
        draft.counts.update(manifest.counts)
    codes = Synthesizer.load(tmp_path / "endless").speak(sentences(8, seed=4), range(8))
    assert codes.count(None) > 4


def test_a_server_of_the_model_speaks_as_the_model_does(trained):
    """By ids and by text; what the stand-in says is read off the prompt, as a model that spells without fault would."""
    vocab = SpeechVocab.of(load_hf(trained.out, torch.float32)[1])
    texts = [*sentences(5, seed=6), "..."]

    def speak(body):
        *words, begin = body["prompt"]
        assert begin == vocab.begin_of_audio_id
        ids = [*vocab.codes_to_ids(codes_of(vocab.tokenizer.decode(words))).tolist(), vocab.end_of_audio_id]
        assert set(ids) <= set(body["allowed_token_ids"])
        assert body["stop_token_ids"] == ids[-1:]
        said = {"token_ids": ids} if body["seed"] % 2 else {"text": vocab.tokenizer.decode(ids[:-1])}
        return 200, completion(**said, finish_reason="stop")

    with served(StandIn(speak)) as url:
        spoken = Synthesizer.load(trained.out, url).speak(texts, range(6))
    assert spoken == [*map(codes_of, texts[:-1]), None]


def test_the_artifact_tells_what_it_was_made_from(trained, synthesizer):
    manifest = artifacts.read(trained.out)
    artifacts.require_parent(manifest, "tokenizer", artifacts.read(trained.tokenizer))
    assert (manifest.counts["utterances"], manifest.counts["left_out_utterances"]) == (400, 2)
    assert synthesizer.frame_rate_hz == 12.5
    assert run(trained) == manifest


@pytest.fixture(scope="module")
def choir(tmp_path_factory):
    """A model of two voices with codes of their own, each trained on the same texts; "high: up" has fewer."""
    folder = tmp_path_factory.mktemp("choir")
    tokenizer = new_tokenizer(folder / "tokenizer")
    voices = [("low", 0, 80), ("high: up", 7, 60), (None, 3, 9)]
    utterances = [
        CodedUtterance(f"{name} {i}", [first + code % 7 for code in codes_of(text)], text, speaker=name)
        for name, first, num in voices
        for i, text in enumerate(sentences(num, seed=1))
    ]
    config = TextToTokenConfig(
        out=folder / "model",
        codes=(new_codes(folder / "codes", tokenizer, utterances),),
        tokenizer=tokenizer,
        speakers=True,
        model=LmConfig(hidden=48, layers=2, heads=2, ffn=96, max_position_tokens=128),
        vocab_size=300,
        batch_utterances=16,
        row_tokens=96,
        train=TrainConfig(steps=60, lr=5e-3, warmup_steps=10, precision="fp32"),
    )
    run(config)
    return config


def test_each_speaker_has_a_voice(choir):
    counts = artifacts.read(choir.out).counts
    assert counts["speakers"] == {"low": 80, "high: up": 60}
    assert (counts["utterances"], counts["left_out_utterances"]) == (140, 9)
    synthesizer = Synthesizer.load(choir.out)
    assert synthesizer.speakers == ("low", "high: up")
    texts = sentences(12, seed=9)
    low, high = (synthesizer.speak(texts, range(12), [name] * 12) for name in synthesizer.speakers)
    assert synthesizer.speak(texts, range(12)) == low
    alternating = synthesizer.speak(texts, range(12), [*synthesizer.speakers] * 6)
    assert alternating == [(low, high)[i % 2][i] for i in range(12)]
    below, above = ([code < 7 for row in rows for code in row or []] for rows in (low, high))
    assert np.mean(below) > 0.95
    assert np.mean(above) < 0.05


def test_numbers_and_abbreviations_are_said_as_the_model_was_trained(trained, synthesizer, tmp_path, monkeypatch):
    manifest = artifacts.read(trained.out)

    def copy(name, settings):
        parents = {"tokenizer": artifacts.read(trained.tokenizer)}
        with artifacts.build(tmp_path / name, manifest.kind, settings, parents) as draft:
            save(*load_hf(trained.out, torch.float32), draft.folder)
            draft.counts.update(manifest.counts)
        return tmp_path / name

    monkeypatch.setitem(sys.modules, "num2words", Num2words)
    in_words = Synthesizer.load(copy("words", manifest.settings | {"normalize": "numbers"}))
    assert in_words.speak(["2 dogs ran", "a dog"], [0, 1]) == synthesizer.speak(["two dogs ran", "a dog"], [0, 1])
    assert in_words.normalize("1") != synthesizer.normalize("1") == "1"
    in_full = Synthesizer.load(copy("full", manifest.settings | {"abbreviations": [["2", "two"], ["d.", "dogs"]]}))
    assert in_full.speak(["2 d. ran", "a dog"], [0, 1]) == synthesizer.speak(["two dogs ran", "a dog"], [0, 1])
    of_normalizing = ("normalize", "language", "abbreviations")
    older = {name: value for name, value in manifest.settings.items() if name not in of_normalizing}
    assert Synthesizer.load(copy("older", older)).normalize("1") == "1"


def test_an_unknown_speaker_is_refused(choir, synthesizer):
    with pytest.raises(UserError, match=r"speaker 'Low' is none .* knows \(2\): give one of low, high: up"):
        Synthesizer.load(choir.out).speak(["a dog"], [0], ["Low"])
    with pytest.raises(UserError, match=r"speaker 'low' is none .* was trained without"):
        synthesizer.speak(["a dog"], [0], ["low"])


@given(st.text(), st.text(min_size=1))
def test_a_prompt_tells_speaker_and_text_apart(text, name):
    assert tokenizer_text(text, name).rsplit(": ", 1) == [f" {name}", spoken_form(text)]


def test_unfit_codes_are_refused(trained, tmp_path):
    other = new_tokenizer(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was made with tokenizer"):
        run(TextToTokenConfig(tmp_path / "out", trained.codes, other))
    speechless = [CodedUtterance(str(i), [1, 2, 3], None) for i in range(50)]
    codes = new_codes(tmp_path / "codes", trained.tokenizer, speechless)
    with pytest.raises(UserError, match="only 0 utterances"):
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer))
    short = [CodedUtterance(str(i), [1, 2, 3], "etc.") for i in range(50)]
    codes = new_codes(tmp_path / "short", trained.tokenizer, short)
    with pytest.raises(UserError, match="only 0 utterances"):  # nothing is left to say
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer, abbreviations=(("etc.", ""),)))
    with pytest.raises(UserError, match="abbreviations say 'x' for nothing"):
        run(TextToTokenConfig(tmp_path / "out", (codes,), trained.tokenizer, abbreviations=(("", "x"),)))
    with pytest.raises(UserError, match="row_tokens is 4096: give 2 to 2048, the positions"):
        run(TextToTokenConfig(tmp_path / "out", trained.codes, trained.tokenizer, row_tokens=4096))
    assert not (tmp_path / "out").exists()


def test_unsaid_text_counts_as_lost_words():
    error = read_back(LetterTokenizer(), [codes_of("a red dog"), None], ["A red dog.", "to me"])
    assert (error.rate, error.num_units) == (2 / 5, 5)
    assert read_back(LetterTokenizer(), [None], ["to me"]).rate == 1


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("\u201cDon\u2019t!\u201d he said", "don't he said"),
        ("At 10:30, 3.5% or $1,000.", "at 10:30 3.5% or $1,000"),
        ("well-known - 'quoted'", "well known quoted"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("...", ""),
    ],
)  # fmt: skip
def test_spoken_form(text, spoken):
    assert spoken_form(text) == spoken
    assert spoken_form(spoken) == spoken


def test_a_prompt_is_made_of_the_ids_of_its_words(trained):
    vocab = SpeechVocab.of(load_hf(trained.out, torch.float32)[1])
    joined = np.concatenate([prompt_ids(vocab, word)[:-1] for word in ("dog", "ran")])
    assert prompt_ids(vocab, "Dog ran.").tolist() == [*joined, vocab.begin_of_audio_id]
