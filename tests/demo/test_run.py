import json
from pathlib import Path

import pytest

from weft.demo import pipeline
from weft.demo.run import DemoConfig, DemoRun
from weft.errors import UserError
from weft.lm.init import InitLmConfig
from weft.lm.pretrain import PretrainConfig
from weft.lock import locked

pytestmark = pytest.mark.xdist_group("demo")


def test_a_finished_stage_keeps_its_duration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))

    def resumed() -> DemoRun:
        return DemoRun(DemoConfig(tmp_path / "run"))

    def interrupt(demo: DemoRun) -> None:
        raise KeyboardInterrupt

    resumed().run_stage("speak", lambda demo: None)
    assert "(finished before)" in resumed()._estimate("speak")
    with pytest.raises(KeyboardInterrupt):
        resumed().run_stage("tokenizer", interrupt)
    resumed().run_stage("tokenizer", lambda demo: None)
    resumed().run_stage("speak", lambda demo: None)  # it was finished before
    stages = json.loads((tmp_path / "run/log/stages.json").read_text())
    assert stages == {"speak": {"sec": 10}, "tokenizer": {"sec": 10}}
    assert resumed().results["stages"] == stages


def test_recipes_have_the_seed_and_the_fraction_of_the_steps(tmp_path: Path) -> None:
    demo = DemoRun(DemoConfig(tmp_path / "run", seed=7, steps_fraction=0.1))
    recipe = demo.recipe(PretrainConfig, "pretrain", out=tmp_path / "lm")
    assert (recipe.out, recipe.train.seed, recipe.train.steps, recipe.train.warmup_steps) == (tmp_path / "lm", 7, 66, 4)
    assert demo.recipe(InitLmConfig, "lm").seed == 7
    assert demo.num_steps(3) == 1


def test_a_directory_with_other_files_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty and not a run of the demo"):
        DemoRun(DemoConfig(tmp_path))


def test_a_second_demo_in_the_same_directory_is_refused_before_it_writes(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(UserError, match="run is being written by process"):
        pipeline.run(DemoConfig(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
