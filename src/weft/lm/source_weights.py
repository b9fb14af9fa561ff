"""Source weights: how much of each dataset a run reads, as whole numbers of samples.

    weights = {"text": 0.3, "speech": "1 epoch", "interleaved": "rest"}
    cycle = cycle_of(weights, sources, drawn=np.zeros(3, np.int64), steps=1000, batch_tokens=4096)
    cycle.quotas, cycle.samples_per_step

A weight is a fraction of the tokens (together 1), the number of epochs in the whole run, or the rest of the tokens.

Shapes: S sources, in the order of `sources`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from cyclopts import Parameter, Token

from weft.errors import UserError

_MIN_CYCLE, _MAX_CYCLE = 1 << 10, 1 << 20  # samples
_MAX_ROUNDING = 0.1  # relative difference between a source's fraction of a cycle and its weight
_SUM_TOLERANCE = 1e-3  # three times 0.333 is accepted as 1


def _number_or_text(_: Any, tokens: Sequence[Token]) -> float | str:
    try:
        return float(tokens[0].value)
    except ValueError:
        return tokens[0].value


Weight = Annotated[float | str, Parameter(converter=_number_or_text)]


class Source(Protocol):
    """A dataset: `len` samples with `num_tokens` ids in total."""

    num_tokens: int

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Cycle:
    """A number of samples of which each source has an exact quota; their order is random within each cycle.

    `quotas` (S,) int64. A step takes `samples_per_step`, which contain about the requested tokens.
    """

    quotas: np.ndarray
    samples_per_step: int

    def __len__(self) -> int:
        return int(self.quotas.sum())


def cycle_of(
    weights: Mapping[str, float | str],
    sources: Mapping[str, Source],
    drawn: np.ndarray,
    steps: int,
    batch_tokens: int,
    setting: str = "weights",
) -> Cycle:
    """Return the cycle of a run with `steps` remaining, which has already read `drawn` (S,) samples.

    Epochs refer to the whole run. They are never exceeded, and are short by less than a sample per cycle; up to a
    million samples form one cycle. Raises UserError for impossible weights; `setting` is their name in the recipe.
    """
    fractions, epochs, rest = _parse(weights, sources, setting)
    names = list(sources)
    num_samples = np.array([len(sources[name]) for name in names])
    sample_tokens = np.array([max(1, sources[name].num_tokens / max(1, len(sources[name]))) for name in names])
    remaining = np.where(epochs > 0, (epochs * num_samples + 1e-6).astype(np.int64) - drawn, 0)
    for name, count in zip(names, remaining, strict=True):
        if count < 0:
            raise UserError(f"{name} has been read more than the {weights[name]} of {setting} by then: give it 0")
    by_epochs = remaining * sample_tokens / (steps * batch_tokens)
    if rest is not None:
        fractions[rest] = 1 - fractions.sum() - by_epochs.sum()
        if fractions[rest] <= 0:
            parts = zip(names, fractions + by_epochs, strict=True)
            terms = " + ".join(f"{fraction:.3g} of {name}" for name, fraction in parts if fraction > 0)
            raise UserError(
                f"{setting} leave no rest for {names[rest]}: of {steps * batch_tokens:,} tokens in {steps:,} steps, "
                f"they take {terms}, which is {1 - fractions[rest]:.3g}: increase the steps, or reduce weights"
            )
    if not remaining.any():
        quotas = _quotas(fractions / sample_tokens)
        return Cycle(quotas, max(1, round(batch_tokens / float(quotas @ sample_tokens / quotas.sum()))))
    samples_per_step = max(1, round(batch_tokens * float(((fractions + by_epochs) / sample_tokens).sum())))
    total = steps * samples_per_step
    return Cycle(_spread(remaining, fractions / sample_tokens, total, names, setting), samples_per_step)


def _spread(remaining: np.ndarray, weights: np.ndarray, total: int, names: Sequence[str], setting: str) -> np.ndarray:
    """Return the quotas of as few cycles as possible over `total` samples.

    Sources with epochs take their `remaining` samples, and the others the rest in proportion to `weights`.
    """
    num_cycles = math.ceil(total / _MAX_CYCLE)
    quotas = remaining // num_cycles
    for name, count, quota in zip(names, remaining, quotas, strict=True):
        if count and not quota:
            raise UserError(f"{name} is too small for {total:,} samples: merge it with another dataset")
    others = math.ceil(total / num_cycles) - int(quotas.sum())
    if others < np.count_nonzero(weights):
        raise UserError(f"{setting} leave none of {total:,} samples for the rest: increase the steps")
    return quotas + _apportion(weights, others)


def _parse(
    weights: Mapping[str, float | str], sources: Mapping[str, Source], setting: str
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Return the fractions (S,), the epochs (S,), and the index of the source that has the rest; 0 where not given."""
    for name in weights:
        if name not in sources:
            raise UserError(f"{setting} lists {name!r}, which is not in tokens: {', '.join(sources)}")
    if missing := [name for name in sources if name not in weights]:
        raise UserError(f"{setting} lacks {', '.join(missing)}: give a fraction of the tokens, or 0 to leave it out")
    fractions, epochs, rests = np.zeros(len(sources)), np.zeros(len(sources)), []
    for i, name in enumerate(sources):
        weight = weights[name]
        if weight == "rest":
            rests.append(i)
        elif isinstance(weight, str):
            epochs[i] = _epochs(weight, f"{setting}.{name}")
        elif 0 <= weight <= 1:
            fractions[i] = weight
        else:
            raise UserError(f"{setting}.{name} is {weight:g}: give a fraction of the tokens, 0 to 1")
        if weight and not len(sources[name]):
            raise UserError(f"{name} has no document of two or more ids: give it 0 in {setting}")
    if len(rests) > 1:
        raise UserError(f"{setting} give the rest {len(rests)} times: give it to one source")
    if not rests and (epochs.any() or abs(fractions.sum() - 1) > _SUM_TOLERANCE):
        problem = "contain epochs" if epochs.any() else f"sum to {fractions.sum():.4g} instead of 1"
        remedy = "" if epochs.any() else ", or change them"
        raise UserError(f'{setting} {problem}: give one source the "rest"{remedy}')
    return fractions, epochs, rests[0] if rests else None


def _epochs(weight: str, setting: str) -> float:
    """Parse "1 epoch" or "2.5 epochs"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) epochs?", weight)
    if not found or not float(found[1]):
        raise UserError(
            f'{setting} is {weight!r}: give a fraction of the tokens (0.3), "1 epoch", "2.5 epochs" or "rest"'
        )
    return float(found[1])


def _quotas(weights: np.ndarray) -> np.ndarray:
    """Return the quotas of a cycle of 1024 samples, or of more if rounding would change the weights too much."""
    size, nonzero = _MIN_CYCLE, weights > 0
    exact = weights[nonzero] / weights.sum()
    while np.abs(_apportion(weights, size)[nonzero] / size / exact - 1).max() > _MAX_ROUNDING and size < _MAX_CYCLE:
        size *= 32
    return _apportion(weights, size)


def _apportion(weights: np.ndarray, size: int) -> np.ndarray:
    """Return integers in proportion to `weights` that sum to `size`, by largest remainder; at least 1 if not zero."""
    least = (weights > 0).astype(np.int64)
    exact = weights / weights.sum() * (size - least.sum())
    quotas = exact.astype(np.int64)
    remaining = size - int(least.sum()) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:remaining]] += 1
    return quotas + least
