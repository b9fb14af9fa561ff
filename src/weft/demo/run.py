"""A run of the demo: its directory, its data, its recipes, and the durations of its stages.

demo = DemoRun(DemoConfig(out=Path("runs/demo")))
demo.run_stage("tokenizer", stage)      # calls stage(demo)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from weft import progress
from weft.config import NonNegativeInt, PositiveFloat, PositiveInt, load_recipe, recipe_path
from weft.demo.data import DemoData, Sizes, from_user, from_world
from weft.errors import UserError
from weft.files import write_json

T = TypeVar("T")

# Seconds of each stage on two cores of a current server, for the estimate of the remaining time.
EXPECTED_SEC = {
    "speak": 32,
    "tokenizer": 126,
    "tokenize": 23,
    "decoder": 32,
    "resynth": 11,
    "text_to_token": 57,
    "interleave": 28,
    "documents": 1,
    "pretrain": 170,
    "sft": 32,
    "eval": 15,
    "chat": 1,
}


@dataclass(frozen=True)
class DemoConfig:
    """The demo's directory and data."""

    out: Path = Path("runs/demo")
    """Output directory, which becomes a bundle."""
    text: tuple[Path, ...] = ()
    """Your own text (.txt, .jsonl, .parquet, directories); not set: the built-in stories."""
    audio: tuple[Path, ...] = ()
    """Your own transcribed speech (manifests, directories); not set: espeak's."""
    seed: NonNegativeInt = 0
    """Seed of the data and of every stage."""
    workers: PositiveInt = 2
    """Worker processes for speech synthesis."""
    steps_fraction: PositiveFloat = 1.0
    """Fraction of the training steps of every recipe. Less shows the pipeline quickly, with poor models."""
    sizes: Sizes = field(default_factory=Sizes)


@dataclass
class DemoRun:
    """A run: paths, recipes, and the results so far."""

    config: DemoConfig
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._durations = self.folder / "log/stages.json"
        if not self._durations.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} is not empty and not a run of the demo: choose another --out")
            write_json(self._durations, {})
        self.results["stages"] = json.loads(self._durations.read_text())

    @property
    def folder(self) -> Path:
        return self.config.out

    def path(self, name: str) -> Path:
        """Return the path of a directory or file of the run."""
        return self.folder / name

    def recipe(self, kind: type[T], name: str, **inputs: Any) -> T:
        """Return a nano recipe with other inputs, the seed of this run, and its fraction of the training steps."""
        recipe: Any = replace(load_recipe(kind, recipe_path(f"nano/{name}")), **inputs)  # type: ignore[type-var]
        if not hasattr(recipe, "train"):
            return replace(recipe, seed=self.config.seed)
        train = recipe.train
        steps, warmup_steps = self.num_steps(train.steps), self.num_steps(train.warmup_steps)
        return replace(recipe, train=replace(train, seed=self.config.seed, steps=steps, warmup_steps=warmup_steps))

    def num_steps(self, steps: int) -> int:
        """Return this run's fraction of a recipe's training steps."""
        return max(1, round(self.config.steps_fraction * steps))

    def run_stage(self, name: str, stage: Callable[[DemoRun], None]) -> None:
        """Run a stage and store its duration. A stage that was finished before keeps its duration."""
        progress.note(f"{name}  {self._estimate(name)}")
        start_sec = time.monotonic()
        stage(self)
        self.results["stages"].setdefault(name, {"sec": round(time.monotonic() - start_sec, 2)})
        write_json(self._durations, self.results["stages"])

    def _estimate(self, name: str) -> str:
        done = {n: s["sec"] for n, s in self.results["stages"].items()}
        if name in done:
            return "(finished before)"
        speed = sum(done.values()) / max(1e-9, sum(EXPECTED_SEC[n] for n in done)) if done else 1.0
        remaining = sum(sec for n, sec in EXPECTED_SEC.items() if n not in done)
        this, others = EXPECTED_SEC[name] * speed, (remaining - EXPECTED_SEC[name]) * speed
        return f"about {this:.0f} s, and {others / 60:.1f} min for the remaining stages"

    @cached_property
    def data(self) -> DemoData:
        """Text and speech of the run, synthesized at the first use."""
        c = self.config
        if c.text or c.audio:
            return from_user(self.path("data"), c.text, c.audio, c.sizes, c.seed, c.workers)
        return from_world(self.path("data"), c.sizes, c.seed, c.workers)
