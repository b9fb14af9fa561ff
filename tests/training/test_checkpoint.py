import io
import json
import os
import pickle
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.ranks import in_ranks
from tests.training.models import (
    CONFIG,
    Parallel,
    Tower,
    all_equal,
    data,
    first_items,
    loss,
    model,
    train_tower,
    weights_of,
)
from weft.errors import UserError
from weft.training import checkpoint, distributed
from weft.training.guard import StepGuard
from weft.training.loop import fit
from weft.training.optimizers import Optimizers
from weft.training.tensor_files import Stored, digest_of, read_headers

full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")


def trained(value: float) -> tuple[nn.Linear, Optimizers, StepGuard]:
    """Return a model with one value everywhere, an optimizer after a step with it, and a guard."""
    m = nn.Linear(3, 2)
    optimizer = Optimizers.of(m, CONFIG)
    for p in m.parameters():
        p.grad = torch.full_like(p, value)
    optimizer.step()
    nn.init.constant_(m.weight, value)
    nn.init.constant_(m.bias, value)
    guard = StepGuard(CONFIG)
    if value:
        guard.should_step(0, value, "")
    return m, optimizer, guard


def with_fixed_bias(model: nn.Linear) -> nn.Linear:
    model.bias.requires_grad_(False)
    return model


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoint.save(folder, step, *trained(float(step)), keep)


def stored(path: Path) -> dict[str, Stored]:
    return read_headers(path, sorted(json.loads((path / "sha256.json").read_text())))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_restored_checkpoint_equals_the_saved_one(tmp_path: Path) -> None:
    save(tmp_path, 3)
    m, optimizer, guard = trained(0.0)
    assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
    saved, saved_optimizer, saved_guard = trained(3.0)
    assert all(map(torch.equal, m.parameters(), saved.parameters()))
    assert torch.equal(guard.state_dict()["norms"], saved_guard.state_dict()["norms"])
    expected, found = saved_optimizer.state_dict(saved), optimizer.state_dict(m)
    assert sorted(found) == sorted(f"{p}.{s}" for p in ("weight", "bias") for s in ("step", "exp_avg", "exp_avg_sq"))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_newest_checkpoints_are_kept_and_incomplete_ones_removed(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.restore(tmp_path, *trained(0.0)) == 0
    save(tmp_path, 3, 6, 9)
    (tmp_path / "step-00000012.tmp").mkdir()
    (tmp_path / "step-00000012.tmp/rank-00000.safetensors").write_bytes(b"half of a checkpoint")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000009"
    assert checkpoint.restore(tmp_path, *trained(0.0)) == 9
    assert names(tmp_path) == ["step-00000006", "step-00000009"]


FILES = ["sha256.json", "rank-00000.safetensors"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)  # the last byte of JSON may be a line feed


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def as_list(path: Path) -> None:
    path.write_text('["rank-00000.safetensors"]')


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink, as_list])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_renamed_and_the_previous_one_restored(
    file: str, damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 6)
    damage(tmp_path / "step-00000006" / file)
    m, optimizer, guard = trained(0.0)
    assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
    assert (m.weight == 3).all()
    message = capsys.readouterr().err
    assert "step-00000006 is damaged" in message
    assert "using the previous checkpoint" in message
    assert message.count("\n") == 1
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000006.damaged"]
    damage(tmp_path / "step-00000006" / file)
    damage(tmp_path / "step-00000003" / file)
    m, optimizer, guard = trained(0.0)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read .*: delete it to start again"):
        checkpoint.restore(tmp_path, m, optimizer, guard)
    assert (m.weight == 0).all()


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_is_never_resumed(file: str, tmp_path: Path) -> None:
    save(tmp_path, 3, 6)
    path = tmp_path / "step-00000006" / file
    intact = path.read_bytes()
    for at in range(0, len(intact), max(1, len(intact) // 64)):
        content = bytearray(intact)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        m, optimizer, guard = trained(0.0)
        assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
        assert (m.weight == 3).all()
        (tmp_path / "step-00000006.damaged").rename(path.parent)
    path.write_bytes(intact)
    assert checkpoint.restore(tmp_path, *trained(0.0)) == 6


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.created,)


@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("file", [*FILES, ".metadata", "__0_0.distcp"])
def test_a_checkpoint_with_pickled_data_executes_nothing(
    file: str, has_checksum: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 3, 6)
    created, path = tmp_path / "executed", tmp_path / "step-00000006"
    saved = io.BytesIO()
    torch.save(Payload(created), saved)
    for content in (pickle.dumps(Payload(created)), saved.getvalue()):
        (path / file).write_bytes(content)
        if has_checksum and file.startswith("rank"):
            (path / "sha256.json").write_text(json.dumps({file: digest_of(path / file)}))
        if file.startswith((".", "__")):  # the format of older versions
            (path / "sha256.json").unlink(missing_ok=True)
        assert checkpoint.newest(tmp_path)
        m, optimizer, guard = trained(0.0)
        assert checkpoint.restore(tmp_path, m, optimizer, guard) == 3
        message = capsys.readouterr().err
        assert "step-00000006 is damaged" in message
        assert message.count("\n") == 1
        assert ("it was written by an older version of weft" in message) == (file == ".metadata")
        (tmp_path / "step-00000006.damaged").rename(path)
    assert not created.exists()
    pickle.loads(pickle.dumps(Payload(created)))
    assert created.exists()


def test_a_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for other, reason in (
        (nn.Linear(3, 2, bias=False), "the model has no model.bias"),
        (nn.Linear(4, 2), "model.weight has shape .2, 3., and the model's has .2, 4."),
        (with_fixed_bias(nn.Linear(3, 2)), "the model does not train bias"),
    ):
        with pytest.raises(UserError, match=reason):
            checkpoint.restore(tmp_path, other, Optimizers.of(other, CONFIG), StepGuard(CONFIG))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    m = Tied()
    checkpoint.save(tmp_path, 1, m, Optimizers.of(m, CONFIG), StepGuard(CONFIG), keep=1)
    assert sorted(stored(tmp_path / "step-00000001")) == [
        "guard.norms",
        "guard.skipped_steps",
        "model.embedding.weight",
    ]
    other = Tied()
    assert checkpoint.restore(tmp_path, other, Optimizers.of(other, CONFIG), StepGuard(CONFIG)) == 1
    assert torch.equal(other.head.weight, m.head.weight)


@full_device
@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_is_reported_and_leaves_the_older_checkpoint(file: str, tmp_path: Path) -> None:
    save(tmp_path, 3)
    temporary = tmp_path / "step-00000006.tmp"
    temporary.mkdir()
    name = f"{file}.{socket.gethostname()}-{os.getpid()}.tmp" if file == "sha256.json" else file
    (temporary / name).symlink_to("/dev/full")
    big = nn.Linear(512, 512)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 6, big, Optimizers.of(big, CONFIG), StepGuard(CONFIG), 2)
    assert names(tmp_path) == ["step-00000003"]


