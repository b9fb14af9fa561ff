"""Text-to-token and speech are read alike: by the gate in their codes, by a judge in the sound of their codes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.decoder.conftest import NUM_CODES, make_decoder
from tests.tokenizer.conftest import make_tokenizer, save_whisper
from weft import artifacts, cli
from weft.audio import resample, save
from weft.data.shards import write_codes
from weft.errors import UserError
from weft.eval.text_to_token import Judge, Sentence, by_voice, measure, occurrences
from weft.lm.model import LmConfig, new_lm
from weft.lm.model import save as save_lm
from weft.records import CodedUtterance
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.tokenizer.transcriber import Transcriber, windows
from weft.vocab import extend_tokenizer, train_text_tokenizer
from weft.voices import speak

TEXTS = ["The cat sat.", "On the mat Ann sat.", "The 9 cats", "..."]


def build(folder: Path, tokenizer: SpeechTokenizer) -> Path:
    """A bundle of random parts, and the codes that its text-to-token model was trained on."""
    settings = {"model": asdict(tokenizer.model.config), "base": "models/whisper"}
    with artifacts.build(folder / "tokenizer", "tokenizer", settings) as draft:
        tokenizer.save(draft.folder)
    ear = {"tokenizer": artifacts.read(folder / "tokenizer")}
    with artifacts.build(folder / "decoder", "decoder", {}, ear) as draft:
        make_decoder().save(draft.folder)
    for name in ("codes", "other_codes"):
        with artifacts.build(folder / name, "codes", {}, ear) as draft:
            write_codes(draft.folder, 0, [CodedUtterance(name, [1, 2], "The cat, the cat!")])
    parents = {**ear, "codes 0": artifacts.read(folder / "codes")}
    with artifacts.build(folder / "text_to_token", "text_to_token", {"temperature": 0.5}, parents) as draft:
        words = extend_tokenizer(train_text_tokenizer(TEXTS, 300), NUM_CODES)
        shape = LmConfig(hidden=32, layers=1, heads=2, ffn=32, max_position_tokens=256)
        save_lm(new_lm(shape, words, 0), words, draft.folder)
        draft.counts.update(frame_rate_hz=12.5, max_codes_per_character=9.0)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle"), make_tokenizer())


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("judge") / "whisper", multilingual=False)


@pytest.fixture(scope="module")
def judge(whisper: Path) -> Judge:
    return Judge(whisper, make_decoder(), seed=5)


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return make_tokenizer()


class Echo(Synthesizer):
    """Says the codes that it was given, one row a text, whatever the seed."""

    def __init__(self, bundle: Path, said: list[Any]) -> None:
        self.__dict__.update(Synthesizer.load(bundle / "text_to_token").__dict__)
        self.said = said

    def speak(self, texts: Any, seeds: Any, speakers: Any = None) -> list[Any]:
        assert len(texts) == len(seeds) == len(self.said)
        return self.said


def noise(num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=num_samples).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    return [Sentence(text, lambda i=i: noise(9_000 + 3_000 * i, i)) for i, text in enumerate(TEXTS)]  # type: ignore[misc]


def test_the_same_codes_give_the_same_figures(
    bundle: Path, tokenizer: SpeechTokenizer, judge: Judge, sentences: list[Sentence]
) -> None:
    codes = [c.tolist() for c in tokenizer.encode([s.sound() for s in sentences[:3]])]
    found = measure(Echo(bundle, codes), tokenizer, sentences, judge)
    assert (found["sentences"], found["left_out"]) == (3, 1)
    assert found["notes"]["judge"] == "whisper, a Whisper"
    for reader in ("gate", "judge"):
        assert set(found[reader]) == {"wer", "wrong_words"}
        for table in found[reader].values():
            for row in table.values():
                assert row["text_to_token"] == row["speech"]
                assert row["difference"]["rate"] == row["difference"]["high"] == 0
    assert "original" in found["judge"]["wer"]["all"]
    assert "original" not in found["gate"]["wer"]["all"]
    assert found["gate"]["wrong_words"]["numbers"]["words"] == found["gate"]["wrong_words"]["names"]["words"] == 1
    said, spoken = found["spoken"].values()
    assert said["codes_per_word"] == spoken["codes_per_word"] == sum(map(len, codes)) / 11


def test_what_is_not_said_is_wrong(bundle: Path, tokenizer: SpeechTokenizer, sentences: list[Sentence]) -> None:
    found = measure(Echo(bundle, [None, [], None]), tokenizer, sentences)
    assert found["spoken"]["text_to_token"]["unsaid_share"] == found["spoken"]["text_to_token"]["empty_share"] == 1
    assert all(row["text_to_token"]["rate"] == 1 for table in found["gate"].values() for row in table.values())
    assert "judge" not in found
    assert "none was given" in found["notes"]["judge"]


def test_a_judge_hears_the_sound_of_codes(judge: Judge, whisper: Path) -> None:
    codes = [[1, 2, 3, 4, 5, 6], [], [7] * 12]
    decoder = make_decoder()
    heard = Transcriber(whisper)(
        [resample(decoder.synthesize(c, 5 + i), decoder.sample_rate_hz) for i, c in enumerate(codes) if c], [None] * 2
    )
    assert judge.transcribe(codes, [None] * 3) == [heard[0].text, "", heard[1].text]
    assert len({h.text for h in heard}) == 2


def test_a_judge_hears_long_sounds_piece_by_piece(judge: Judge) -> None:
    sound = noise(60_000, 0)
    pieces = [sound[p.start : p.stop] for p in windows(sound, 38_400)]
    assert len(pieces) == 2
    whole, nothing, *parts = judge.hear([sound, sound[:0], *pieces], [None] * 4)
    assert (whole, nothing) == (" ".join(parts), "")


def test_sentences_of_a_corpus_are_spoken_by_a_voice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One ran. Two sat\nMr. Three hid.\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Four came."}) + "\n")
    sentences = by_voice([tmp_path / "a.txt", tmp_path / "b.jsonl"], "espeak:en-us")
    assert [s.text for s in sentences] == ["One ran.", "Two sat", "Mr. Three hid.", "Four came."]
    spoken = speak("Two sat", "espeak:en-us")
    assert np.array_equal(sentences[1].sound(), resample(spoken.samples, spoken.sample_rate_hz))
    with pytest.raises(UserError, match="no voice 'xx'"):
        by_voice([tmp_path / "a.txt"], "espeak:xx")


def test_words_are_counted_in_the_codes_that_a_model_was_trained_on(bundle: Path) -> None:
    model = Synthesizer.load(bundle / "text_to_token")
    assert occurrences([bundle / "codes"], model) == {"the": 2, "cat": 2}
    for wrong in (["other_codes"], ["codes", "other_codes"]):
        with pytest.raises(UserError, match="give the datasets that it was trained on"):
            occurrences([bundle / name for name in wrong], model)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    rows = [{"id": str(i), "audio": f"{i}.wav", "text": text, "language": "en"} for i, text in enumerate(TEXTS)]
    for i in range(len(TEXTS)):
        save(folder / f"{i}.wav", noise(9_000, i), 16_000)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_verb_writes_and_prints_it(
    bundle: Path, whisper: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "text-to-token", "--model", str(bundle), "--judge", str(whisper), "--seed", "3"]
    arguments += ["--speech", str(manifest), "--codes", str(bundle / "codes")]
    found = []
    for name in ("a.json", "b.json"):
        assert cli.run([*arguments, "--out", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name).read_text())["text-to-token"])
        for figures in found[-1]["spoken"].values():
            assert figures.pop("tokens_per_sec") > 0
    assert found[0] == found[1]
    assert found[0]["notes"]["judge"].startswith("whisper, a Whisper, and not independent")
    assert found[0]["gate"]["wrong_words"]["rare"]["words"] == 11
    printed = capsys.readouterr().out
    assert "1 to 5 words" in printed
    assert "difference" in printed
    assert cli.run([*arguments, "--out", str(tmp_path / "c.json"), "--num-sentences", "2"]) == 0
    fewer = json.loads((tmp_path / "c.json").read_text())["text-to-token"]
    assert fewer["sentences"] + fewer["left_out"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs sentences to say: give --texts CORPUS, or --speech MANIFEST"),
        (["--texts", "{}/none.txt"], "none.txt does not exist"),
        (["--texts", "{}/symbols.txt"], "there are no words in the texts to say (2 sentences)"),
        (["--texts", "{}/words.txt", "--voice", "espeak:xx"], "espeak has no voice 'xx'"),
        (["--texts", "{}/words.txt", "--judge", "{}"], "is not a Hugging Face Whisper"),
        (["--texts", "{}/words.txt", "--judge", "{bundle}/tokenizer"], "is not a Hugging Face Whisper"),
        (["--texts", "{}/words.txt", "--codes", "{bundle}/other_codes"], "give the datasets that it was trained on"),
        (["--texts", "{}/words.txt", "--speaker", "ann"], "speaker 'ann' is none that this text-to-token model knows"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "symbols.txt").write_text("...\n(!)\n")
    (tmp_path / "words.txt").write_text("The cat sat.\n")
    given = [a.format(tmp_path, bundle=bundle) for a in arguments]
    out = tmp_path / "results.json"
    assert cli.run(["eval", "text-to-token", "--model", str(bundle), "--out", str(out), *given]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_a_tokenizer_that_cannot_read_is_refused(bundle: Path, sentences: list[Sentence]) -> None:
    half = make_tokenizer()
    half.model.config = replace(half.model.config, encoder_only=True)
    with pytest.raises(UserError, match="is encoder_only, and cannot read codes back"):
        measure(Echo(bundle, []), half, sentences)
