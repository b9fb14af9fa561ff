import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import SETTINGS, noise, shared_tokenizer
from weft.tokenizer.packed import Recordings, to_bf16, to_bottleneck
from weft.tokenizer.tokenizer import SpeechTokenizer

WINDOW_SAMPLES = 38_400
NUMBERS = st.integers(0, len(SETTINGS) - 1)


def padded(tokenizer: SpeechTokenizer, recordings: list[np.ndarray]) -> list[torch.Tensor]:
    """Hidden states (N, D) of each recording of at most a window, as training computes them."""
    features = [tokenizer.features([x], [len(x)])[0] for x in recordings]
    batch, valid = tokenizer.features.collate(features, [len(x) for x in recordings])
    hidden = tokenizer.model.to_bottleneck(batch, valid)
    return [h[v] for h, v in zip(hidden, tokenizer.valid_codes(valid), strict=True)]


def packed(tokenizer: SpeechTokenizer, recordings: list[np.ndarray]) -> torch.Tensor:
    """Hidden states (N, D) of all recordings, the longest first, as tokenization computes them."""
    num_codes = [-(-len(x) // tokenizer.samples_per_code) for x in recordings]
    num_frames = [n * tokenizer.model.config.pooling for n in num_codes]
    lengths = Recordings(num_frames, [-(-len(x) // 320) for x in recordings])
    return to_bottleneck(tokenizer.model, [tokenizer.features([x], [len(x)])[0] for x in recordings], lengths)


@settings(max_examples=40)
@given(number=NUMBERS, lengths=st.lists(st.integers(1, WINDOW_SAMPLES), min_size=1, max_size=6))
@torch.no_grad()
def test_packed_equals_padded(number: int, lengths: list[int]) -> None:
    tokenizer = shared_tokenizer(number)
    recordings = [noise(n, seed) for seed, n in enumerate(sorted(lengths, reverse=True))]
    expected = torch.cat(padded(tokenizer, recordings))
    assert torch.allclose(packed(tokenizer, recordings), expected, atol=1e-4)


@settings(max_examples=25)
@given(number=NUMBERS, lengths=st.lists(st.integers(1, WINDOW_SAMPLES), min_size=2, max_size=6))
@torch.no_grad()
def test_packed_recordings_do_not_affect_each_other(number: int, lengths: list[int]) -> None:
    tokenizer = shared_tokenizer(number)
    recordings = [noise(n, seed) for seed, n in enumerate(sorted(lengths, reverse=True))]
    alone = torch.cat([packed(tokenizer, [x]) for x in recordings])
    assert torch.allclose(packed(tokenizer, recordings), alone, atol=1e-4)


@torch.no_grad()
def test_bf16_weights_give_nearly_the_same_hidden_states(tokenizer: SpeechTokenizer) -> None:
    recordings = [noise(n, n) for n in (38_000, 21_000, 900)]
    expected = packed(tokenizer, recordings)
    to_bf16(tokenizer.model)
    found = packed(tokenizer, recordings)
    assert found.dtype == torch.float32
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < 0.02


@torch.no_grad()
def test_attention_is_the_same_by_plain_products_and_by_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [noise(n, n) for n in (38_400, 30_000, 30_000, 12_345, 700)]
    for number in range(len(SETTINGS)):
        tokenizer = shared_tokenizer(number)
        plain = packed(tokenizer, recordings)
        with monkeypatch.context() as patch:
            patch.setattr("weft.tokenizer.packed._MAX_SCORES", 0)
            assert torch.allclose(packed(tokenizer, recordings), plain, atol=1e-4)
