"""`weft say` writes the audio of a text, and reports models and texts that do not fit."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.text_to_token.conftest import LETTERS, new_tokenizer
from weft import artifacts, cli
from weft.audio import load, save
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.errors import UserError
from weft.plan import Plan, open_draft
from weft.text_to_token.say import SayConfig, run
from weft.tokenizer.tokenizer import SpeechTokenizer


def new_decoder(folder, tokenizer, speakers=(), **settings):
    """Create a decoder with random weights."""
    flow = FlowConfig(width=8, heads=2, encoder_layers=1, estimator_layers=1, euler_steps=2, **settings)
    mel = MelConfig()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowDecoder(flow, len(LETTERS), 5 * mel.num_mels, len(speakers)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        decoder = SpeechDecoder(model, mel, speakers=speakers)
    with open_draft(folder, Plan("decoder", {}, {"tokenizer": artifacts.read(tokenizer)})) as draft:
        decoder.write_files(draft.folder)
    return folder


@pytest.fixture(scope="module")
def decoder(trained, tmp_path_factory):
    return new_decoder(tmp_path_factory.mktemp("say") / "decoder", trained.tokenizer)


def test_the_audio_of_the_codes_is_written(trained, synthesizer, decoder, tmp_path, capsys):
    out = tmp_path / "speech" / "x.wav"
    flags = ["--text-to-token", str(trained.out), "--decoder", str(decoder), "--out", str(out), "--seed", "1"]
    assert cli.run(["say", "A red dog.", *flags]) == 0
    [codes] = synthesizer.synthesize(["A red dog."], [1])
    speech = SpeechDecoder.from_pretrained(decoder)
    expected = speech.synthesize(codes, 1).clip(-1, 1)
    assert load(out, speech.sample_rate_hz) == pytest.approx(expected, abs=1e-3)
    assert f"{len(codes)} codes" in capsys.readouterr().out


def test_models_and_texts_that_do_not_fit_are_errors(trained, trained_with_speakers, decoder, tmp_path, monkeypatch):
    def config(text="a dog", decoder=decoder, out=tmp_path / "x.wav", **settings):
        return SayConfig(text, trained.out, decoder, out, **settings)

    other = new_decoder(tmp_path / "other", new_tokenizer(tmp_path / "tokenizer", seed=1))
    with pytest.raises(UserError, match="have different tokenizers: use models of one tokenizer"):
        run(config(decoder=other))
    with pytest.raises(UserError, match=r"there is nothing to pronounce in '\.\.\.': give words"):
        run(config("..."))
    with pytest.raises(UserError, match=r"must have the suffix \.wav"):
        run(config(out=tmp_path / "x.mp3"))
    with pytest.raises(UserError, match="has no speaker 'ann'"):
        run(config(speaker="ann"))
    with pytest.raises(UserError, match="the speech of this text repeats itself or does not end: try another --seed"):
        run(config("a red dog " * 60))
    assert not [*tmp_path.glob("x*")]


def test_the_voice_is_a_speaker_of_the_decoder_or_a_recording(trained, tmp_path, monkeypatch):
    decoder = new_decoder(tmp_path / "voices", trained.tokenizer, ("ann", "bob"), prompt_codes=4)
    seconds = 0.1 * np.sin(np.arange(16_000)).astype(np.float32)
    save(tmp_path / "voice.wav", seconds, 16_000)
    encoder = SimpleNamespace(encode=lambda audio: [np.arange(len(samples) // 1280) for samples in audio])
    monkeypatch.setattr(SpeechTokenizer, "from_pretrained", lambda folder: encoder)

    def say(**settings):
        config = SayConfig("a red dog", trained.out, decoder, tmp_path / "x.wav", seed=1, **settings)
        run(config)
        return load(config.out)

    prompt = {"voice_prompt": tmp_path / "voice.wav", "tokenizer": trained.tokenizer}
    sounds = [say(), say(voice="ann"), say(voice="bob"), say(**prompt), say(**prompt, voice="bob")]
    assert all(not np.array_equal(a, b) for a, b in combinations(sounds, 2))
    with pytest.raises(UserError, match="bobb is not a speaker of this decoder: give one of its 2 speakers"):
        say(voice="bobb")
    with pytest.raises(UserError, match="give --tokenizer"):
        say(voice_prompt=tmp_path / "voice.wav")
    with pytest.raises(UserError, match="tokenizer"):
        say(**{**prompt, "tokenizer": new_tokenizer(tmp_path / "other", seed=1)})
