"""Speed of the speech decoder: blocks of a stream, many streams in one batch, and the vocoder.

    python bench/decoder.py [--decoder DIR] [--json FILE] [--quick]

All are measured in turn in one process, and the table has medians over rounds:

- the 100th block of a stream, compared with the 2nd, and the time to the first sound;
- speech of 10, 30 and 60 s as a stream, compared with decoding everything from the start for each block, as the code
  released with the paper does;
- streams that one batch decodes in real time: the largest number whose blocks take less time than they last, compared
  with decoding the streams one by one;
- the vocoder, compared with the network of the package vocos at the same size, if it is installed.

Without `--decoder`, the models have random weights and the shape of the mini decoder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from figures import Figure, in_turn, show, write

from weft.decoder.decoder import SpeechDecoder
from weft.decoder.flow import FlowConfig, FlowDecoder
from weft.decoder.mel import MelConfig
from weft.decoder.stream import DecoderStream, decode_blocks
from weft.decoder.vocoder import Vocoder, VocoderShape

CODE_RATE_HZ = 12.5
NUM_CODES = 1024
MAX_STREAMS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", type=Path, help="directory of a decoder; not set: random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="one round on little speech, to test the script")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    torch.set_num_threads(arguments.threads)
    decoder = SpeechDecoder.from_pretrained(arguments.decoder) if arguments.decoder else untrained()
    figures = blocks(decoder, arguments.rounds)
    for seconds in (2,) if arguments.quick else (10, 30, 60):
        figures |= prefixes(decoder, seconds, 1 if seconds > 10 else arguments.rounds)
    figures |= streams(decoder, 4 if arguments.quick else MAX_STREAMS)
    if isinstance(decoder.vocoder, Vocoder):
        figures |= vocoder(decoder.vocoder, arguments.rounds)
    show(figures)
    if arguments.json:
        write(arguments.json, figures)


def untrained() -> SpeechDecoder:
    """Return a decoder with random weights."""
    torch.manual_seed(0)
    mel = MelConfig(24_000, 1024, 240, 100)
    flow = FlowDecoder(FlowConfig(), NUM_CODES, 8 * mel.num_mels)
    return SpeechDecoder(flow.eval(), mel, vocoder=Vocoder(VocoderShape(), mel).eval())


def codes_of(num: int, seed: int = 0) -> np.ndarray:
    """Return random codes."""
    return np.random.default_rng(seed).integers(0, NUM_CODES, num)


def blocks(decoder: SpeechDecoder, rounds: int) -> dict[str, Figure]:
    """Return the time of the 100th block, compared with the 2nd, and to the first sound."""
    config = decoder.flow.config
    codes = codes_of(config.first_block_codes + 100 * config.block_codes)
    times = np.zeros((rounds, 101))
    for row in times:
        stream, start = decoder.stream(), 0
        for block in range(101):
            size = config.block_codes if block else config.first_block_codes
            started = time.perf_counter()
            stream.push(codes[start : start + size])
            row[block] = 1000 * (time.perf_counter() - started)
            start += size
    first, second, last = (float(np.median(times[:, i])) for i in (0, 1, 99))
    return {
        "first sound after the first codes": Figure(first, None, None, "ms"),
        "100th block to 2nd": Figure(last, second, last / second, "ms"),
    }


def prefixes(decoder: SpeechDecoder, seconds: int, rounds: int) -> dict[str, Figure]:
    """Return the speed of a stream, compared with decoding all codes so far for every block."""
    codes, size = codes_of(int(seconds * CODE_RATE_HZ)), decoder.flow.config.block_codes

    def from_start() -> None:
        for end in range(size, len(codes) + size, size):
            decoder.synthesize(codes[:end])

    found = in_turn(rounds, stream=lambda: decoder.synthesize(codes), prefixes=from_start)
    speeds = seconds / found["stream"], seconds / found["prefixes"]
    return {f"{seconds} s, stream to whole prefixes": Figure(*speeds, speeds[0] / speeds[1], "s of speech/s")}


def streams(decoder: SpeechDecoder, most: int) -> dict[str, Figure]:
    """Return the largest number of streams that one batch decodes in real time, compared with one by one."""
    block_sec = decoder.flow.config.block_codes / CODE_RATE_HZ
    one = _block_sec(decoder, 1)
    num = 1
    while 2 * num <= most and _block_sec(decoder, 2 * num) < block_sec:
        num *= 2
    alone = block_sec / one
    rate = num * block_sec / _block_sec(decoder, num)
    return {
        "streams in real time, one batch to one by one": Figure(rate, alone, rate / alone, f"streams ({num} measured)")
    }


def _block_sec(decoder: SpeechDecoder, num: int) -> float:
    """Return the seconds that a block of each of `num` streams takes."""
    config, many = decoder.flow.config, [decoder.stream(seed) for seed in range(num)]
    assert all(isinstance(stream, DecoderStream) for stream in many)
    for size in (config.first_block_codes, config.block_codes, config.block_codes):
        for seed, stream in enumerate(many):
            stream.add(codes_of(size, seed))  # type: ignore[union-attr]
        started = time.perf_counter()
        decode_blocks(many)  # type: ignore[arg-type]
        seconds = time.perf_counter() - started
    return seconds


@torch.no_grad()
def vocoder(model: Vocoder, rounds: int) -> dict[str, Figure]:
    """Return the speed of the vocoder on 10 s, whole and by blocks, compared with the network of vocos."""
    config = model.spectrogram.config
    frames = 10 * config.sample_rate_hz // config.hop_samples
    mel = torch.randn(1, frames, config.num_mels)
    seconds = frames * config.hop_samples / config.sample_rate_hz

    def by_blocks() -> None:
        state = model.new_state(1)
        for part in mel.split(80, dim=1):
            model.push(state, part)
        model.flush(state)

    functions = {"whole": lambda: model(mel), "blocks": by_blocks}
    if (peer := _vocos(model)) is not None:
        functions["vocos"] = lambda: peer(mel.transpose(1, 2))
    found = in_turn(rounds, **functions)
    speeds = {name: seconds / sec for name, sec in found.items()}
    other = speeds.get("vocos")
    return {
        f"vocoder, {name}, to vocos": Figure(speeds[name], other, speeds[name] / other if other else None, "s/s")
        for name in ("whole", "blocks")
    }


def _vocos(model: Vocoder) -> torch.nn.Module | None:
    """Return the network of the package vocos with the shape of the vocoder, None if it is not installed."""
    try:
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone
    except ImportError:
        return None
    shape, config = model.shape, model.spectrogram.config
    backbone = VocosBackbone(config.num_mels, shape.width, shape.expansion * shape.width, shape.layers)
    head = ISTFTHead(shape.width, config.window_samples, config.hop_samples, padding="same")
    return torch.nn.Sequential(backbone, head).eval()


if __name__ == "__main__":
    main()
