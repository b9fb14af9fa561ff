"""A run of the demo: its folder, its material, its recipes, and the clock of its stages.

road = Road(DemoConfig(out=Path("runs/demo")))
road.stage("tokenizer", walk)           # walk(road) does the work; a rerun keeps a finished stage's seconds
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from weft.artifacts import write_json
from weft.config import Count, Natural, Positive, load_recipe, recipe_path
from weft.demo.material import Material, Sizes, of_user, of_world
from weft.errors import UserError

T = TypeVar("T")

# Seconds of each stage on two cores of a current server, from which the time left is estimated.
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
    """The demo's folder, and what it is made of."""

    out: Path = Path("runs/demo")
    """Folder of the run, which becomes a bundle."""
    text: tuple[Path, ...] = ()
    """Your own text (.txt, .jsonl, .parquet, folders); without any, the built-in world's."""
    audio: tuple[Path, ...] = ()
    """Your own speech with transcripts (manifests, folders); without any, espeak's."""
    seed: Natural = 0
    """Seed of the world, of the split and of every stage."""
    workers: Count = 2
    """Processes that speak and tokenize."""
    steps_share: Positive = 1.0
    """Share of every recipe's training steps: less is a quick look at the road, and nothing is learnt well."""
    sizes: Sizes = field(default_factory=Sizes)


@dataclass
class Road:
    """A run of the demo: where things are, and what is known so far."""

    config: DemoConfig
    results: dict[str, Any] = field(default_factory=dict)
    console: Console = field(default_factory=lambda: Console(stderr=True))

    def __post_init__(self) -> None:
        self._times = self.folder / "log/stages.json"
        if not self._times.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"{self.folder} is not empty, and no run of the demo: choose another --out")
            write_json(self._times, {})
        self.results["stages"] = json.loads(self._times.read_text())

    @property
    def folder(self) -> Path:
        return self.config.out

    def path(self, name: str) -> Path:
        """A folder or file of the run."""
        return self.folder / name

    def recipe(self, kind: type[T], name: str, **paths: Path | tuple[Path, ...]) -> T:
        """The nano recipe of a stage, with this run's paths and seed."""
        flags = [
            x for key, value in paths.items() for v in _each(value) for x in (f"--{key.replace('_', '-')}", str(v))
        ]
        seeded = "train.seed" if "train" in kind.__annotations__ else "seed"
        recipe: Any = load_recipe(kind, recipe_path(f"nano/{name}"), [*flags, f"--{seeded}", str(self.config.seed)])
        if seeded == "seed":
            return recipe
        steps, warmup_steps = (self.share_of(n) for n in (recipe.train.steps, recipe.train.warmup_steps))
        return replace(recipe, train=replace(recipe.train, steps=steps, warmup_steps=warmup_steps))

    def share_of(self, steps: int) -> int:
        """The training steps that this run takes of a recipe's."""
        return max(1, round(self.config.steps_share * steps))

    def stage(self, name: str, walk: Callable[[Road], None]) -> None:
        """Walk one stage and note the seconds it took; a stage that was walked before keeps its seconds."""
        before = self.results["stages"].get(name, {}).get("sec", 0.0)
        self.console.print(f"[bold]{name}[/bold]  {self._estimate(name)}")
        begun_sec = time.monotonic()
        walk(self)
        took_sec = time.monotonic() - begun_sec
        done = self.results["stages"].get(name, {}).get("done", False)
        self.results["stages"][name] = {"sec": round(before if done else before + took_sec, 2), "done": True}
        write_json(self._times, self.results["stages"])

    def _estimate(self, name: str) -> str:
        done = {n: s["sec"] for n, s in self.results["stages"].items() if s.get("done")}
        if name in done:
            return "(done before)"
        pace = sum(done.values()) / max(1e-9, sum(EXPECTED_SEC[n] for n in done)) if done else 1.0
        left = sum(sec for n, sec in EXPECTED_SEC.items() if n not in done)
        here, after = EXPECTED_SEC[name] * pace, (left - EXPECTED_SEC[name]) * pace
        return f"about {here:.0f} s, then {after / 60:.1f} min to the end"

    @cached_property
    def material(self) -> Material:
        """Text and speech to walk with."""
        c = self.config
        folder = self.path("material")
        if c.text or c.audio:
            return of_user(folder, c.text, c.audio, c.sizes, c.seed, c.workers)
        return of_world(folder, c.sizes, c.seed, c.workers)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
