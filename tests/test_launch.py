"""Rank and number of processes from the environment of torchrun."""

import pytest

from weft import launch


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost"}, (3, 8)),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (0, 1)),  # of another launcher, such as Slurm's wrappers
    ],
)
def test_a_process_outside_torchrun_is_alone(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launch.rank(), launch.world_size()) == expected
