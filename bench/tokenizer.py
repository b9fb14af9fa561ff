"""Speed of the speech tokenizer: `SpeechTokenizer.encode`, compared with transformers' Whisper and padded batches.

    python bench/tokenizer.py [--audio MANIFEST] [--tokenizer DIR] [--json FILE] [--quick]
    python bench/tokenizer.py --train [--base DIR] [--json FILE] [--quick]

All are measured in turn in one process on the same speech, and the table has medians over rounds:

- weft, compared with transformers' Whisper encoder (all layers, fp32, 30 s windows, without the time of the log-mel
  features), and with the first half of the encoder in fp32 on padded batches of similar lengths, from audio to codes;
- bf16, compared with fp32, as the fraction of codes that differ;
- the 100th block of a stream, compared with the 2nd, and the time from the end of a block to its codes (the 100th is
  the 10th of its window, so it attends to five times as many frames as the 2nd);
- operations per second, compared with one large matrix product, on a CPU and on a GPU if there is one.

The base model is a Whisper of base shape, cut after layer 3, with random weights and 16,384 random codes. The nano
model has the shape of the demo's and encodes short utterances. `--tokenizer` is a trained one for the codes that bf16
changes. Without `--audio`, the speech is noise with the lengths of LibriSpeech's train-clean-100. `--train` measures
training instead (`tokenizer_training.py`).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizer_training
import torch
from figures import Figure, in_turn, show, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft.audio import SAMPLE_RATE_HZ, load
from weft.data.batching import batches_by_length
from weft.data.speech import read_manifest
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.packed import to_bf16
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer

NUM_THREADS = 2
WINDOW_SEC = 30
PADDED_BATCH_SEC = 40
SPEED_UNIT = "s of speech/s"
# Quantiles of the lengths in seconds: of LibriSpeech's train-clean-100 (496 utterances of four speakers), and of the
# demo's sentences.
LIBRISPEECH_SEC = [
    2.4, 4.1, 5.7, 7.4, 8.7, 10.1, 11.1, 12.1, 12.6, 13.0, 13.4, 13.8, 14.2, 14.4, 14.7, 15.0, 15.3, 15.6, 15.8, 16.3,
    20.0,
]  # fmt: skip
SENTENCES_SEC = [1.2, 1.8, 2.1, 2.3, 2.5, 2.7, 2.9, 3.2, 3.6, 4.2, 6.0]
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::mkldnn_convolution")


@dataclass(frozen=True)
class Shape:
    """The shape of a Whisper encoder, and the layer after which it is cut."""

    width: int
    heads: int
    num_layers: int
    layer: int
    num_codes: int

    def build(self) -> SpeechTokenizer:
        """Return a tokenizer with random weights and a complete Whisper."""
        torch.manual_seed(0)
        whisper = WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=self.width,
                encoder_layers=self.num_layers,
                decoder_layers=1,
                encoder_attention_heads=self.heads,
                decoder_attention_heads=self.heads,
                encoder_ffn_dim=4 * self.width,
                decoder_ffn_dim=4 * self.width,
                vocab_size=100,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        )
        quantizer = QuantizerConfig(num_codes=self.num_codes)
        config = BottleneckConfig(layer=self.layer, log_mel_floor="fixed", quantizer=quantizer)
        model = BottleneckWhisper(config, whisper).eval()
        whisper.set_attn_implementation("sdpa")  # the default of transformers; weft has its own
        return SpeechTokenizer(model)


BASE = Shape(width=512, heads=8, num_layers=6, layer=3, num_codes=16_384)
NANO = Shape(width=192, heads=4, num_layers=4, layer=1, num_codes=512)


# Speech


def lengths_sec(quantiles: Sequence[float], total_sec: float) -> list[float]:
    """Return random lengths with the given quantiles that add up to about `total_sec`."""
    rng = np.random.default_rng(0)
    probabilities = np.linspace(0, 1, len(quantiles))
    lengths: list[float] = []
    while sum(lengths) < total_sec:
        lengths.append(float(np.interp(rng.random(), probabilities, quantiles)))
    return lengths


def noise(seconds: float, seed: int) -> np.ndarray:
    """Return noise with a low pitch that moves, modulated at the rate of syllables."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    syllables = np.sin(2 * np.pi * (2 + rng.random()) * t + rng.random()) ** 2
    pitch_hz = 120 + 40 * np.sin(2 * np.pi * (0.4 + 0.3 * rng.random()) * t)
    voice = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ) / k for k in range(1, 20))
    return (0.1 * syllables * (voice + 0.5 * rng.normal(size=num_samples))).astype(np.float32)


def utterances(audio: Path | None, total_sec: float) -> list[np.ndarray]:
    """Return random utterances of a manifest, or noise, of about `total_sec` in total."""
    if audio is None:
        return [noise(sec, seed) for seed, sec in enumerate(lengths_sec(LIBRISPEECH_SEC, total_sec))]
    rows = read_manifest(audio)
    order = np.random.default_rng(0).permutation(len(rows))
    recordings: list[np.ndarray] = []
    while seconds_of(recordings) < total_sec and len(recordings) < len(rows):
        recordings.append(load(rows[order[len(recordings)]].audio))
    return recordings


