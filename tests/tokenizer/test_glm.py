"""Imported tokenizers give the codes of the released inference code, which is reimplemented here in NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor

from weft import cli
from weft.errors import UserError
from weft.tokenizer.glm import ImportConfig, run
from weft.tokenizer.tokenizer import SpeechTokenizer

Weights = dict[str, np.ndarray]
Settings = dict[str, Any]
WIDTH, HEADS = 16, 2
SECOND = 16_000

RELEASED: Settings = {
    "num_mel_bins": 128,
    "encoder_causal_convolution": True,
    "pooling_kernel_size": 4,
    "pooling_type": "avg",
    "pooling_position": 2,
    "quantize_position": 2,
    "quantize_causal_block_size": 200,
}
EARLY_MAXIMUM = RELEASED | {
    "num_mel_bins": 80,
    "pooling_type": "max",
    "pooling_position": 1,
    "quantize_causal_block_size": 40,
}
SYMMETRIC_AND_FULL: Settings = {  # settings that are left out have the released code's defaults
    "num_mel_bins": 80,
    "pooling_kernel_size": 2,
    "pooling_type": "avg",
    "pooling_position": 1,
    "quantize_position": 2,
}
UNPOOLED: Settings = {"num_mel_bins": 80, "encoder_causal_convolution": True, "quantize_position": 1}


def noise(num_samples: int) -> np.ndarray:
    rng = np.random.default_rng(num_samples)
    swell = np.abs(np.sin(np.arange(num_samples) / 9000)) ** 3
    return (rng.normal(size=num_samples) * swell * 0.2).astype(np.float32)


# The released code, from samples to hidden states and codes, one window at a time, in double precision.


def log_mels(settings: Settings, samples: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the features (M, 2T) of each window of 30 s with its valid mel frames, all padded to one length."""
    extractor = WhisperFeatureExtractor(feature_size=settings["num_mel_bins"])
    windows = [samples[start : start + 30 * SECOND] for start in range(0, len(samples), 30 * SECOND)]
    samples_per_code = 320 * (settings.get("pooling_kernel_size") or 1)
    found = extractor(
        windows,
        sampling_rate=SECOND,
        return_attention_mask=True,
        padding="longest",
        pad_to_multiple_of=samples_per_code,
    )
    return [(np.float64(f), np.array(m)) for f, m in zip(found["input_features"], found["attention_mask"], strict=True)]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + torch.erf(torch.from_numpy(x / 2**0.5)).numpy())


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, causal: bool) -> np.ndarray:
    """Convolve (C, T) to (D, T / stride) with three taps, of which the last is the current frame if causal."""
    padded = np.pad(x, ((0, 0), (2, 0) if causal else (1, 1)))
    taps = [weight[:, :, k] @ padded[:, k : k + x.shape[1]] for k in range(3)]
    return (sum(taps) + bias[:, None])[:, ::stride]


