"""Many requests to a Llama-like model at once, in slots of which none ever goes: the quick way on a GPU.

    slots = Slots(Step(model, Sampling(temperature=0.8), {end_id}, allowed), None, num_slots=256)
    results = slots.generate(requests)

On a GPU a step takes longer to launch than to compute, unless it is launched as a whole. So it is compiled and recorded
as a CUDA graph, which always works on the same tensors: as many rows as there are slots, and caches whose width doubles
when a row needs more, so that few graphs exist. The host looks every `_STEPS_A_LOOK` steps which rows have ended, and
gives their slots to new requests; the prices are steps of ended rows, attention to positions that nobody has reached,
and, once for each width, the time to compile. Where nothing can be compiled, for want of a C compiler, steps are
recorded as they are.

Draws are those of `weft.engine.cohorts`, but for rounding that may differ with the width and the company. The tests run
all of this on a CPU, compiled, and hold it equal there; recording and replaying, which is `_recorded`, needs a GPU and
was not run on one yet.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from weft.engine.cohorts import COHORTS
from weft.engine.sampling import Generated, Request
from weft.engine.steps import ROWS, Cohort, State, Step, longest_first, read, whole

_LEAST_WIDTH = 128
_STEPS_A_LOOK = 8
_BACKEND = "inductor"


def suits(device: torch.device, num_requests: int, num_slots: int) -> bool:
    """Whether there is something to record on, and enough to do for it."""
    return device.type == "cuda" and num_requests >= num_slots


class Slots:
    """A number of rows that take turns at requests. What it compiles and records is kept for the next call."""

    def __init__(self, step: Step, max_repeats: int | None, num_slots: int) -> None:
        self._step, self._max_repeats, self._num_slots = step, max_repeats, num_slots
        self._tables: dict[int, _Table] = {}
        self._lock = threading.Lock()  # of the tables: calls take turns

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """What `Engine.generate` gives, of requests that are known to fit."""
        with self._lock:
            self._step.refresh()
            return self._generate(requests)

    def _generate(self, requests: Sequence[Request]) -> list[Generated]:
        results = [Generated([], False) for _ in requests]
        waiting, at_once = longest_first(requests), max(1, self._num_slots // COHORTS)
        taken: dict[int, int] = {}  # slot: request
        num_steps = [0] * self._num_slots  # of each slot's request, at least
        table: _Table | None = None
        while waiting or taken:
            begun: dict[int, int] = {}
            while waiting and self._num_slots - len(taken) >= at_once:
                chosen, waiting = waiting[:at_once], waiting[at_once:]
                free = [slot for slot in range(self._num_slots) if slot not in taken]
                begun |= dict(zip(free, chosen))  # noqa: B905, more may be free
                taken |= begun
            for slot in taken:
                num_steps[slot] = _STEPS_A_LOOK + (0 if slot in begun else num_steps[slot])
            needed = [
                len(requests[i].ids) + min(num_steps[slot], requests[i].max_new_tokens) for slot, i in taken.items()
            ]
            if table is None or max(needed) > table.width:
                wider = self._table(max(needed))
                wider.go_on_from(table)
                wider.state.give_draws(wider.rows(taken), [requests[i] for i in taken.values()])
                table = wider
            if begun:
                table.begin(table.rows(begun), [requests[i] for i in begun.values()])
            for _ in range(_STEPS_A_LOOK):
                table.run()
            running = table.state.running.tolist()
            ended = [slot for slot in taken if not running[slot]]
            for slot, found in zip(ended, table.state.results(table.rows(ended)), strict=True):
                results[taken.pop(slot)] = found
        return results

    def _table(self, num_positions: int) -> _Table:
        """The narrowest that is wide enough."""
        width = _LEAST_WIDTH
        while width < num_positions:
            width *= 2
        if width not in self._tables:
            self._tables[width] = _Table(self._step, width, self._max_repeats, self._num_slots)
        return self._tables[width]


class _Table:
    """The tensors of all slots at one width, and the step that works on them."""

    def __init__(self, step: Step, width: int, max_repeats: int | None, num_slots: int) -> None:
        self.width, self._model = width, step.model
        self._slots = torch.arange(num_slots, device=self._model.device)
        self.state = State.empty(num_slots, width, max_repeats, self._model.device)
        self._cohort = Cohort.empty(self._model, self._slots, width)

        def advance() -> None:
            step(self.state, self._slots, [self._cohort])

        self._advance = _compiled(advance)  # kept: what is recorded reads the constants of what is compiled
        self.run = _recorded(self._advance) if self._model.device.type == "cuda" else self._advance

    def rows(self, slots: Collection[int]) -> Tensor:
        """The numbers of slots, (M,), where the tensors are."""
        return torch.tensor(list(slots), dtype=torch.long, device=self._slots.device)

    def begin(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """Give slots to requests, whose prompts are read outside the graph: each group has a shape of its own."""
        self.state.begin(rows, requests)
        filled = torch.cat([rows, rows.new_zeros(whole(len(rows), ROWS) - len(rows))])
        prompts = read(self._model, [r.ids[:-1] for r in requests], filled)
        for own, fresh in zip(self._cohort.keys, prompts.keys, strict=True):
            own[rows, :, :, : fresh.shape[3]] = fresh[: len(rows)]
        for own, fresh in zip(self._cohort.values, prompts.values, strict=True):
            own[rows, :, : fresh.shape[2]] = fresh[: len(rows)]

    def go_on_from(self, narrower: _Table | None) -> None:
        """Take over every row of a narrower table; of none, let no row run."""
        self.state.running.fill_(False)
        if narrower is not None:
            for own, other in zip(self._tensors(), narrower._tensors(), strict=True):
                own[tuple(map(slice, other.shape))] = other

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.state.tensors()
        yield from self._cohort.keys
        yield from self._cohort.values


def _compiled(step: Callable[[], None]) -> Callable[[], None]:
    """The step in as few kernels as can be, compiled now, while nobody's row runs; or as it is, with a warning."""
    from torch._dynamo.exc import BackendCompilerFailed  # seconds, which others need not wait

    compiled = torch.compile(step, backend=_BACKEND, dynamic=False)
    try:
        compiled()
    except BackendCompilerFailed as e:
        reason = " ".join(str(e).split())[:200]
        warnings.warn(f"generation is not compiled, and takes longer: {reason}")
        return step
    return compiled


def _recorded(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one launch, by a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what libraries set up when they first run is no part of a graph
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
