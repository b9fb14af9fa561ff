"""Properties of the stream, which hold for any weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoder.conftest import NUM_CODES, make_decoder
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError

DECODER = make_decoder()
CODES = np.random.default_rng(0).integers(0, NUM_CODES, 24)
WHOLE = DECODER.synthesize(CODES, seed=3)


def in_chunks(sizes: list[int], codes: np.ndarray = CODES) -> np.ndarray:
    stream, sound, at = DECODER.stream(seed=3), [], 0
    for size in sizes:
        sound.append(stream.push(codes[at : at + size]))
        at += size
    return np.concatenate([*sound, stream.push(codes[at:]), stream.finish()])


@settings(max_examples=10)
@given(st.lists(st.integers(0, 9), max_size=12))
def test_chunked_equals_whole_to_the_bit(sizes: list[int]) -> None:
    assert np.array_equal(in_chunks(sizes), WHOLE)


@pytest.mark.parametrize("num_codes", [0, 1, 2, 3, 7, 8, 11])
def test_every_code_lasts_its_samples(num_codes: int) -> None:
    sound = DECODER.synthesize(CODES[:num_codes])
    assert sound.shape == (num_codes * 1280,)
    assert sound.dtype == np.float32
    assert np.isfinite(sound).all()


def test_a_block_is_heard_when_its_last_code_arrives() -> None:
    stream, owed = DECODER.stream(), DECODER.vocoder.delay_samples
    heard = [len(stream.push([int(c)])) for c in CODES[:12]]
    assert heard == [0, 2 * 1280 - owed, 0, 0, 0, 0, 5 * 1280, 0, 0, 0, 0, 5 * 1280]
    assert len(stream.finish()) == owed


@pytest.mark.parametrize("changed_from", [2, 7, 10, 12])
def test_later_codes_never_change_what_is_out(changed_from: int) -> None:
    other = CODES.copy()
    other[changed_from:] = (other[changed_from:] + 7) % NUM_CODES
    stream = DECODER.stream(seed=3)
    out = stream.push(CODES[:changed_from])
    assert np.array_equal(DECODER.synthesize(other, seed=3)[: len(out)], out)
    assert not np.array_equal(DECODER.synthesize(other, seed=3), WHOLE)


def test_a_block_sees_the_codes_and_the_sound_before_it() -> None:
    other = CODES.copy()
    other[6] = (other[6] + 7) % NUM_CODES  # the last code of the second block
    changed = DECODER.synthesize(other, seed=3)[7 * 1280 : 12 * 1280]
    assert not np.array_equal(changed, WHOLE[7 * 1280 : 12 * 1280])


def test_two_streams_never_touch_each_other_nor_the_global_generator() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    a, b = DECODER.stream(seed=3), DECODER.stream(seed=4)
    sound = []
    for c in CODES:
        sound.append(a.push([int(c)]))
        b.push([int(NUM_CODES - 1 - c)])
        torch.rand(1)
    sound.append(a.finish())
    assert np.array_equal(np.concatenate(sound), WHOLE)
    torch.random.set_rng_state(before)
    DECODER.synthesize(CODES, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_seed_decides_the_noise() -> None:
    assert not np.array_equal(DECODER.synthesize(CODES, seed=4), WHOLE)
    assert np.array_equal(DECODER.synthesize(CODES, seed=3), WHOLE)


def test_a_block_costs_the_same_wherever_it_stands(decoder: SpeechDecoder) -> None:
    """By the sizes of all that is carried from one block to the next."""
    stream, sizes = decoder.stream(), set()
    for _ in range(4):
        stream.push(CODES[:7])
        state = stream._state
        tensors = (state.codes, state.mel, state.vocoder.mel, state.vocoder.samples)
        sizes.add((*(t.shape for t in tensors), *(t.untyped_storage().nbytes() // 4 >= 0 for t in tensors)))
    assert len(sizes) == 1


def test_a_code_outside_the_codebook_is_refused_and_changes_nothing() -> None:
    stream = DECODER.stream(seed=3)
    for wrong in ([5, 32], [-1]):
        with pytest.raises(UserError, match=r"code (32|-1) out of range 0\.\.31: "):
            stream.push(wrong)
    assert np.array_equal(np.concatenate([stream.push(CODES), stream.finish()]), WHOLE)
