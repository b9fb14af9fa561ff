"""What tokenizing speech costs: sound to codes by `SpeechTokenizer.encode`, beside what there was before it.

Compared, in turn in one process, on the same speech, the median of the rounds:
- ours against transformers' Whisper encoder (all of its layers, fp32, 30 s of padding), whose log-mel features are
  given to it for nothing; and against our own half encoder in fp32 over batches of like length, padded, from sound to
  codes as ours, with the batches and the attention that are quickest here;
- ours in bf16 against ours in fp32, by the share of codes that differ;
- the 100th block of a stream against the 2nd, and what a block's codes cost after its end (the 100th is the 10th of
  its window, and so hears five times as many frames as the 2nd);
- the floating-point operations of products a second against those of one large product, on a CPU and, where there is
  one, on a GPU.

    python bench/tokenizer.py [--audio MANIFEST] [--tokenizer DIR] [--json FILE] [--quick]

The model is a Whisper of base shape cut after layer 3, with random weights and 16384 random codes; the nano model is
the demo's shape on short utterances. `--tokenizer` takes a trained one for the share of codes that bf16 changes.
Without `--audio` the speech is noise, as long as the utterances of LibriSpeech's train-clean-100.
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
import torch
from figures import Figure, in_turn, show, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from weft.audio import SAMPLE_RATE_HZ, load
from weft.data.corpus import read_manifest
from weft.tokenizer.encoder import BottleneckConfig, BottleneckWhisper
from weft.tokenizer.packed import to_bf16
from weft.tokenizer.quantizer import QuantizerConfig
from weft.tokenizer.tokenizer import SpeechTokenizer, batches_by_length

NUM_THREADS = 2
WINDOW_SEC = 30
PADDED_BATCH_SEC = 40
BLOCK_SEC = 2.0
# Seconds of utterances of LibriSpeech's train-clean-100 at each twentieth of them, by length (496 utterances of four
# speakers), and of the demo's sentences.
LIBRISPEECH_SEC = [
    2.4, 4.1, 5.7, 7.4, 8.7, 10.1, 11.1, 12.1, 12.6, 13.0, 13.4, 13.8, 14.2, 14.4, 14.7, 15.0, 15.3, 15.6, 15.8, 16.3,
    20.0,
]  # fmt: skip
SENTENCES_SEC = [1.2, 1.8, 2.1, 2.3, 2.5, 2.7, 2.9, 3.2, 3.6, 4.2, 6.0]
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::mkldnn_convolution")


@dataclass(frozen=True)
class Shape:
    """A Whisper encoder and where it is cut."""

    width: int
    heads: int
    num_layers: int
    layer: int
    num_codes: int

    def build(self) -> SpeechTokenizer:
        """A tokenizer of random weights, whole, so that its Whisper can be asked too."""
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
        whisper.set_attn_implementation("sdpa")  # as stock Whisper comes; ours has its own
        return SpeechTokenizer(model)


BASE = Shape(width=512, heads=8, num_layers=6, layer=3, num_codes=16_384)
NANO = Shape(width=192, heads=4, num_layers=4, layer=1, num_codes=512)


# what is tokenized


def lengths_sec(quantiles: Sequence[float], total_sec: float) -> list[float]:
    """Lengths with the given quantiles that add up to about `total_sec`."""
    rng = np.random.default_rng(0)
    places = np.linspace(0, 1, len(quantiles))
    found: list[float] = []
    while sum(found) < total_sec:
        found.append(float(np.interp(rng.random(), places, quantiles)))
    return found


def noise(seconds: float, seed: int) -> np.ndarray:
    """Noise with a low, moving spectrum and the rhythm of syllables."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    at_sec = np.arange(num_samples) / SAMPLE_RATE_HZ
    syllables = np.sin(2 * np.pi * (2 + rng.random()) * at_sec + rng.random()) ** 2
    pitch_hz = 120 + 40 * np.sin(2 * np.pi * (0.4 + 0.3 * rng.random()) * at_sec)
    voice = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ) / k for k in range(1, 20))
    return (0.1 * syllables * (voice + 0.5 * rng.normal(size=num_samples))).astype(np.float32)


def utterances(audio: Path | None, total_sec: float) -> list[np.ndarray]:
    """Speech of about `total_sec`, spread over a manifest, or noise."""
    if audio is None:
        return [noise(sec, seed) for seed, sec in enumerate(lengths_sec(LIBRISPEECH_SEC, total_sec))]
    rows = read_manifest(audio)
    order = np.random.default_rng(0).permutation(len(rows))
    found: list[np.ndarray] = []
    while seconds_of(found) < total_sec and len(found) < len(rows):
        found.append(load(rows[order[len(found)]].audio))
    return found


