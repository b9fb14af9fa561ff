import gc
import weakref

import numpy as np
import pytest
import torch

from tests.decoder.conftest import NUM_CODES, make_decoder
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.stream import DecoderStream, decode_blocks
from weft.decoder.vocoder import Vocoder, VocoderShape

GRIFFIN_LIM = make_decoder()
torch.manual_seed(0)
TRAINED = SpeechDecoder(
    GRIFFIN_LIM.flow,
    GRIFFIN_LIM.mel,
    vocoder=Vocoder(VocoderShape(width=16, layers=1), GRIFFIN_LIM.mel).eval(),
)
CODES = np.random.default_rng(0).integers(0, NUM_CODES, (5, 30))


def test_streams_that_join_and_leave_a_batch_are_as_alone() -> None:
    """Stream i starts at time i, gets one to four codes at a time, and has its own length."""
    lengths = (30, 9, 1, 14, 0)
    alone = [TRAINED.synthesize(c[:n], seed=i) for i, (c, n) in enumerate(zip(CODES, lengths, strict=True))]
    streams = [TRAINED.stream(seed=i) for i in range(5)]
    found: list[list[np.ndarray]] = [[] for _ in streams]
    position, rng, active = [0] * 5, np.random.default_rng(1), {0}
    for time in range(60):
        if time < 5:
            active.add(time)
        rows = sorted(active)
        for i in rows:
            size = min(int(rng.integers(1, 5)), lengths[i] - position[i])
            streams[i].add(CODES[i, position[i] : position[i] + size])
            position[i] += size
            if position[i] == lengths[i]:
                streams[i].end()
                active.remove(i)
        for i, samples in zip(rows, decode_blocks([streams[i] for i in rows]), strict=True):
            found[i].append(samples)
    assert not active
    for i in range(5):
        together = np.concatenate(found[i])
        assert together.shape == alone[i].shape == (lengths[i] * 1280,)
        assert np.allclose(together, alone[i], atol=1e-4 * max(1e-3, np.abs(alone[i]).max(initial=0.0)))


def test_griffin_lim_streams_in_a_batch_are_as_alone() -> None:
    """Nearly: its iterations amplify rounding."""
    alone = [GRIFFIN_LIM.synthesize(c[:7], seed=i) for i, c in enumerate(CODES[:2])]
    streams = [GRIFFIN_LIM.stream(seed=i) for i in range(2)]
    for stream, codes in zip(streams, CODES, strict=False):
        stream.add(codes[:7])
        stream.end()
    for together, one in zip(decode_blocks(streams), alone, strict=True):
        assert np.square(together - one).mean() < 1e-3 * np.square(one).mean()


def test_the_last_samples_are_returned_once() -> None:
    stream = TRAINED.stream()
    stream.add(CODES[0, :3])
    stream.end()
    assert len(decode_blocks([stream])[0]) == 3 * 1280
    assert not len(decode_blocks([stream])[0])
    with pytest.raises(AssertionError, match="ended"):
        stream.add([1])


def test_a_dropped_stream_releases_its_state() -> None:
    stream = TRAINED.stream()
    stream.push(CODES[0])
    kept = weakref.ref(stream._vocoder.tail)
    del stream
    gc.collect()
    assert kept() is None


def test_a_long_stream_keeps_no_more_state_than_a_short_one() -> None:
    def num_bytes(stream: DecoderStream) -> int:
        state = stream._vocoder
        tensors = [stream._codes, stream._mel, state.mel, state.tail, *state.hidden]
        return sum(t.untyped_storage().nbytes() for t in tensors) + 8 * len(stream._pending)

    stream, sizes = TRAINED.stream(), []
    for _ in range(12):
        stream.push(CODES[0])
        sizes.append(num_bytes(stream))
    assert max(sizes[1:]) == sizes[1]


def test_streams_of_different_decoders_are_not_mixed() -> None:
    streams = [TRAINED.stream(), GRIFFIN_LIM.stream()]
    for stream in streams:
        stream.add(CODES[0, :5])
    with pytest.raises(AssertionError, match="different decoders"):
        decode_blocks(streams)
