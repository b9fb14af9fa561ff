"""Execution of a function in several processes at once, in the environment of torchrun."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

# Processes are forked from one that has done nothing but the imports, which take seconds.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "weft.tokenizer.train"])


def in_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, num: int = 2) -> list[Any]:
    """Return the results of `function(*arguments)` in `num` processes, by rank. It must be importable by name.

    The result of a process that failed or was killed is None.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    results = [folder / f"rank-{rank}.pt" for rank in range(num)]
    processes = [
        CONTEXT.Process(target=_run, args=(rank, num, port, function, arguments, results[rank])) for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [
        torch.load(path, weights_only=False) if process.exitcode == 0 else None
        for path, process in zip(results, processes, strict=True)
    ]


def _run(rank: int, num: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], out: Path) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    from weft.training import distributed

    distributed.init()
    torch.save(function(*arguments), out)
    distributed.shutdown()
