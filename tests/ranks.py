"""A function in several processes at once, with the environment that torchrun would give them."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def in_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, num: int = 2) -> list[Any]:
    """What `function(*arguments)` returns in each of `num` processes, by rank; it must be importable by name."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = get_context("spawn")
    found = [folder / f"rank-{rank}.pt" for rank in range(num)]
    processes = [
        context.Process(target=_run, args=(rank, num, port, function, arguments, found[rank])) for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * num
    return [torch.load(path, weights_only=False) for path in found]


def _run(rank: int, num: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], out: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    from weft.training import distributed

    distributed.begin()
    torch.save(function(*arguments), out)
    distributed.end()