def seconds_of(audio: Sequence[np.ndarray]) -> float:
    return sum(map(len, audio)) / SAMPLE_RATE_HZ


# Measured functions


def features_of(tokenizer: SpeechTokenizer, audio: Sequence[np.ndarray]) -> list[Tensor]:
    """Return the features of each recording on its own."""
    return [tokenizer.features([x], [len(x)])[0] for x in audio]


@torch.inference_mode()
def fill_codebook(tokenizer: SpeechTokenizer, audio: Sequence[np.ndarray]) -> None:
    """Set the codebook to random vectors with the distribution of the hidden states."""
    batch = tokenizer.features.collate(features_of(tokenizer, audio), [len(x) for x in audio])
    states = tokenizer.model.to_bottleneck(*batch).flatten(0, 1)
    codebook = tokenizer.model.quantizer.codebook
    generator = torch.Generator().manual_seed(1)
    codebook.copy_(states.mean(0) + states.std(0) * torch.randn(codebook.shape, generator=generator))


@torch.inference_mode()
def encode_padded(tokenizer: SpeechTokenizer, audio: Sequence[np.ndarray]) -> None:
    """Encode padded batches of similar lengths."""
    features = features_of(tokenizer, audio)
    for rows in batches_by_length([f.shape[1] for f in features], 100 * PADDED_BATCH_SEC):
        batch, valid = tokenizer.features.collate([features[i] for i in rows], [len(audio[i]) for i in rows])
        tokenizer.model.quantizer.encode(tokenizer.model.to_bottleneck(batch, valid))


@torch.inference_mode()
def encode_whisper(encoder: torch.nn.Module, windows: Sequence[Tensor]) -> None:
    """Run transformers' encoder on windows of 30 s."""
    for window in windows:
        encoder(window)


def whisper_windows(tokenizer: SpeechTokenizer, audio: Sequence[np.ndarray]) -> list[Tensor]:
    """Return the log-mel features (1, 80, 3000) of each recording, padded to 30 s."""
    window = WINDOW_SEC * SAMPLE_RATE_HZ
    padded = [np.pad(x[:window], (0, max(0, window - len(x)))) for x in audio]
    return [features[None] for features in features_of(tokenizer, padded)]


def changed_fraction(one: SpeechTokenizer, other: SpeechTokenizer, audio: Sequence[np.ndarray]) -> float:
    """Return the fraction of codes that differ between two tokenizers."""
    a, b = (np.concatenate(tokenizer.encode(audio)) for tokenizer in (one, other))
    return float((a != b).mean())


def in_bf16(tokenizer: SpeechTokenizer) -> SpeechTokenizer:
    """Return a copy whose layers before the quantizer have bf16 weights."""
    half = deepcopy(tokenizer)
    to_bf16(half.model)
    return half


def peak_mib(function: Callable[[], object]) -> float:
    """Return the peak memory of a call, above that of the process before, in MiB (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise, memory that was freed before would not count
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _status_mib("VmRSS")
    function()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def fraction_outside_products(function: Callable[[], object]) -> float:
    """Return the fraction of the CPU time outside matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return 1 - sum(times.get(name, 0.0) for name in PRODUCTS) / sum(times.values())


def block_sec(tokenizer: SpeechTokenizer, samples: np.ndarray, num_blocks: int, rounds: int) -> list[float]:
    """Return the median seconds of each block of a stream, from its last sample to its codes."""
    size = tokenizer.codes_per_block * tokenizer.samples_per_code
    look_ahead = samples[:40]
    times = np.zeros((rounds, num_blocks))
    for r in range(rounds):
        stream = tokenizer.stream()
        stream.push(look_ahead)
        for b in range(num_blocks):
            start_sec = time.perf_counter()
            codes = stream.push(np.take(samples, range(b * size, (b + 1) * size), mode="wrap"))
            times[r, b] = time.perf_counter() - start_sec
            assert len(codes) == tokenizer.codes_per_block
    return np.median(times, axis=0).tolist()


def flops_per_sec(function: Callable[[], object], rounds: int, device: str) -> float:
    """Return the operations per second of the matrix products of a function."""
    with FlopCounterMode(display=False) as counter:
        function()

    def finished() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return counter.get_total_flops() / in_turn(rounds, finished=finished)["finished"]


