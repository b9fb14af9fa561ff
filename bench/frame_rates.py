"""Word error rate by frame rate: tokenizers of 50, 25, 12.5 and 6.25 codes per second, as in a figure of the paper.

    python bench/frame_rates.py [--quantizer fsq] [--json FILE]          # speech of the demo, by espeak
    python bench/frame_rates.py --audio train/manifest.jsonl --held-out test/manifest.jsonl --steps 2000
    python bench/frame_rates.py --audio .. --recipe laptop/tokenizer --base DIR --hz 25 12.5 6.25    # from a Whisper
    python bench/frame_rates.py --quick                                  # a few steps, to test the script

All tokenizers are trained on the same speech with the same recipe (nano's by default, from random weights). Each is
measured with and without quantization by the same weights. Lower rates have larger codebooks, those of the paper (4096,
4096, 16384, 65536) divided by 32. The paper's error rates are of whisper-large-v3 and other speech, so only their
growth with the rate is comparable. Tokenizers that exist are not trained again, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import write

from weft import cli
from weft.config import recipe_path
from weft.data.speech import read_manifest
from weft.demo.data import Sizes, from_world
from weft.eval.tokenizer import measure
from weft.files import write_bytes
from weft.tokenizer.tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class Rate:
    """A frame rate.

    It has the number of encoder frames per code, the outputs of the CTC head per code (37.5 to 50 per second), the
    levels of an FSQ codebook, and the paper's word error rate on LibriSpeech clean, in percent.
    """

    pooling: int
    ctc_outputs: int
    levels: tuple[int, ...]
    paper_wer: float | None

    @property
    def hz(self) -> float:
        return 50 / self.pooling

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def block_frames(self) -> int:
        """The encoder frames of a block: 2 s, rounded up to whole codes."""
        return -(-100 // self.pooling) * self.pooling


RATES = [
    Rate(1, 1, (8, 4, 4), 1.85),
    Rate(2, 2, (8, 4, 4), 1.94),
    Rate(4, 3, (8, 8, 8), 2.10),
    Rate(8, 6, (8, 8, 8, 4), None),
]
QUICK_STEPS = 6
COLUMNS = (
    "codes/s", "codes", "bits/s", "used bits/s", "codes used", "WER (95 %)", "unquantized", "ratio", "CER", "paper WER",
)  # fmt: skip


def main() -> int:
    arguments = parse_arguments()
    speech, held_out = speech_of(arguments)
    quantizers = ["vq", "fsq"] if arguments.quantizer == "both" else [arguments.quantizer]
    figures: dict[str, Any] = {}
    rates = [rate for rate in RATES if rate.hz in arguments.hz]
    for quantizer in quantizers:
        rows = []
        for rate in rates:
            tokenizer = train(rate, quantizer, speech, held_out, arguments)
            found = measure(SpeechTokenizer.from_pretrained(tokenizer), read_manifest(held_out))
            found.pop("speakers")
            figures[f"{quantizer}.{rate.hz:g}hz"] = {**found, "paper_wer_librispeech_clean": rate.paper_wer}
            rows.append(row(rate, found))
        print(f"\n{quantizer}, {found['utterances']} held-out utterances, {found['seconds'] / 60:.1f} min")
        show([COLUMNS, *rows])
        print(*(f"{r.hz:g}/s: {w}" for r in rates for w in figures[f"{quantizer}.{r.hz:g}hz"]["warnings"]), sep="\n")
    if arguments.json:
        write(arguments.json, figures)
    return 0


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--audio", type=Path, nargs="+", default=[], help="manifests of transcribed speech to train on")
    p.add_argument("--held-out", type=Path, help="manifest to measure on; not set: a twentieth of --audio")
    p.add_argument("--recipe", default="nano/tokenizer", help="recipe of all tokenizers")
    p.add_argument("--base", type=Path, help="directory of a Hugging Face Whisper to start from; not set: random")
    p.add_argument("--quantizer", choices=("vq", "fsq", "both"), default="vq")
    p.add_argument(
        "--hz",
        type=float,
        nargs="+",
        choices=[r.hz for r in RATES],
        default=[r.hz for r in RATES],
        help="codes per second",
    )
    p.add_argument("--steps", type=int, help="training steps; not set: those of the recipe")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/frame_rates"), help="directory for speech and tokenizers")
    p.add_argument("--json", type=Path, help="file for the figures")
    p.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps on a few sentences")
    arguments = p.parse_args()
    if arguments.quick:
        arguments.steps, arguments.out = arguments.steps or QUICK_STEPS, arguments.out / "quick"
    return arguments


def speech_of(arguments: argparse.Namespace) -> tuple[list[Path], Path]:
    """Return the manifests to train on, and the one to measure on."""
    if not arguments.audio:
        small = {"stories": 12, "turns": 6, "span_documents": 2, "held_out": 8} if arguments.quick else {}
        none = {"interleaved_documents": 0, "synthetic_speech_documents": 0, "text_documents": 0, "dialogues": 0}
        workers = 1 if arguments.quick else os.cpu_count() or 1
        data = from_world(arguments.out / "speech", Sizes(**small, **none, pairs=1), arguments.seed, workers)
        return list(data.speech), data.held_out
    if arguments.held_out:
        return arguments.audio, arguments.held_out
    utterances = [u for u in read_manifest(*arguments.audio) if u.text]
    random.Random(arguments.seed).shuffle(utterances)
    num_held_out = max(1, len(utterances) // 20)
    for name, part in (("held_out", utterances[:num_held_out]), ("train", utterances[num_held_out:])):
        lines = (json.dumps({"id": u.id, "audio": u.audio, "text": u.text, "speaker": u.speaker}) for u in part)
        write_bytes(arguments.out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return [arguments.out / "train.jsonl"], arguments.out / "held_out.jsonl"


def train(rate: Rate, quantizer: str, speech: list[Path], held_out: Path, arguments: argparse.Namespace) -> Path:
    """Train the tokenizer of a frame rate; return its directory."""
    out = arguments.out / f"{quantizer}-{rate.hz:g}hz"
    flags = {
        "out": out,
        "held-out": held_out,
        "train.seed": arguments.seed,
        "model.pooling": rate.pooling,
        "model.block-frames": rate.block_frames,
        "model.quantizer.num-codes": rate.num_codes,
        # relative to the mean use of a code: the paper's threshold depends on the codes per step, which differ here
        "model.quantizer.restart-fraction": 0.1,
    }
    # the CTC loss is for training from random weights, as is the long start without quantization
    flags |= {"base": arguments.base, "ctc-outputs": 0} if arguments.base else {"ctc-outputs": rate.ctc_outputs}
    if arguments.steps:
        flags |= {
            "train.steps": arguments.steps,
            "quantize-from-step": arguments.steps // (30 if arguments.base else 3),
        }
    command = ["train-tokenizer", str(recipe_path(arguments.recipe)), "--speech", *map(str, speech)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    if quantizer == "fsq":
        command += ["--model.quantizer.kind", "fsq", "--model.quantizer.levels", *map(str, rate.levels)]
    print("weft", *command, file=sys.stderr)
    if status := cli.run(command):
        sys.exit(status)
    return out


def row(rate: Rate, found: dict[str, Any]) -> tuple[str, ...]:
    wer, unquantized = found["wer"], found["wer_unquantized"]["rate"]
    return (
        f"{rate.hz:g}",
        f"{found['num_codes']}",
        f"{found['nominal_bits_per_sec']:.1f}",
        f"{found['bits_per_sec']:.1f}",
        f"{found['codes_used_share']:.0%}",
        f"{wer['rate']:.1%} ({wer['low']:.1%} to {wer['high']:.1%})",
        f"{unquantized:.1%}",
        f"{wer['rate'] / unquantized:.2f}" if unquantized else "-",
        f"{found['cer']['rate']:.1%}",
        f"{rate.paper_wer:.2f}%" if rate.paper_wer else "-",
    )


def show(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
