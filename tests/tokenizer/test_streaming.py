import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import make_tokenizer
from weft.errors import UserError
from weft.tokenizer.tokenizer import SpeechTokenizer


def noise(num_samples: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return (rng.normal(size=num_samples) * np.abs(np.sin(np.arange(num_samples) / 3000)) * 0.2).astype(np.float32)


SHARED = make_tokenizer()
POOLED_EARLY = make_tokenizer(pooling_layer=1, pooling_type="max", block_frames=80)  # 1.5 blocks in a window


@settings(max_examples=30)
@given(
    tokenizer=st.sampled_from([SHARED, POOLED_EARLY]),
    cuts=st.lists(st.integers(0, 20_000), max_size=12),
    num_samples=st.integers(1, 90_000),
)
def test_chunked_equals_whole(tokenizer: SpeechTokenizer, cuts: list[int], num_samples: int) -> None:
    x = noise(num_samples)
    stream, codes, at = tokenizer.stream(), [], 0
    for cut in [*cuts, num_samples]:
        codes.append(stream.push(x[at : at + cut]))
        at += cut
    codes.append(stream.push(x[at:]))
    codes.append(stream.finish())
    assert np.concatenate(codes).tolist() == tokenizer.encode([x])[0].tolist()


def test_a_block_is_given_as_soon_as_it_is_heard(tokenizer: SpeechTokenizer) -> None:
    stream = tokenizer.stream()
    block = tokenizer.codes_per_block * tokenizer.samples_per_code
    assert len(stream.push(noise(block + 39))) == 0
    assert len(stream.push(noise(1))) == tokenizer.codes_per_block


def test_streams_do_not_touch_each_other_and_begin_anew_after_finish(tokenizer: SpeechTokenizer) -> None:
    x, y = noise(30_000), noise(50_000)[20_000:]
    one, other = tokenizer.stream(), tokenizer.stream()
    first = [one.push(x[:20_000]), other.push(y[:20_000]), one.push(x[20_000:]), other.push(y[20_000:])]
    got = np.concatenate([first[0], first[2], one.finish()])
    assert got.tolist() == tokenizer.encode([x])[0].tolist()
    assert np.concatenate([first[1], first[3], other.finish()]).tolist() == tokenizer.encode([y])[0].tolist()
    again = np.concatenate([one.push(x), one.finish()])
    assert again.tolist() == got.tolist()


@pytest.mark.parametrize(
    ("setting", "value"), [("causal_convolution", False), ("block_frames", 0), ("log_mel_floor", "window")]
)
def test_what_hears_the_future_is_refused(setting: str, value: object) -> None:
    with pytest.raises(UserError, match=f"cannot stream.*{setting}"):
        make_tokenizer(**{setting: value}).stream()


def test_a_floor_that_needs_the_whole_window_is_refused(tokenizer: SpeechTokenizer) -> None:
    object.__setattr__(tokenizer.model.config, "log_mel_floor", "window")
    with pytest.raises(UserError, match="floor"):
        tokenizer.stream()
