import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader

from tests.ranks import in_ranks
from tests.training.test_distributed import items, train_tower
from tests.training.test_loop import CONFIG, data, loss, model
from weft.errors import UserError
from weft.training import checkpoint, distributed
from weft.training.guard import Guard
from weft.training.loop import fit
from weft.training.optimizers import Optimizers

full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")


def trained(value: float) -> tuple[nn.Linear, Optimizers, Guard]:
    """A model of one value everywhere, as are its optimizer's moments and the norms of its gradients."""
    m = nn.Linear(3, 2)
    optimizer = Optimizers.of(m, CONFIG)
    for p in m.parameters():
        p.grad = torch.full_like(p, value)
    optimizer.step()
    nn.init.constant_(m.weight, value)
    nn.init.constant_(m.bias, value)
    guard = Guard(CONFIG)
    if value:
        guard.takes(0, value, "")
    return m, optimizer, guard


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoint.save(folder, step, *trained(float(step)), keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_restored(tmp_path: Path) -> None:
    save(tmp_path, 3)
    m, optimizer, guard = trained(0.0)
    assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
    saved, of_saved, guard_of_saved = trained(3.0)
    assert all(map(torch.equal, m.parameters(), saved.parameters()))
    assert torch.equal(guard.state()["norms"], guard_of_saved.state()["norms"])
    expected, found = of_saved.state(saved), optimizer.state(m)
    assert sorted(found) == sorted(f"{p}.{s}" for p in ("weight", "bias") for s in ("step", "exp_avg", "exp_avg_sq"))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_newest_are_kept_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.restore(tmp_path, *trained(0.0)) == 0
    save(tmp_path, 3, 6, 9)
    (tmp_path / "step-00000012.tmp").mkdir()
    (tmp_path / "step-00000012.tmp/__0_0.distcp").write_bytes(b"half of a checkpoint")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000009"
    assert checkpoint.restore(tmp_path, *trained(0.0)) == 9
    assert names(tmp_path) == ["step-00000006", "step-00000009"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, overwrite, Path.unlink])
@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    file: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 6)
    damage(tmp_path / "step-00000006" / file)
    m, optimizer, guard = trained(0.0)
    assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
    assert (m.weight == 3).all()
    told = capsys.readouterr().err
    assert "step-00000006 is damaged" in told
    assert "going on from the one before" in told
    assert told.count("\n") == 1
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000006.damaged"]
    damage(tmp_path / "step-00000006" / file)
    damage(tmp_path / "step-00000003" / file)
    m, optimizer, guard = trained(0.0)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read .*: delete this folder to begin again"):
        checkpoint.restore(tmp_path, m, optimizer, guard)
    assert (m.weight == 0).all()


def test_a_checkpoint_of_another_model_is_told_as_such(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for other, why in (
        (nn.Linear(3, 2, bias=False), "it holds model.bias"),
        (nn.Linear(4, 2), "is .2, 3. in it, and .2, 4. here"),
    ):
        with pytest.raises(UserError, match=why):
            checkpoint.restore(tmp_path, other, Optimizers.of(other, CONFIG), Guard(CONFIG))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    m = Tied()
    checkpoint.save(tmp_path, 1, m, Optimizers.of(m, CONFIG), Guard(CONFIG), keep=1)
    assert list(FileSystemReader(tmp_path / "step-00000001").read_metadata().state_dict_metadata) == [
        "model.embedding.weight",
        "guard.norms",
        "guard.skipped_steps",
    ]
    other = Tied()
    assert checkpoint.restore(tmp_path, other, Optimizers.of(other, CONFIG), Guard(CONFIG)) == 1
    assert torch.equal(other.head.weight, m.head.weight)


@full_device
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata.tmp"])
def test_a_full_disk_is_told_as_such_and_leaves_the_older_checkpoint(file: str, tmp_path: Path) -> None:
    save(tmp_path, 3)
    beside = tmp_path / "step-00000006.tmp"
    beside.mkdir()
    (beside / file).symlink_to("/dev/full")
    big = nn.Linear(512, 512)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 6, big, Optimizers.of(big, CONFIG), Guard(CONFIG), 2)
    assert names(tmp_path) == ["step-00000003"]


