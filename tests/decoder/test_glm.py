from pathlib import Path

import numpy as np
import pytest
import torch

from tests.decoder.conftest import write_tokenizer
from tests.decoder.published.test_flow import MEL, randomized
from weft.decoder.decoder import PublishedDecoder, SpeechDecoder
from weft.decoder.flow import FlowConfig
from weft.decoder.glm import ImportConfig, read_config, run
from weft.decoder.init import load_base
from weft.decoder.mel import MelConfig
from weft.errors import UserError

CONFIG = """
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.cuda.manual_seed_all [1986]
sample_rate: 22050
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    output_size: 8
    spk_embed_dim: 4
    vocab_size: 20
    input_frame_rate: 12.5
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        output_size: 16
        attention_heads: 2
        num_blocks: 2
        linear_units: 32
        block_size: 4
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {sigma_min: 1.0e-06, inference_cfg_rate: 0.7}
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            channels: [16, 16]
            num_mid_blocks: 1
            n_blocks: 1
            num_heads: 2
            attention_head_dim: 8
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    sampling_rate: !ref <sample_rate>
    base_channels: 16
    nb_harmonics: 2
    upsample_rates: [8, 8]
    istft_params: {n_fft: 16, hop_len: 4}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: 8
"""


@pytest.fixture
def released(tmp_path: Path) -> Path:
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    flow, hift = read_config(folder / "config.yaml").models()
    torch.save(randomized(flow).state_dict(), folder / "flow.pt")
    torch.save(randomized(hift, 0.1).state_dict(), folder / "hift.pt")
    return folder


def test_the_configuration_is_read_as_data(released: Path) -> None:
    config = read_config(released / "config.yaml")
    flow, hift = config.published, config.hift
    assert (config.num_codes, config.code_rate_hz, config.mel) == (20, 12.5, MEL)
    assert (flow.encoder.width, flow.encoder.layers, flow.encoder.ffn, flow.encoder.block_codes) == (16, 2, 32, 4)
    assert (flow.estimator.channels, flow.estimator.transformers, flow.estimator.head_width) == (16, 1, 8)
    assert (hift.channels, hift.f0_channels, hift.frame_samples) == (16, 8, 256)


def test_an_imported_decoder_is_the_released_one(released: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    manifest = run(ImportConfig(released, tmp_path / "decoder", tmp_path / "tokenizer"))
    decoder = SpeechDecoder.from_pretrained(tmp_path / "decoder")
    assert isinstance(decoder, PublishedDecoder)
    assert decoder.manifest.fingerprint == manifest.fingerprint
    weights = torch.load(released / "flow.pt", weights_only=True)
    assert all(torch.equal(weight, weights[name]) for name, weight in decoder.published.state_dict().items())
    codes = np.arange(11)
    samples = decoder.synthesize(codes, seed=1)
    assert samples.shape == (11 * decoder.samples_per_code,) == (11 * 1764,)
    stream = decoder.stream(seed=1)
    assert np.array_equal(np.concatenate([*(stream.push([int(c)]) for c in codes), stream.finish()]), samples)
    with pytest.raises(UserError, match="give none"):
        decoder.speaker("anna")
    with pytest.raises(UserError, match="give no voice prompt"):
        decoder.prompt([1], np.ones(1764, np.float32), 22_050)
    with pytest.raises(UserError, match='is of kind = "published"'):
        load_base(tmp_path / "decoder", FlowConfig(), MelConfig())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flow: !!python/object/apply:os.system ['touch made']\n", 1),
        ("a: 1\nflow: !new:os.system [touch made]\n", 2),
        ("a: 1\nb: !apply:subprocess.run [touch]\n", 2),
        ("flow:\n    encoder:\n        x: !name:builtins.eval {}\n", 3),
    ],
)
def test_names_of_other_objects_are_refused_with_their_line(
    released: Path, tmp_path: Path, text: str, line: int
) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    (released / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=f"line {line} has .*would construct an object"):
        run(ImportConfig(released, tmp_path / "out", tmp_path / "tokenizer"))
    assert not Path("made").exists()


def test_incomplete_and_damaged_weights_are_refused(released: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    config = ImportConfig(released, tmp_path / "out", tmp_path / "tokenizer")
    with pytest.raises(UserError, match="give --tokenizer"):
        run(ImportConfig(released, tmp_path / "out"))
    weights = torch.load(released / "flow.pt", weights_only=True)
    torch.save({**weights, "to_mel.weight": torch.full_like(weights["to_mel.weight"], torch.nan)}, released / "flow.pt")
    with pytest.raises(UserError, match="to_mel"):
        run(config)
    weights.pop("to_mel.weight")
    torch.save(weights, released / "flow.pt")
    with pytest.raises(UserError, match="to_mel"):
        run(config)
    (released / "flow.pt").write_bytes(b"this is no file of weights")
    with pytest.raises(UserError, match="GLM-4-Voice decoder"):
        run(config)
    assert not (tmp_path / "out").exists()