def kill_in_the_second_save(moment: str) -> None:
    """Replace a function by one that kills this process in its second call."""
    calls = []

    def kill(function: Callable[..., Any], call: int = 2) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return killing

    if moment == "written":
        checkpoint._write = kill(checkpoint._write)
    elif moment == "all written":
        checkpoint._finish = kill(checkpoint._finish)
    elif moment == "renamed":
        os.replace = kill(os.replace, 4)  # a save replaces the checksums, then the directory
    else:
        checkpoint._remove = kill(checkpoint._remove)


def train_and_kill(moment: str, folder: Path, keep: int) -> list[torch.Tensor]:
    if moment:
        kill_in_the_second_save(moment)
    m = model()
    fit(m, data, loss, replace(CONFIG, keep_checkpoints=keep, checkpoint_every_steps=2), folder, "test")
    return weights_of(m)


@pytest.mark.parametrize("moment", ["written", "all written", "renamed", "removed"])
def test_a_run_killed_at_any_moment_of_a_save_resumes_to_the_same_weights(moment: str, tmp_path: Path) -> None:
    """With one checkpoint kept, the next is complete before the previous one is removed."""
    folder = tmp_path / "run"
    assert in_ranks(train_and_kill, tmp_path, moment, folder, 1, num=1) == [None]
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest
    assert newest.name == ("step-00000006" if moment == "removed" else "step-00000002")
    resumed, whole = train_and_kill("", folder, 1), train_and_kill("", tmp_path / "whole", 1)
    assert all_equal(resumed, whole)
    assert names(folder / "checkpoints") == ["step-00000009"]


def train_with_failing_save(folder: Path, kind: Parallel, failure: str) -> str:
    """Return the error of a run: "full" and "killed" fail in the second save, "elsewhere" in the first."""

    def batch_at(step: int, part: slice) -> torch.Tensor | None:
        if step == 5 and failure == "full" and distributed.rank() == 0:
            (folder / "checkpoints/step-00000006.tmp").mkdir()
            (folder / "checkpoints/step-00000006.tmp/rank-00001.safetensors").symlink_to("/dev/full")
        return first_items(8)(step, part)

    if failure == "killed" and distributed.rank() == 1:
        kill_in_the_second_save("written")
    if failure == "elsewhere" and distributed.rank() == 1:
        checkpoint._temporary = lambda path: folder / "elsewhere" / path.name
    try:
        train_tower(folder, kind, batch_at=batch_at)
    except (OSError, UserError) as e:
        return str(e)
    return ""


