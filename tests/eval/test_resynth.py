import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weft.audio import load, save
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval import resynth
from weft.eval.resynth import ResynthConfig, run
from weft.plan import Plan, open_draft
from weft.tokenizer.tokenizer import SpeechTokenizer


@pytest.fixture
def config(bundle: Path, speech: Path, tmp_path: Path) -> ResynthConfig:
    shutil.copytree(speech, tmp_path / "speech")
    return ResynthConfig(
        audio=(tmp_path / "speech",), tokenizer=bundle / "tokenizer", decoder=bundle / "decoder", out=tmp_path / "out"
    )


def test_audio_and_error_rates_are_those_of_the_codes(config: ResynthConfig) -> None:
    manifest = run(config)
    assert manifest.counts["utterances"] == 4
    tokenizer, decoder = (
        SpeechTokenizer.from_pretrained(config.tokenizer),
        SpeechDecoder.from_pretrained(config.decoder),
    )
    for i in range(4):
        codes = tokenizer.encode([load(str(config.audio[0] / f"{i}.wav"))])[0]
        expected = decoder.synthesize(codes, seed=i).clip(-1, 1)
        assert np.allclose(load(str(config.out / f"{i}.wav")), expected, atol=1e-4)
    results = json.loads((config.out / "results.json").read_text())
    assert {name: rate["rate"] for name, rate in results.items()} == {
        name: manifest.counts[name] for name in ("wer", "wer_original")
    }


def test_audio_is_identified_by_its_contents(config: ResynthConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = run(config)
    moved = config.audio[0].rename(config.out.parent / "moved")
    with monkeypatch.context() as patch:
        patch.setattr(resynth, "resynthesize", lambda *_: pytest.fail("it was resynthesized again"))
        assert run(replace(config, audio=(moved,))) == manifest
        with pytest.raises(UserError, match=r"was created with seed = 0 \(now 1\)"):
            run(replace(config, audio=(moved,), seed=1))
        save(moved / "2.wav", load(str(moved / "3.wav")), 16_000)
        with pytest.raises(UserError, match="was created with other contents of audio"):
            run(replace(config, audio=(moved,)))


def test_speech_without_transcripts_has_no_error_rates(config: ResynthConfig) -> None:
    (config.audio[0] / "manifest.jsonl").unlink()
    manifest = run(config)
    assert manifest.counts == {"utterances": 4, "skipped_utterances": 0}
    assert not (config.out / "results.json").exists()


def test_bad_utterances_are_skipped_and_do_not_change_the_others(
    config: ResynthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    (config.audio[0] / "1.wav").write_bytes(b"this is no audio")
    synthesize = SpeechDecoder.synthesize

    def limited(self: SpeechDecoder, codes: list[int], seed: int = 0) -> np.ndarray:
        if seed == 2:
            raise MemoryError
        return synthesize(self, codes, seed)

    monkeypatch.setattr(SpeechDecoder, "synthesize", limited)
    some = replace(config, out=config.out.with_name("some"), max_bad_fraction=0.5)
    manifest = run(some)
    assert manifest.counts["utterances"] == manifest.counts["skipped_utterances"] == 2
    for i in (0, 3):
        assert (some.out / f"{i}.wav").read_bytes() == (config.out / f"{i}.wav").read_bytes()
    listed = [json.loads(line)["where"] for line in (some.out / "log/skipped.jsonl").read_text().splitlines()]
    ids = [json.loads(line)["id"] for line in (config.audio[0] / "manifest.jsonl").read_text().splitlines()]
    assert listed == [ids[1], ids[2]]
    with pytest.raises(UserError, match="2 of 4 items are bad"):
        run(replace(some, out=config.out.with_name("none"), max_bad_fraction=0.1))


def test_only_some_recordings_are_in_memory_and_groups_do_not_matter(
    config: ResynthConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config)
    monkeypatch.setattr(resynth, "_UTTERANCES_PER_CALL", 3)
    encode, sizes = SpeechTokenizer.encode, list[int]()

    def counting(self: SpeechTokenizer, audio: list[np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(audio))
        return encode(self, audio)

    monkeypatch.setattr(SpeechTokenizer, "encode", counting)
    other = replace(config, out=config.out.with_name("other"))
    run(other)
    assert sizes == [3, 3, 1, 1]
    for name in ("0.wav", "1.wav", "2.wav", "3.wav", "results.json"):
        assert (other.out / name).read_bytes() == (config.out / name).read_bytes()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "x" * 300, "a/" * 900 + "x", "a/../0"])
def test_an_id_that_names_no_file_of_its_own_in_the_output_directory_is_a_bad_item(
    config: ResynthConfig, name: str
) -> None:
    rows = [{"id": "0", "audio": "0.wav"}, {"id": name, "audio": "1.wav"}]
    (config.audio[0] / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = run(replace(config, max_bad_fraction=0.5))
    assert manifest.counts["utterances"] == manifest.counts["skipped_utterances"] == 1
    assert [path.name for path in config.out.rglob("*.wav")] == ["0.wav"]
    [listed] = map(json.loads, (config.out / "log/skipped.jsonl").read_text().splitlines())
    assert re.search("cannot name a file|names the file of another", listed["why"])


def test_a_decoder_of_another_tokenizer_is_rejected(config: ResynthConfig, tmp_path: Path) -> None:
    decoder = SpeechDecoder.from_pretrained(config.decoder)
    with open_draft(tmp_path / "decoder", Plan("decoder", {})) as draft:
        decoder.write_files(draft.folder)
    with pytest.raises(UserError, match="this decoder was made with tokenizer None"):
        run(replace(config, decoder=tmp_path / "decoder"))