def dying(instant: str) -> None:
    """Be killed there in the second save."""
    calls = []

    def kill(function: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return killing

    if instant == "written":
        checkpoint._Writer.write_data = kill(checkpoint._Writer.write_data)  # type: ignore[method-assign]
    elif instant == "all written":
        checkpoint._Writer.finish = kill(checkpoint._Writer.finish)  # type: ignore[method-assign]
    elif instant == "renamed":
        os.replace = kill(os.replace)
    else:
        checkpoint._remove = kill(checkpoint._remove)


def train_to_the(instant: str, folder: Path, keep: int) -> list[torch.Tensor]:
    if instant:
        dying(instant)
    m = model()
    fit(m, data, loss, replace(CONFIG, keep_checkpoints=keep, checkpoint_every_steps=2), folder, "test")
    return [p.detach() for p in m.parameters()]


@pytest.mark.parametrize("instant", ["written", "all written", "renamed", "removed"])
def test_a_run_killed_at_any_instant_of_a_save_continues_to_the_same_weights(instant: str, tmp_path: Path) -> None:
    """With one checkpoint that is kept: the next is whole before it is removed."""
    folder = tmp_path / "run"
    assert in_ranks(train_to_the, tmp_path, instant, folder, 1, num=1) == [None]
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest
    assert newest.name == ("step-00000006" if instant == "removed" else "step-00000002")
    resumed, whole = train_to_the("", folder, 1), train_to_the("", tmp_path / "whole", 1)
    assert all(map(torch.equal, resumed, whole))
    assert names(folder / "checkpoints") == ["step-00000008"]


def train_by_hand(folder: Path, way: str, fail_at: str) -> str:
    """What was told of a run that fails in a save: "full" and "killed" in the second, "elsewhere" in the first."""

    def batch_at(step: int, part: slice) -> torch.Tensor | None:
        if step == 5 and fail_at == "full" and distributed.rank() == 0:
            (folder / "checkpoints/step-00000006.tmp").mkdir()
            (folder / "checkpoints/step-00000006.tmp/__1_0.distcp").symlink_to("/dev/full")
        return items(8)(step, part)

    if fail_at == "killed" and distributed.rank() == 1:
        dying("written")
    if fail_at == "elsewhere" and distributed.rank() == 1:
        checkpoint._beside = lambda path: folder / "elsewhere" / path.name
    try:
        train_tower(folder, way, batch_at=batch_at)
    except (OSError, UserError) as e:
        return str(e)
    return ""


@full_device
def test_a_disk_that_is_full_for_one_process_ends_all(tmp_path: Path) -> None:
    told = in_ranks(train_by_hand, tmp_path, tmp_path / "run", "shard", "full")
    assert ["No space left" in line for line in told] == [True, True]
    assert names(tmp_path / "run/checkpoints") == ["step-00000003"]


def test_a_disk_that_only_one_process_sees_is_told_as_such(tmp_path: Path) -> None:
    first, _ = in_ranks(train_by_hand, tmp_path, tmp_path / "run", "shard", "elsewhere")
    assert "__1_0.distcp is missing: every process must see the folder that the first one writes to" in first
    assert names(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_a_process_that_dies_in_a_save_ends_all_and_the_rerun_continues(way: str, tmp_path: Path) -> None:
    left, dead = in_ranks(train_by_hand, tmp_path, tmp_path / "run", way, "killed")
    assert dead is None
    assert "another process of this run has ended" in left
    newest = checkpoint.newest(tmp_path / "run/checkpoints")
    assert newest
    assert newest.name == "step-00000003"
    resumed, again = in_ranks(train_tower, tmp_path, tmp_path / "run", way)
    whole, _ = in_ranks(train_tower, tmp_path, tmp_path / "whole", way)
    assert all(map(torch.equal, resumed.weights, whole.weights))
    assert all(map(torch.equal, again.weights, whole.weights))