def seconds_of(sounds: Sequence[np.ndarray]) -> float:
    return sum(map(len, sounds)) / SAMPLE_RATE_HZ


# what is timed


@torch.inference_mode()
def fill_codebook(tokenizer: SpeechTokenizer, sounds: Sequence[np.ndarray]) -> None:
    """Random codes, spread as the hidden states are."""
    hidden = tokenizer.model.first_half(
        *tokenizer.collate([tokenizer.features(x) for x in sounds], [*map(len, sounds)])
    )
    states = hidden.flatten(0, 1)
    codebook = tokenizer.model.quantizer.codebook
    generator = torch.Generator().manual_seed(1)
    codebook.copy_(states.mean(0) + states.std(0) * torch.randn(codebook.shape, generator=generator))


@torch.inference_mode()
def padded_codes(tokenizer: SpeechTokenizer, sounds: Sequence[np.ndarray]) -> None:
    """The half encoder over batches of like length, padded: what one would write first."""
    features = [tokenizer.features(x) for x in sounds]
    for rows in batches_by_length([f.shape[1] for f in features], 100 * PADDED_BATCH_SEC):
        batch, valid = tokenizer.collate([features[i] for i in rows], [len(sounds[i]) for i in rows])
        tokenizer.model.quantizer.nearest(tokenizer.model.first_half(batch, valid))


@torch.inference_mode()
def stock_states(encoder: torch.nn.Module, windows: Sequence[Tensor]) -> None:
    """transformers' encoder over windows of 30 s."""
    for window in windows:
        encoder(window)


def stock_windows(tokenizer: SpeechTokenizer, sounds: Sequence[np.ndarray]) -> list[Tensor]:
    """Log-mel features of each sound (1, 80, 3000), padded to 30 s."""
    room = WINDOW_SEC * SAMPLE_RATE_HZ
    return [tokenizer.features(np.pad(x[:room], (0, max(0, room - len(x)))))[None] for x in sounds]


def changed_share(one: SpeechTokenizer, other: SpeechTokenizer, sounds: Sequence[np.ndarray]) -> float:
    """The share of codes that two tokenizers make differently."""
    a, b = (np.concatenate(tokenizer.encode(sounds)) for tokenizer in (one, other))
    return float((a != b).mean())


def in_bf16(tokenizer: SpeechTokenizer) -> SpeechTokenizer:
    half = deepcopy(tokenizer)
    to_bf16(half.model)
    return half


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that `work` took at its peak over what the process held before (Linux with glibc)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again, and not count
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status_mib("VmRSS")
    work()
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def share_outside_products(work: Callable[[], object]) -> float:
    """The share of a CPU's time outside matrix products."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    return 1 - sum(spent.get(name, 0.0) for name in PRODUCTS) / sum(spent.values())


def block_sec(tokenizer: SpeechTokenizer, sound: np.ndarray, num_blocks: int, rounds: int) -> list[float]:
    """The median seconds of each of a stream's blocks, from its last sample to its codes."""
    size = tokenizer.codes_per_block * tokenizer.samples_per_code
    look_ahead = sound[:40]
    taken = np.zeros((rounds, num_blocks))
    for r in range(rounds):
        stream = tokenizer.stream()
        stream.push(look_ahead)
        for b in range(num_blocks):
            begun_sec = time.perf_counter()
            codes = stream.push(np.take(sound, range(b * size, (b + 1) * size), mode="wrap"))
            taken[r, b] = time.perf_counter() - begun_sec
            assert len(codes) == tokenizer.codes_per_block
    return np.median(taken, axis=0).tolist()


def flops_per_sec(work: Callable[[], object], rounds: int, device: str) -> float:
    """Products' floating-point operations a second of `work`."""
    with FlopCounterMode(display=False) as counter:
        work()

    def timed() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return counter.get_total_flops() / in_turn(rounds, work=timed)["work"]


