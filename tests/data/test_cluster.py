"""Jobs on Slurm, with scripts in place of its commands that run the elements of an array one after the other."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from weft import artifacts, cli
from weft.data import cluster, job
from weft.data.cluster import Executor
from weft.data.job import JobConfig
from weft.errors import UserError
from weft.plan import Draft

COMMANDS = {
    "sbatch": """
        number=$(($(ls "$FAKE_SLURM" | wc -l) + 1)) script="$FAKE_SLURM/$number.sh"
        cp "${@: -1}" "$script"
        last=$(sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p' "$script")
        export SLURM_NODELIST=here RUN_OFFSET=0
        setsid bash -c "for i in $(seq -s ' ' 0 $last); do SLURM_ARRAY_TASK_ID=\\$i bash $script; done" \\
            >> "$FAKE_SLURM.log" 2>&1 < /dev/null &
        echo $! > "$FAKE_SLURM.pid"
        echo Submitted batch job $number
    """,
    "srun": 'shift 3; exec "$@"  # srun -l -n 1 COMMAND ...',
    "squeue": '[[ $(ps -o stat= -p $(< "$FAKE_SLURM.pid")) =~ ^[^Z] ]] && echo 1 weft R; exit 0',
    "scancel": 'kill -9 -- -$(< "$FAKE_SLURM.pid")',
    "scontrol": "echo here",
}
FLAGS = ["--executor.kind", "slurm", "--executor.partition", "cpu"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put scripts in place of Slurm's commands on the PATH; return the directory of submitted jobs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    for name, body in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "jobs"))
    monkeypatch.setenv("PYTHONPATH", str(Path(artifacts.__file__).parents[1]))
    monkeypatch.setattr(cluster, "_POLL_SEC", 0.1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for i in range(6):
        rows = [{"text": f"Text {j} of file {i}, which is very short."} for j in range(20)]
        (tmp_path / f"books/{i}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "jobs"


def create(out, *flags):
    return cli.run(["documents", "text", "books", "--out", out, "--tasks", "6", *flags])


def parts_of(out):
    return {path.name: path.read_bytes() for path in Path(out).glob("part-*.parquet")}


def test_a_job_has_the_same_bytes_locally_and_on_slurm(slurm):
    Path("recipe.toml").write_text(
        'kind = "text"\nsource = ["books"]\nout = "there"\ntasks = 6\nworkers = 2\n'
        '[executor]\nkind = "slurm"\npartition = "cpu"\nmem_per_cpu_gb = 3\nsbatch = { account = "speech" }\n'
    )
    assert cli.run(["documents", "recipe.toml"]) == 0
    assert cli.run(["documents", "recipe.toml", "--out", "here", "--executor.kind", "local", "--workers", "1"]) == 0
    assert parts_of("there") == parts_of("here")
    assert len(parts_of("there")) == 6
    assert artifacts.read(Path("there")) == artifacts.read(Path("here"))
    [script] = slurm.iterdir()
    for line in ("array=0-1%2", "partition=cpu", "mem-per-cpu=3G", "time=24:00:00", "account=speech"):
        assert f"#SBATCH --{line}\n" in script.read_text()


def test_commands_of_voices_are_not_in_the_finished_artifact(slurm):
    Path("lines.txt").write_text("one line\nanother line\n")
    soundfile.write("tone.wav", np.sin(np.arange(8000) / 4), 16000)
    Path("engine").write_text('#!/bin/bash\ncp tone.wav "$1"\n')
    Path("engine").chmod(stat.S_IRWXU)
    voice = f"command:{Path('engine').absolute()} {{out}} {{text_file}} --key sk-secret"
    speak = ["speak", "lines.txt", "--voice", voice, "--out"]
    setup = f"export PATH={Path(sys.executable).parent}:$PATH KEY=sk-other"
    assert cli.run([*speak, "there", *FLAGS, "--executor.env-command", setup]) == 0
    assert cli.run([*speak, "here"]) == 0
    assert "sk-other" in next(slurm.iterdir()).read_text()
    there, here = ({str(p.relative_to(out)) for p in Path(out).rglob("*")} for out in ("there", "here"))
    assert there == here
    assert not [p for p in Path("there").rglob("*") if p.is_file() and b"sk-" in p.read_bytes()]


def test_an_interrupted_command_finds_its_job_again(slurm, monkeypatch):
    create("whole")

    def interrupt(sec):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cluster.time, "sleep", interrupt)
        assert create("out", *FLAGS) == cli.EXIT_INTERRUPTED
    assert create("out", *FLAGS) == 0
    assert len(list(slurm.iterdir())) == 1
    assert parts_of("out") == parts_of("whole")


def test_a_killed_job_is_reported_and_resumed(slurm, monkeypatch, capsys):
    create("whole")
    wait = cluster.time.sleep

    def kill(sec):
        wait(sec)
        done = Path("out.partial/log/job/completions")
        if done.is_dir() and len(os.listdir(done)) == 3:  # the second of two elements has just started
            subprocess.run("scancel", check=True)

    with monkeypatch.context() as patched:
        patched.setattr(cluster.time, "sleep", kill)
        assert create("out", *FLAGS, "--workers", "2") == 2
    assert "tasks did not finish" in capsys.readouterr().err
    assert not Path("out").exists()
    damaged = min(Path("out.partial").glob("part-*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert create("out", *FLAGS) == 0
    assert f"task {int(damaged.stem[-5:])} runs again: {damaged.absolute()} has changed" in capsys.readouterr().err
    assert len(list(slurm.iterdir())) == 2
    assert parts_of("out") == parts_of("whole")


def test_the_error_of_a_task_is_reported(slurm, capsys):
    pq.write_table(pa.table({"body": ["no text"]}), "books/z.parquet")
    assert create("out", *FLAGS) == 2
    [message] = [line for line in capsys.readouterr().err.split("\n") if line.startswith("weft:")]
    assert "z.parquet has no column `text` (it has body)" in message


def test_missing_commands_of_slurm_are_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "slurm_job").write_text("7")
    with pytest.raises(UserError, match="squeue is not installed: start this command where Slurm's commands are"):
        cluster.is_running(tmp_path)


def test_slurm_needs_a_partition():
    with pytest.raises(UserError, match=r"executor.kind is slurm without a partition: give --executor.partition"):
        Executor("slurm")


def test_ray_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = JobConfig(executor=Executor("ray"))
    with pytest.raises(UserError, match=r"executor.kind is ray, but Ray is not installed: pip install ray"):
        job.run(print, Draft(tmp_path), 2, config, "title")
