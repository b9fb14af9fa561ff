"""The whole road, small: `weft demo` walks it from text and a voice to a model that answers in speech.

    run(DemoConfig(out=Path("runs/demo")))

Every stage is the verb of the same name with a recipe of `recipes/nano`; a stage whose artifact is there already is
not walked again, so an interrupted demo goes on where it was. OUT becomes a bundle (tokenizer, decoder, text_to_token,
lm) with `results.json` and `report.html`.
"""

from __future__ import annotations

import platform

import torch

from weft.artifacts import write_bytes, write_json
from weft.demo.exhibits import gather
from weft.demo.report import render, summary
from weft.demo.road import DemoConfig, Road
from weft.demo.stages import STAGES

__all__ = ["DemoConfig", "run"]


def run(config: DemoConfig) -> None:
    """Walk the road; print what was learnt and what to try next."""
    road = Road(config)
    for name, walk in STAGES.items():
        road.stage(name, walk)
    stages = {name: {"sec": s["sec"]} for name, s in road.results["stages"].items()}
    results = {
        "total_sec": round(sum(s["sec"] for s in stages.values()), 2),
        **road.results,
        "stages": stages,
        "seed": config.seed,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    write_json(road.path("results.json"), results)
    write_bytes(road.path("report.html"), render(results, gather(road)).encode())
    print("\n".join(summary(results, config.out)))
