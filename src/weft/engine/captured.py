"""Generation on a GPU: the decoding step for a fixed number of rows, compiled and captured as a CUDA graph.

    captured = CapturedStep(Step(model, sampling, {end_id}, allowed), max_repeats=None, num_rows=256, width=512)
    results = captured.generate(requests)

On a GPU, launching the kernels of a step takes longer than running them, so they are launched together. A CUDA graph
needs fixed tensors: `num_rows` rows with caches of `width` positions. Every `_STEPS_PER_CHECK` steps, finished rows are
given to new requests. If the step cannot be compiled, for lack of a C compiler, it is captured as it is.

On an H200 (PyTorch 2.11) and on a CPU, a model in fp32 gives the results of `weft.engine.continuous`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence

import torch

from weft.engine.continuous import NUM_SUB_BATCHES
from weft.engine.sampling import Generated, Request
from weft.engine.step import ROW_MULTIPLE, State, Step, SubBatch, longest_first, prefill, round_up

_STEPS_PER_CHECK = 8
_BACKEND = "inductor"


class CapturedStep:
    """A step with its own rows and caches. Calls of `generate` from several threads take turns."""

    def __init__(self, step: Step, max_repeats: int | None, num_rows: int, width: int) -> None:
        device = step.model.device
        self.width = width
        self._step, self._num_rows = step, num_rows
        self._rows = torch.arange(num_rows, device=device)
        self._lock = threading.Lock()
        with torch.inference_mode():
            self._state = State.empty(num_rows, width, max_repeats, device)
            self._batch = SubBatch.empty(step.model, self._rows, width)
            compiled = _compile(lambda: step(self._state, self._rows, [self._batch]))
            self._run = _capture(compiled) if device.type == "cuda" else compiled
        self._compiled = compiled  # kept, because the graph reads its constants

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Generate as `Engine.generate` does, for requests of at most `width` positions."""
        results = [Generated([], False) for _ in requests]
        waiting, size = longest_first(requests), max(1, self._num_rows // NUM_SUB_BATCHES)
        request_of: dict[int, int] = {}  # row -> request
        with self._lock:
            self._step.refresh()
            self._state.running.fill_(False)
            while waiting or request_of:
                while waiting and self._num_rows - len(request_of) >= size:
                    chosen, waiting = waiting[:size], waiting[size:]
                    free = [row for row in range(self._num_rows) if row not in request_of][: len(chosen)]
                    self._begin(free, [requests[i] for i in chosen])
                    request_of |= zip(free, chosen, strict=True)
                for _ in range(_STEPS_PER_CHECK):
                    self._run()
                running = self._state.running.tolist()
                ended = [row for row in request_of if not running[row]]
                for row, result in zip(ended, self._state.results(self._rows[ended]), strict=True):
                    results[request_of.pop(row)] = result
        return results

    def _begin(self, rows: list[int], requests: Sequence[Request]) -> None:
        """Assign rows to requests. Prompts are prefilled outside of the graph, because their shapes vary."""
        index = self._rows[rows]
        self._state.begin(index, requests)
        padded = torch.cat([index, index.new_zeros(round_up(len(rows), ROW_MULTIPLE) - len(rows))])
        prompts = prefill(self._step.model, [r.ids[:-1] for r in requests], padded)
        for own, fresh in zip(self._batch.keys, prompts.keys, strict=True):
            own[index, :, :, : fresh.shape[3]] = fresh[: len(rows)]
        for own, fresh in zip(self._batch.values, prompts.values, strict=True):
            own[index, :, : fresh.shape[2]] = fresh[: len(rows)]


def _compile(step: Callable[[], None]) -> Callable[[], None]:
    """Compile and run a step while no row is running. Without a compiler, warn and return it as it is."""
    from torch._dynamo.exc import BackendCompilerFailed  # this import takes seconds

    compiled = torch.compile(step, backend=_BACKEND, dynamic=False)
    try:
        compiled()
    except BackendCompilerFailed as e:
        reason = " ".join(str(e).split())[:200]
        warnings.warn(f"generation is not compiled, and therefore slower: {reason}")
        return step
    return compiled


def _capture(step: Callable[[], None]) -> Callable[[], None]:
    """Return a step as one launch of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the first run initializes libraries, which must not be captured
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
