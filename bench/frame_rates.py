"""Word errors against frame rate, the paper's figure in small: a tokenizer at 50, 25, 12.5 and 6.25 codes a second,
trained alike on the same speech, each with its bottleneck closed (ours) and open (the same weights without quantizing).

    python bench/frame_rates.py [--quantizer fsq] [--json FILE]          # on the demo's world, spoken by espeak
    python bench/frame_rates.py --audio train/manifest.jsonl --held-out test/manifest.jsonl --steps 2000
    python bench/frame_rates.py --audio .. --recipe whisper-small/tokenizer --base DIR   # as the paper, from a Whisper
    python bench/frame_rates.py --quick                                  # a rehearsal: nothing is learnt

Codebooks grow as in the paper where codes are fewer (4096, 4096, 16384, 65536), divided by 32; a step is the recipe's
(nano's, which trains from nothing, unless another is named), the same seconds of speech at every rate. The paper's
figures are of whisper-large-v3 and other speech: what can be compared is how errors grow from rate to rate. A tokenizer
that is trained already is not trained again, so a run that was interrupted goes on.
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

from weft import artifacts, cli
from weft.config import recipe_path
from weft.data.corpus import read_manifest
from weft.demo.material import Sizes, of_world
from weft.eval.tokenizer import measure
from weft.tokenizer.tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class Rate:
    """A frame rate: encoder frames pooled into a code, outputs of the CTC head at each (37.5 to 50 a second), the
    levels of its codes where they are a grid, and the paper's word error rate on LibriSpeech clean, in percent."""

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
        """2 s, or the next whole number of codes."""
        return -(-100 // self.pooling) * self.pooling


RATES = [
    Rate(1, 1, (8, 4, 4), 1.85),
    Rate(2, 2, (8, 4, 4), 1.94),
    Rate(4, 3, (8, 8, 8), 2.10),
    Rate(8, 6, (8, 8, 8, 4), None),
]
QUICK_STEPS = 6
COLUMNS = ("codes/s", "codes", "bits/s", "used bits/s", "codes used", "WER (95 %)", "open", "ratio", "CER", "paper WER")


def main() -> int:
    arguments = parsed()
    speech, held_out = material(arguments)
    quantizers = ["vq", "fsq"] if arguments.quantizer == "both" else [arguments.quantizer]
    figures: dict[str, Any] = {}
    for quantizer in quantizers:
        rows = []
        for rate in RATES:
            tokenizer = trained(rate, quantizer, speech, held_out, arguments)
            found = measure(SpeechTokenizer.load(tokenizer), read_manifest(held_out))
            found.pop("speakers")
            figures[f"{quantizer}.{rate.hz:g}hz"] = {**found, "paper_wer_librispeech_clean": rate.paper_wer}
            rows.append(row(rate, found))
        print(f"\n{quantizer}, {found['utterances']} utterances held out, {found['seconds'] / 60:.1f} min")
        show([COLUMNS, *rows])
        print(*(f"{r.hz:g}/s: {w}" for r in RATES for w in figures[f"{quantizer}.{r.hz:g}hz"]["warnings"]), sep="\n")
    if arguments.json:
        write(arguments.json, figures)
    return 0


def parsed() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--audio", type=Path, nargs="+", default=[], help="manifests of transcribed speech to train on")
    p.add_argument("--held-out", type=Path, help="manifest to measure on; else every twentieth utterance of --audio")
    p.add_argument("--recipe", default="nano/tokenizer", help="recipe of every rate's tokenizer")
    p.add_argument("--base", type=Path, help="folder of a Hugging Face Whisper to start from; else from nothing")
    p.add_argument("--quantizer", choices=("vq", "fsq", "both"), default="vq")
    p.add_argument("--steps", type=int, help="training steps; else the recipe's")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/frame_rates"), help="folder of what is made on the way")
    p.add_argument("--json", type=Path, help="file to write the figures to")
    p.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps on a few sentences")
    arguments = p.parse_args()
    if arguments.quick:
        arguments.steps, arguments.out = arguments.steps or QUICK_STEPS, arguments.out / "quick"
    return arguments


def material(arguments: argparse.Namespace) -> tuple[list[Path], Path]:
    """The manifests to train on, and the one to measure on."""
    if not arguments.audio:
        small = {"stories": 12, "turns": 6, "span_documents": 2, "held_out": 8} if arguments.quick else {}
        sizes = Sizes(**small, woven_documents=0, spoken_documents=0, plain_documents=0, dialogues=0, pairs=1)
        made = of_world(
            arguments.out / "speech", sizes, arguments.seed, workers=1 if arguments.quick else os.cpu_count() or 1
        )
        return list(made.speech), made.held_out
    if arguments.held_out:
        return arguments.audio, arguments.held_out
    utterances = [u for u in read_manifest(*arguments.audio) if u.text]
    random.Random(arguments.seed).shuffle(utterances)
    num_held_out = max(1, len(utterances) // 20)
    for name, part in (("held_out", utterances[:num_held_out]), ("train", utterances[num_held_out:])):
        lines = (json.dumps({"id": u.id, "audio": u.audio, "text": u.text, "speaker": u.speaker}) for u in part)
        artifacts.write_bytes(arguments.out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return [arguments.out / "train.jsonl"], arguments.out / "held_out.jsonl"


def trained(rate: Rate, quantizer: str, speech: list[Path], held_out: Path, arguments: argparse.Namespace) -> Path:
    """The tokenizer of a frame rate, by the recipe."""
    out = arguments.out / f"{quantizer}-{rate.hz:g}hz"
    flags = {
        "out": out,
        "held-out": held_out,
        "train.seed": arguments.seed,
        "model.pooling": rate.pooling,
        "model.block-frames": rate.block_frames,
        "model.quantizer.num-codes": rate.num_codes,
        # by share of the mean code's use: the paper's rule depends on how many codes a step has, which differs here
        "model.quantizer.restart-share": 0.1,
    }
    # letters are read at each code where training begins from nothing
    flags |= {"base": arguments.base, "ctc-outputs": 0} if arguments.base else {"ctc-outputs": rate.ctc_outputs}
    if arguments.steps:
        flags |= {"train.steps": arguments.steps, "quantize-from-step": arguments.steps // 3}
    command = ["train-tokenizer", str(recipe_path(arguments.recipe)), "--speech", *map(str, speech)]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    if quantizer == "fsq":
        command += ["--model.quantizer.kind", "fsq", "--model.quantizer.levels", *map(str, rate.levels)]
    print("weft", *command, file=sys.stderr)
    if status := cli.run(command):
        sys.exit(status)
    return out


def row(rate: Rate, found: dict[str, Any]) -> tuple[str, ...]:
    ours, opened = found["wer"], found["open"]["wer"]["rate"]
    return (
        f"{rate.hz:g}",
        f"{found['num_codes']}",
        f"{found['nominal_bits_per_sec']:.1f}",
        f"{found['bits_per_sec']:.1f}",
        f"{found['codes_used_share']:.0%}",
        f"{ours['rate']:.1%} ({ours['low']:.1%} to {ours['high']:.1%})",
        f"{opened:.1%}",
        f"{ours['rate'] / opened:.2f}" if opened else "-",
        f"{found['cer']['rate']:.1%}",
        f"{rate.paper_wer:.2f}%" if rate.paper_wer else "-",
    )


def show(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