def normalize(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    scale = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def layer_output(x: np.ndarray, weights: Weights, layer: str, block: int | None, valid: np.ndarray) -> np.ndarray:
    position = np.arange(len(x))
    mask = valid[None, :].repeat(len(x), 0)
    if block:
        mask &= (position[:, None] >= position) | (position[:, None] // block == position // block)
    y = normalize(x, weights, f"{layer}.self_attn_layer_norm")
    q, k, v = (linear(y, weights, f"{layer}.self_attn.{n}_proj") for n in "qkv")
    heads = []
    for head in np.split(np.arange(WIDTH), HEADS):
        scores = np.where(mask, q[:, head] @ k[:, head].T / np.sqrt(len(head)), -np.inf)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
    x = x + linear(np.concatenate(heads, 1), weights, f"{layer}.self_attn.out_proj")
    y = normalize(x, weights, f"{layer}.final_layer_norm")
    return x + linear(gelu(linear(y, weights, f"{layer}.fc1")), weights, f"{layer}.fc2")


def hidden_states(weights: Weights, settings: Settings, mels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the input of the quantizer in one window without padding, (tokens, WIDTH)."""
    causal = settings.get("encoder_causal_convolution", False)
    x = gelu(convolve(mels, weights["conv1.weight"], weights["conv1.bias"], 1, causal))
    x = gelu(convolve(x, weights["conv2.weight"], weights["conv2.bias"], 2, causal)).T
    x = x + weights["embed_positions.weight"][: len(x)]
    valid = valid[::2].astype(bool)
    block, kernel = settings.get("quantize_causal_block_size"), settings.get("pooling_kernel_size")
    for index in range(settings["quantize_position"]):
        x = layer_output(x, weights, f"layers.{index}", block, valid)
        if kernel and index + 1 == settings["pooling_position"]:
            groups = [x[at : at + kernel] for at in range(0, len(x), kernel)]
            x = np.array([g.mean(0) if settings["pooling_type"] == "avg" else g.max(0) for g in groups])
            valid = valid[::kernel]
            block = block and block // kernel
    return x[valid]


def reference_codes(weights: Weights, states: np.ndarray) -> list[int]:
    return [int(((weights["codebook.weight"] - state) ** 2).sum(1).argmin()) for state in states]


# Released directories with random weights.


def random_weights(settings: Settings, num_layers: int) -> Weights:
    rng = np.random.default_rng(3)
    mels = settings["num_mel_bins"]
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (WIDTH, mels, 3),
        "conv1.bias": (WIDTH,),
        "conv2.weight": (WIDTH, WIDTH, 3),
        "conv2.bias": (WIDTH,),
        "embed_positions.weight": (1500, WIDTH),
        "embed_positions2.weight": (1500 // (settings.get("pooling_kernel_size") or 1), WIDTH),
    }
    for i in range(num_layers):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"layers.{i}.self_attn.{name}.weight"] = (WIDTH, WIDTH)
            if name != "k_proj":
                shapes[f"layers.{i}.self_attn.{name}.bias"] = (WIDTH,)
        shapes |= {f"layers.{i}.fc1.weight": (32, WIDTH), f"layers.{i}.fc1.bias": (32,)}
        shapes |= {f"layers.{i}.fc2.weight": (WIDTH, 32), f"layers.{i}.fc2.bias": (WIDTH,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"layers.{i}.{name}.weight": (WIDTH,), f"layers.{i}.{name}.bias": (WIDTH,)}
    made = {name: rng.normal(size=shape) * shape[-1] ** -0.3 for name, shape in shapes.items()}
    made["conv1.weight"] *= 0.2
    states = np.concatenate(
        [hidden_states(made, settings, *window) for window in log_mels(settings, noise(10 * SECOND))]
    )
    near = states[rng.permutation(len(states))[:60]]
    made["codebook.weight"] = near + rng.normal(size=near.shape) * states.std() * 0.1
    return {name: value.astype(np.float32).astype(np.float64) for name, value in made.items()}


def publish(folder: Path, settings: Settings, prefix: str = "", **unknown: int) -> Weights:
    """Write a released directory. With a prefix, it has a complete encoder and a text decoder."""
    num_layers = settings["quantize_position"] + (1 if prefix else 0)
    weights = random_weights(settings, num_layers)
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperVQEncoder"],
        "d_model": WIDTH,
        "encoder_layers": 32,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "decoder_layers": 1,
        "quantize_vocab_size": len(weights["codebook.weight"]),
        "quantize_ema_decay": 0.99,
        "quantize_commit_coefficient": 0.25,
        "quantize_loss_scale": 10.0,
        "quantize_encoder_only": not prefix,
        "skip_language_detection": True,
        **settings,
    }
    files = {**weights, "ema_count": np.ones(60), "ema_weight": weights["codebook.weight"]}
    if prefix:
        files |= {"layer_norm.weight": np.ones(WIDTH), "layer_norm.bias": np.ones(WIDTH)}
    tensors = {prefix + name: torch.from_numpy(value).float().contiguous() for name, value in files.items()}
    if prefix:
        tensors |= {"model.decoder.embed_tokens.weight": torch.ones(9, WIDTH), "proj_out.weight": torch.ones(9, WIDTH)}
    tensors |= {name: torch.ones(size) for name, size in unknown.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    features = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": settings["num_mel_bins"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    return weights


def contains(packed: torch.Tensor, states: np.ndarray) -> bool:
    """Whether the rows of `packed` contain hidden states (n, D)."""
    rows = range(len(packed) - len(states) + 1)
    return any(np.allclose(packed[r : r + len(states)], states, rtol=0, atol=2e-4) for r in rows)


SHORT = [1, 319, 321, 700, 1279, 1280, 1281, 5 * 1280 - 20, 16_000, 5 * SECOND + 333]
LONG = [30 * SECOND, 30 * SECOND + 1, 30 * SECOND + 7 * 1280, 62 * SECOND + 77]


@pytest.mark.parametrize(
    ("settings", "prefix", "lengths"),
    [
        (RELEASED, "", SHORT + LONG),
        (RELEASED, "model.encoder.", SHORT),
        (EARLY_MAXIMUM, "model.encoder.", SHORT),
        (SYMMETRIC_AND_FULL, "", SHORT + LONG[2:3]),
        (UNPOOLED, "model.encoder.", SHORT),
    ],
)
def test_codes_are_those_of_the_released_code(
    settings: Settings, prefix: str, lengths: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = publish(tmp_path / "released", settings, prefix)
    run(ImportConfig(tmp_path / "released", tmp_path / "ours"))
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "ours")
    encode, quantized = tokenizer.model.quantizer.encode, list[torch.Tensor]()

    def record(hidden: torch.Tensor) -> torch.Tensor:
        quantized.append(hidden)
        return encode(hidden)

    monkeypatch.setattr(tokenizer.model.quantizer, "encode", record)
    expected = []
    for samples in map(noise, lengths):
        quantized.clear()
        windows = [hidden_states(weights, settings, *window) for window in log_mels(settings, samples)]
        expected.append([code for states in windows for code in reference_codes(weights, states)])
        assert tokenizer.encode([samples])[0].tolist() == expected[-1]
        for states in windows:
            assert any(contains(found, states) for found in quantized)
    together = tokenizer.encode([noise(n) for n in lengths if n < 30 * SECOND])
    assert [codes.tolist() for codes in together] == expected[: len(together)]
    assert len({code for codes in expected for code in codes}) > 30


def test_an_imported_tokenizer_computes_codes_and_nothing_else(tmp_path: Path) -> None:
    publish(tmp_path / "released", RELEASED, "model.encoder.")
    made = run(ImportConfig(tmp_path / "released", tmp_path / "ours"))
    assert run(ImportConfig(tmp_path / "released", tmp_path / "ours")) == made
    kept = load_file(tmp_path / "ours/model.safetensors")
    assert made.counts["parameters"] == sum(t.numel() for t in kept.values())
    assert not [name for name in kept if "decoder" in name or "layers.2." in name or "ema" in name]
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "ours")
    assert not any(p.is_meta for p in tokenizer.model.state_dict().values())
    with pytest.raises(UserError, match="encoder_only and cannot transcribe codes"):
        tokenizer.transcribe([[1, 2, 3]])
    with pytest.raises(UserError, match="floor"):
        tokenizer.stream()


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    publish(tmp_path / "released", RELEASED, extra=3)
    file = tmp_path / "released/model.safetensors"
    weights = load_file(file)
    del weights["layers.1.fc2.bias"], weights["codebook.weight"]
    save_file(weights, file)
    with pytest.raises(UserError) as e:
        run(ImportConfig(tmp_path / "released", tmp_path / "ours"))
    for word in ("lacks", "codebook.weight", "layers.1.fc2.bias", "extra"):
        assert word in str(e.value)
    assert not (tmp_path / "ours").exists()


def changed(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"model_type": "bert"}, ["not a GLM-4-Voice tokenizer", "bert"]),
        ("config.json", {"quantize_vocab_size": None}, ["not a GLM-4-Voice tokenizer", "quantize_vocab_size"]),
        ("config.json", {"quantize_vocab_size": 61}, ["codebook.weight", "[60, 16]", "[61, 16]"]),
        ("config.json", {"pooling_position": 3}, ["pooling_position is 3"]),
        ("config.json", {"pooling_type": "median"}, ["median"]),
        ("config.json", {"max_source_positions": 750}, ["max_source_positions", "750"]),
        ("preprocessor_config.json", {"hop_length": 320}, ["hop_length", "320"]),
        ("preprocessor_config.json", {"feature_size": 80}, ["feature_size", "80"]),
    ],
)
def test_an_unsupported_configuration_is_reported_in_one_line(
    file: str, values: Settings, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "released"
    publish(folder, RELEASED)
    changed(folder, file, **values)
    assert cli.run(["import-glm", str(folder), "--out", str(tmp_path / "ours")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["released"]


@pytest.mark.parametrize("content", [{}, {"flow.pt": b""}, {"config.json": b"no json"}, {"config.json": b"[]"}])
def test_a_directory_without_a_tokenizer_is_reported_in_one_line(
    content: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, value in content.items():
        (folder / name).write_bytes(value)
    for given in (folder, tmp_path / "nowhere"):
        assert cli.run(["import-glm", str(given), "--out", str(tmp_path / "ours")]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert str(given) in message