@full_device
def test_all_ranks_end_when_the_disk_of_one_is_full(tmp_path: Path) -> None:
    messages = in_ranks(train_with_failing_save, tmp_path, tmp_path / "run", "fsdp", "full")
    assert ["No space left" in message for message in messages] == [True, True]
    assert names(tmp_path / "run/checkpoints") == ["step-00000003"]


def test_a_directory_that_only_one_rank_sees_is_reported(tmp_path: Path) -> None:
    first, _ = in_ranks(train_with_failing_save, tmp_path, tmp_path / "run", "fsdp", "elsewhere")
    assert "rank-00001.safetensors is missing: use an output directory that all processes share" in first
    assert names(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_ranks_end_when_one_dies_in_a_save_and_the_run_resumes(kind: Parallel, tmp_path: Path) -> None:
    message, killed = in_ranks(train_with_failing_save, tmp_path, tmp_path / "run", kind, "killed")
    assert killed is None
    assert "another process of this run has ended" in message
    newest = checkpoint.newest(tmp_path / "run/checkpoints")
    assert newest
    assert newest.name == "step-00000003"
    resumed, other = in_ranks(train_tower, tmp_path, tmp_path / "run", kind)
    whole, _ = in_ranks(train_tower, tmp_path, tmp_path / "whole", kind)
    assert all_equal(resumed.weights, whole.weights)
    assert all_equal(other.weights, whole.weights)


def train_tower_until(folder: Path, kind: Parallel, stopped_before: int) -> list[torch.Tensor]:
    def batch_at(step: int, part: slice) -> torch.Tensor | None:
        if step == stopped_before:
            raise UserError("stop")
        return first_items(8)(step, part)

    if stopped_before < 0:
        return train_tower(folder, kind, batch_at=batch_at).weights
    with pytest.raises(UserError):
        train_tower(folder, kind, batch_at=batch_at)
    return []


def test_any_number_of_ranks_can_resume_a_checkpoint_of_any_other_number(tmp_path: Path) -> None:
    """And with DDP what FSDP has written, and the reverse."""
    whole = train_tower(tmp_path / "whole", "ddp").weights
    in_ranks(train_tower_until, tmp_path, tmp_path / "fsdp 2", "fsdp", 5)
    in_ranks(train_tower_until, tmp_path, tmp_path / "ddp 2", "ddp", 5)
    train_tower_until(tmp_path / "one", "ddp", 5)
    contents = [stored(tmp_path / name / "checkpoints/step-00000003") for name in ("one", "ddp 2", "fsdp 2")]
    assert contents[0].keys() == contents[1].keys() == contents[2].keys()
    assert all(len({found[name].shape for found in contents}) == 1 for name in contents[0])
    shutil.copytree(tmp_path / "fsdp 2", tmp_path / "copy")
    found = train_tower_until(tmp_path / "fsdp 2", "ddp", -1), train_tower_until(tmp_path / "ddp 2", "ddp", -1)
    in_three = in_ranks(train_tower_until, tmp_path, tmp_path / "copy", "fsdp", -1, num=3)
    in_two = in_ranks(train_tower_until, tmp_path, tmp_path / "one", "fsdp", -1)
    for weights in (*found, *in_three, *in_two):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, whole, strict=True))


def restore_elsewhere(folder: Path) -> str:
    """Restore in two ranks, of which one sees another directory."""
    m = Tower()
    if distributed.rank() == 1:
        checkpoint._damage = partial(damage_elsewhere, checkpoint._damage)  # type: ignore[assignment]
    try:
        checkpoint.restore(folder, m, Optimizers.of(m, CONFIG), StepGuard(CONFIG))
    except UserError as e:
        return str(e)
    return ""


def damage_elsewhere(damage: Any, path: Path) -> Any:
    return damage(path.with_name("elsewhere"))


def test_a_checkpoint_that_only_some_ranks_see_is_not_restored(tmp_path: Path) -> None:
    m = Tower()
    checkpoint.save(tmp_path, 3, m, Optimizers.of(m, CONFIG), StepGuard(CONFIG), keep=1)
    for message in in_ranks(restore_elsewhere, tmp_path, tmp_path):
        assert "all processes must see the directory that rank 0 writes to" in message