def ceiling_flops_per_sec(size: int, dtype: torch.dtype, device: str) -> float:
    """The same of one large square product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return flops_per_sec(lambda: a @ b, 10, device)


# the figures


def speed(
    name: str, tokenizer: SpeechTokenizer, half: SpeechTokenizer, sounds: list[np.ndarray], rounds: int
) -> dict[str, Figure]:
    seconds = seconds_of(sounds)
    # a part of the speech is enough for the slowest, whose windows cost the same whatever they hold
    few = sounds[: max(4, len(sounds) // 4)]
    stock = tokenizer.model.whisper.model.encoder
    windows = stock_windows(tokenizer, few)
    taken = in_turn(
        rounds,
        bf16=lambda: half.encode(sounds),
        fp32=lambda: tokenizer.encode(sounds),
        padded=lambda: padded_codes(tokenizer, sounds),
        stock=lambda: stock_states(stock, windows),
    )
    taken["stock"] *= len(sounds) / len(few)
    rate = {what: seconds / sec for what, sec in taken.items()}
    unit = "s of speech a s"
    return {
        f"{name}, bf16, to stock Whisper": Figure(rate["bf16"], rate["stock"], rate["bf16"] / rate["stock"], unit),
        f"{name}, bf16, to padded fp32": Figure(rate["bf16"], rate["padded"], rate["bf16"] / rate["padded"], unit),
        f"{name}, fp32, to stock Whisper": Figure(rate["fp32"], rate["stock"], rate["fp32"] / rate["stock"], unit),
        f"{name}, fp32, to padded fp32": Figure(rate["fp32"], rate["padded"], rate["fp32"] / rate["padded"], unit),
    }


def costs(name: str, tokenizer: SpeechTokenizer, half: SpeechTokenizer, sounds: list[np.ndarray]) -> dict[str, Figure]:
    changed = changed_share(tokenizer, half, sounds)
    peaks = peak_mib(lambda: half.encode(sounds)), peak_mib(lambda: padded_codes(tokenizer, sounds))
    outside = share_outside_products(lambda: half.encode(sounds))
    return {
        f"{name}, codes that bf16 changes": Figure(100 * changed, None, None, "%"),
        f"{name}, memory at the peak, to padded": Figure(*peaks, peaks[0] / peaks[1], "MiB over the weights"),
        f"{name}, bf16, time outside products": Figure(100 * outside, None, None, "%"),
    }


def streaming(name: str, tokenizer: SpeechTokenizer, sound: np.ndarray, rounds: int) -> dict[str, Figure]:
    taken = block_sec(tokenizer, sound, 100, rounds)
    second, hundredth = 1000 * taken[1], 1000 * taken[99]
    return {
        f"{name} stream, fp32, 100th block to 2nd": Figure(hundredth, second, hundredth / second, "ms"),
        f"{name} stream, fp32, slowest block to 2nd": Figure(
            1000 * max(taken), second, 1000 * max(taken) / second, "ms"
        ),
        f"{name} stream, fp32, end of a block to its codes": Figure(1000 * statistics.median(taken), None, None, "ms"),
    }


def products(name: str, half: SpeechTokenizer, sounds: list[np.ndarray], rounds: int) -> dict[str, Figure]:
    """What of the processor's arithmetic is used."""
    device = half.device.type
    ours = flops_per_sec(lambda: half.encode(sounds), rounds, device) / 1e9
    ceiling = ceiling_flops_per_sec(8192 if device == "cuda" else 2048, torch.bfloat16, device) / 1e9
    return {f"{name}, bf16, to one large product": Figure(ours, ceiling, ours / ceiling, "GFLOP/s")}


def on_gpu(half: SpeechTokenizer, sounds: list[np.ndarray], rounds: int) -> dict[str, Figure]:
    half.model.to("cuda")
    many = sounds * 8
    sec = in_turn(rounds, encode=lambda: half.encode(many))["encode"]  # its codes are back when it ends
    rate = {"GPU, base, bf16": Figure(seconds_of(many) / sec, None, None, "s of speech a s")}
    return rate | products("GPU, base", half, many, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="manifest or folder of speech to take instead of noise")
    parser.add_argument("--tokenizer", type=Path, help="a trained tokenizer, for the codes that bf16 changes")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="less speech and fewer rounds, for a first look")
    given = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    rounds, total_sec = (2, 60.0) if given.quick else (5, 300.0)
    sounds = utterances(given.audio, total_sec)
    base = BASE.build()
    fill_codebook(base, sounds[:8])
    half = in_bf16(base)
    figures = speed("base", base, half, sounds, rounds) | costs("base", base, half, sounds)
    figures |= products("base", half, sounds, rounds)
    if given.tokenizer:
        trained = SpeechTokenizer.load(given.tokenizer)
        changed = changed_share(trained, in_bf16(trained), sounds)
        figures["trained, codes that bf16 changes"] = Figure(100 * changed, None, None, "%")
    nano = NANO.build()
    short = [noise(sec, seed) for seed, sec in enumerate(lengths_sec(SENTENCES_SEC, total_sec))]
    fill_codebook(nano, short[:8])
    half_nano = in_bf16(nano)
    figures |= speed("nano", nano, half_nano, short, rounds) | costs("nano", nano, half_nano, short)
    figures |= streaming("base", base, np.concatenate(sounds), rounds)
    figures |= streaming("nano", nano, np.concatenate(short), rounds)
    if torch.cuda.is_available():
        figures |= on_gpu(half, sounds, rounds)
    show(figures)
    if given.json:
        write(given.json, figures)


if __name__ == "__main__":
    main()