def product_flops_per_sec(size: int, dtype: torch.dtype, device: str) -> float:
    """Return the operations per second of one large square product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return flops_per_sec(lambda: a @ b, 10, device)


# Figures


def speed(
    name: str, tokenizer: SpeechTokenizer, half: SpeechTokenizer, audio: list[np.ndarray], rounds: int
) -> dict[str, Figure]:
    # Every window of Whisper takes the same time, so a part of the speech is enough for it.
    few = audio[: max(4, len(audio) // 4)]
    encoder = tokenizer.model.whisper.model.encoder
    windows = whisper_windows(tokenizer, few)
    times = in_turn(
        rounds,
        bf16=lambda: half.encode(audio),
        fp32=lambda: tokenizer.encode(audio),
        padded=lambda: encode_padded(tokenizer, audio),
        whisper=lambda: encode_whisper(encoder, windows),
    )
    times["whisper"] *= len(audio) / len(few)
    rate = {what: seconds_of(audio) / sec for what, sec in times.items()}
    baselines = {"Whisper": rate["whisper"], "padded fp32": rate["padded"]}
    return {
        f"{name}, {precision}, to {what}": Figure(rate[precision], baseline, rate[precision] / baseline, SPEED_UNIT)
        for precision in ("bf16", "fp32")
        for what, baseline in baselines.items()
    }


def costs(name: str, tokenizer: SpeechTokenizer, half: SpeechTokenizer, audio: list[np.ndarray]) -> dict[str, Figure]:
    changed = changed_fraction(tokenizer, half, audio)
    peaks = peak_mib(lambda: half.encode(audio)), peak_mib(lambda: encode_padded(tokenizer, audio))
    outside = fraction_outside_products(lambda: half.encode(audio))
    return {
        f"{name}, codes that bf16 changes": Figure(100 * changed, None, None, "%"),
        f"{name}, peak memory, to padded": Figure(*peaks, peaks[0] / peaks[1], "MiB above the weights"),
        f"{name}, bf16, time outside products": Figure(100 * outside, None, None, "%"),
    }


def streaming(name: str, tokenizer: SpeechTokenizer, samples: np.ndarray, rounds: int) -> dict[str, Figure]:
    times_ms = [1000 * sec for sec in block_sec(tokenizer, samples, 100, rounds)]
    second, hundredth, slowest = times_ms[1], times_ms[99], max(times_ms)
    return {
        f"{name} stream, fp32, 100th block to 2nd": Figure(hundredth, second, hundredth / second, "ms"),
        f"{name} stream, fp32, slowest block to 2nd": Figure(slowest, second, slowest / second, "ms"),
        f"{name} stream, fp32, end of a block to its codes": Figure(statistics.median(times_ms), None, None, "ms"),
    }


def products(name: str, half: SpeechTokenizer, audio: list[np.ndarray], rounds: int) -> dict[str, Figure]:
    device = half.device.type
    speed = flops_per_sec(lambda: half.encode(audio), rounds, device) / 1e9
    maximum = product_flops_per_sec(8192 if device == "cuda" else 2048, torch.bfloat16, device) / 1e9
    return {f"{name}, bf16, to one large product": Figure(speed, maximum, speed / maximum, "GFLOP/s")}


def on_gpu(half: SpeechTokenizer, audio: list[np.ndarray], rounds: int) -> dict[str, Figure]:
    half.model.to("cuda")
    many = audio * 8
    sec = in_turn(rounds, encode=lambda: half.encode(many))["encode"]  # it waits for the codes
    rate = {"GPU, base, bf16": Figure(seconds_of(many) / sec, None, None, SPEED_UNIT)}
    return rate | products("GPU, base", half, many, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="manifest or directory of speech to use instead of noise")
    parser.add_argument("--tokenizer", type=Path, help="a trained tokenizer, for the codes that bf16 changes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="less speech and fewer rounds")
    parser.add_argument("--train", action="store_true", help="measure training instead")
    parser.add_argument("--base", type=Path, help="with --train, a Whisper of base shape instead of random weights")
    arguments = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    figures = training(arguments) if arguments.train else inference(arguments)
    show(figures)
    if arguments.json:
        write(arguments.json, figures)


def training(arguments: argparse.Namespace) -> dict[str, Figure]:
    rounds, num_steps, total_sec = (1, 1, 1000.0) if arguments.quick else (3, 6, 4000.0)
    return tokenizer_training.compare(arguments.base, lengths_sec(LIBRISPEECH_SEC, total_sec), num_steps, rounds)


def inference(arguments: argparse.Namespace) -> dict[str, Figure]:
    rounds, total_sec = (2, 60.0) if arguments.quick else (5, 300.0)
    audio = utterances(arguments.audio, total_sec)
    base = BASE.build()
    fill_codebook(base, audio[:8])
    half = in_bf16(base)
    figures = speed("base", base, half, audio, rounds) | costs("base", base, half, audio)
    figures |= products("base", half, audio, rounds)
    if arguments.tokenizer:
        trained = SpeechTokenizer.from_pretrained(arguments.tokenizer)
        changed = changed_fraction(trained, in_bf16(trained), audio)
        figures["trained, codes that bf16 changes"] = Figure(100 * changed, None, None, "%")
    nano = NANO.build()
    short = [noise(sec, seed) for seed, sec in enumerate(lengths_sec(SENTENCES_SEC, total_sec))]
    fill_codebook(nano, short[:8])
    half_nano = in_bf16(nano)
    figures |= speed("nano", nano, half_nano, short, rounds) | costs("nano", nano, half_nano, short)
    figures |= streaming("base", base, np.concatenate(audio), rounds)
    figures |= streaming("nano", nano, np.concatenate(short), rounds)
    if torch.cuda.is_available():
        figures |= on_gpu(half, audio, rounds)
    return figures


if __name__ == "__main__":
    main()
