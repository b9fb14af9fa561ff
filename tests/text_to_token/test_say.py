"""`weft say` writes the audio of a text, and reports models and texts that do not fit."""

import pytest
import torch

from tests.text_to_token.conftest import LETTERS, new_tokenizer
from weft import artifacts, cli
from weft.audio import load
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.errors import UserError
from weft.plan import Plan, open_draft
from weft.text_to_token.say import SayConfig, run


def new_decoder(folder, tokenizer):
    """Create a decoder with random weights."""
    flow = FlowConfig(width=8, heads=2, encoder_layers=1, estimator_layers=1, euler_steps=2)
    mel = MelConfig()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = SpeechDecoder(FlowDecoder(flow, len(LETTERS), 5 * mel.num_mels).eval(), mel)
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
