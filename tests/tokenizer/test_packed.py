from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import make_tokenizer
from weft import artifacts
from weft.config import settings_of
from weft.errors import UserError
from weft.tokenizer.packed import Recordings, first_half, to_bf16
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer

SETTINGS: list[dict[str, Any]] = [
    {},
    {"pooling": 2, "pooling_type": "max", "pooling_layer": 1, "block_frames": 24},
    {"pooling": 1, "block_frames": 50},
    {"block_frames": 0, "causal_convolution": False, "log_mel_floor": "window"},
    {"block_frames": 80, "causal_convolution": False, "pooling_layer": 1},
    {"block_frames": 0, "pooling_type": "max", "log_mel_floor": "window"},
]
TOKENIZERS = [make_tokenizer(**given) for given in SETTINGS]
WINDOW_SAMPLES = 38_400


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loudness = np.abs(np.sin(np.arange(num_samples) / 2500 + seed)) * 0.2
    return (rng.normal(size=num_samples) * loudness).astype(np.float32)


def padded(tokenizer: SpeechTokenizer, sounds: list[np.ndarray]) -> list[torch.Tensor]:
    """Hidden states (n, D) of each sound, of at most a window, as training computes them."""
    features = [tokenizer.features(x) for x in sounds]
    batch, valid = tokenizer.collate(features, [len(x) for x in sounds])
    hidden = tokenizer.model.first_half(batch, valid)
    return [h[real] for h, real in zip(hidden, tokenizer.real_codes(valid), strict=True)]


def packed(tokenizer: SpeechTokenizer, sounds: list[np.ndarray]) -> torch.Tensor:
    num_codes = [-(-len(x) // tokenizer.samples_per_code) for x in sounds]
    recordings = Recordings(
        [n * tokenizer.model.config.pooling for n in num_codes], [-(-len(x) // 320) for x in sounds]
    )
    return first_half(tokenizer.model, [tokenizer.features(x) for x in sounds], recordings)


@settings(max_examples=40)
@given(
    tokenizer=st.sampled_from(TOKENIZERS),
    lengths=st.lists(st.integers(1, WINDOW_SAMPLES), min_size=1, max_size=6),
)
@torch.no_grad()
def test_packed_equals_padded(tokenizer: SpeechTokenizer, lengths: list[int]) -> None:
    sounds = [noise(n, seed) for seed, n in enumerate(sorted(lengths, reverse=True))]
    expected = torch.cat(padded(tokenizer, sounds))
    assert torch.allclose(packed(tokenizer, sounds), expected, atol=1e-4)


@settings(max_examples=25)
@given(
    tokenizer=st.sampled_from(TOKENIZERS),
    lengths=st.lists(st.integers(1, WINDOW_SAMPLES), min_size=2, max_size=6),
)
@torch.no_grad()
def test_no_recording_hears_another(tokenizer: SpeechTokenizer, lengths: list[int]) -> None:
    sounds = [noise(n, seed) for seed, n in enumerate(sorted(lengths, reverse=True))]
    alone = torch.cat([packed(tokenizer, [x]) for x in sounds])
    assert torch.allclose(packed(tokenizer, sounds), alone, atol=1e-4)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_codes_are_the_same_alone_and_in_any_company(tokenizer: SpeechTokenizer) -> None:
    lengths = [5_000, 0, 2 * WINDOW_SAMPLES + 999, 1, WINDOW_SAMPLES, 23_456, WINDOW_SAMPLES + 1, 1280, 30_001]
    sounds = [noise(n, seed) for seed, n in enumerate(lengths)]
    alone = [tokenizer.encode([x])[0].tolist() for x in sounds]
    assert [codes.tolist() for codes in tokenizer.encode(sounds)] == alone
    assert [codes.tolist() for codes in tokenizer.encode(sounds[::-1])] == alone[::-1]
    assert [len(codes) for codes in alone] == [-(-n // tokenizer.samples_per_code) for n in lengths]


@torch.no_grad()
def test_bf16_weights_hear_nearly_the_same(tokenizer: SpeechTokenizer) -> None:
    sounds = [noise(n, n) for n in (38_000, 21_000, 900)]
    expected = packed(tokenizer, sounds)
    to_bf16(tokenizer.model)
    heard = packed(tokenizer, sounds)
    assert heard.dtype == torch.float32
    error = float((heard - expected).norm() / expected.norm())
    assert 0 < error < 0.02


@pytest.mark.parametrize("floor", ["fixed", "window"])
def test_features_are_those_of_each_sound_alone(floor: str) -> None:
    """However many are computed together; their windows are as long as the longest of the same recording."""
    tokenizer = make_tokenizer(log_mel_floor=floor)
    sounds = [noise(n, n) for n in (38_400, 5_000, 1)]
    together = tokenizer._features(sounds, [38_400, 5_000, 20_000])
    whole = [np.pad(x, (0, n - len(x))) for x, n in zip(sounds, (38_400, 5_120, 20_480), strict=True)]
    for features, x in zip(together, whole, strict=True):
        theirs = tokenizer.log_mel(torch.from_numpy(x))[0, :, : features.shape[1]]
        last = features.shape[1] - (floor == "fixed")  # Whisper mirrors the end, and a stream cannot
        assert torch.allclose(features[:, :last], theirs[:, :last], atol=1e-5)


@torch.no_grad()
def test_attention_is_the_same_by_products_and_by_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = [noise(n, n) for n in (38_400, 30_000, 30_000, 12_345, 700)]
    for tokenizer in TOKENIZERS:
        by_products = packed(tokenizer, sounds)
        with monkeypatch.context() as patch:
            patch.setattr("weft.tokenizer.packed._MAX_SCORES", 0)
            assert torch.allclose(packed(tokenizer, sounds), by_products, atol=1e-4)


def test_bf16_makes_codes_and_changes_no_transcript(tmp_path: Path) -> None:
    with artifacts.build(tmp_path / "t", KIND, {"model": settings_of(TOKENIZERS[0].model.config)}) as draft:
        TOKENIZERS[0].save(draft.folder)
    exact, rounded = SpeechTokenizer.load(tmp_path / "t"), SpeechTokenizer.load(tmp_path / "t", "bf16")
    codes = rounded.encode([noise(38_000)])
    assert len(codes[0]) == 30
    assert rounded.transcribe(codes) == exact.transcribe(codes)
    kept, theirs = exact.model.state_dict(), rounded.model.state_dict()
    changed = [name for name in kept if kept[name].dtype != theirs[name].dtype]
    before = ("whisper.model.encoder.conv", "whisper.model.encoder.layers.0.", "whisper.model.encoder.layers.1.")
    assert changed
    assert all(name.startswith(before) for name in changed)
    for refused in (lambda: rounded.transcribe_open([noise(100)]), lambda: rounded.save(tmp_path / "lossy")):
        with pytest.raises(UserError, match=r'loaded in bf16.*precision = "fp32"'):
            refused()
