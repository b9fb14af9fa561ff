"""How much of each source a run reads: weights, turned into whole numbers of samples before the run begins.

    weights = {"text": 0.3, "speech": "1 epoch", "woven": "rest"}
    cycle = cycle_of(weights, sources, drawn=np.zeros(3, np.int64), steps=1000, tokens_per_step=4096)
    cycle.quotas, cycle.samples_per_step

A weight is a share of the tokens (all of them make 1), how often the source is to have passed when the run ends, or
the rest of the tokens.
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

_SHORTEST, _LONGEST = 1 << 10, 1 << 20  # samples of a cycle
_ROUNDING = 0.1  # by which a source's part of a cycle may differ from its share, relative to it
_SUM_TOLERANCE = 1e-3  # three times 0.333 is meant as a whole


def _number_or_words(_: Any, tokens: Sequence[Token]) -> float | str:
    try:
        return float(tokens[0].value)
    except ValueError:
        return tokens[0].value


Weight = Annotated[float | str, Parameter(converter=_number_or_words)]


class Source(Protocol):
    """What shares need to know of a source: `len` samples that have `num_tokens` ids together."""

    num_tokens: int

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Cycle:
    """Samples in which each of S sources, sorted by name, has its quota exactly; order is drawn cycle by cycle.

    `quotas` (S,) int64. A step takes `samples_per_step`, which have about the tokens that were asked for.
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
    tokens_per_step: int,
    called: str = "weights",
) -> Cycle:
    """The cycle of a run with `steps` to go, which has read `drawn` (S,) samples of its sources before.

    Epochs are those of the whole run. They are never exceeded, and fall short by less than a sample a cycle; up to a
    million samples are one cycle. Raises UserError, with the arithmetic, for `weights` that cannot be kept; `called`
    is their name in the recipe.
    """
    shares, epochs, rest = _read(weights, sources, called)
    names = sorted(sources)
    num_samples = np.array([len(sources[name]) for name in names])
    sample_tokens = np.array([max(1, sources[name].num_tokens / max(1, len(sources[name]))) for name in names])
    left = np.where(epochs > 0, (epochs * num_samples + 1e-6).astype(np.int64) - drawn, 0)
    for name, of_source in zip(names, left, strict=True):
        if of_source < 0:
            raise UserError(f"{name} has passed more than the {weights[name]} of {called} by then: give it 0")
    by_epochs = left * sample_tokens / (steps * tokens_per_step)
    if rest is not None:
        shares[rest] = 1 - shares.sum() - by_epochs.sum()
        if shares[rest] <= 0:
            told = " + ".join(
                f"{share:.3g} of {n}" for n, share in zip(names, shares + by_epochs, strict=True) if share > 0
            )
            raise UserError(
                f"{called} leave no rest for {names[rest]}: of {steps * tokens_per_step:,} tokens in {steps:,} steps "
                f"they take {told}, which is {1 - shares[rest]:.3g}; take more steps, or smaller weights"
            )
    if not left.any():
        quotas = _quotas(shares / sample_tokens)
        return Cycle(quotas, max(1, round(tokens_per_step / float(quotas @ sample_tokens / quotas.sum()))))
    samples_per_step = max(1, round(tokens_per_step * float(((shares + by_epochs) / sample_tokens).sum())))
    return Cycle(_spread(left, shares / sample_tokens, steps * samples_per_step, names, called), samples_per_step)


def _spread(left: np.ndarray, shares: np.ndarray, total: int, names: Sequence[str], called: str) -> np.ndarray:
    """Quotas of the fewest equal cycles of a run of `total` samples: of `left` samples, and the others by `shares`."""
    num_cycles = math.ceil(total / _LONGEST)
    quotas = left // num_cycles
    for name, of_source, quota in zip(names, left, quotas, strict=True):
        if of_source and not quota:
            raise UserError(f"{name} is too small to be spread over {total:,} samples: join it with another dataset")
    others = math.ceil(total / num_cycles) - int(quotas.sum())
    if others < np.count_nonzero(shares):
        raise UserError(f"{called} leave no sample of {total:,} for the rest: take more steps")
    return quotas + _apportion(shares, others)


def _read(
    weights: Mapping[str, float | str], sources: Mapping[str, Source], called: str
) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Shares (S,), epochs (S,) and the place of the source that has the rest, if one has; those not given are 0."""
    for name in weights:
        if name not in sources:
            raise UserError(
                f"{called} names {name!r}, which tokens does not hold: it holds {', '.join(sorted(sources))}"
            )
    if missing := sorted(sources.keys() - weights.keys()):
        raise UserError(f"{called} lacks {', '.join(missing)}: give each a share of the tokens, or 0 to leave it out")
    shares, epochs, rests = np.zeros(len(sources)), np.zeros(len(sources)), []
    for i, name in enumerate(sorted(sources)):
        weight = weights[name]
        if weight == "rest":
            rests.append(i)
        elif isinstance(weight, str):
            epochs[i] = _epochs(weight, f"{called}.{name}")
        elif 0 <= weight <= 1:
            shares[i] = weight
        else:
            raise UserError(f"{called}.{name} is {weight:g}: give 0 to 1, a share of the tokens")
        if weight and not len(sources[name]):
            raise UserError(f"{name} has no document of two ids or more: give it 0 in {called}, to leave it out")
    if len(rests) > 1:
        raise UserError(f"{called} give the rest {len(rests)} times: give it to one source")
    if not rests and (epochs.any() or abs(shares.sum() - 1) > _SUM_TOLERANCE):
        told = "name epochs" if epochs.any() else f"sum to {shares.sum():.4g}, not to 1"
        raise UserError(f'{called} {told}: give one source the "rest"' + ("" if epochs.any() else ", or change them"))
    return shares, epochs, rests[0] if rests else None


def _epochs(weight: str, called: str) -> float:
    """The number in "1 epoch", "2.5 epochs"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) epochs?", weight)
    if not found or not float(found[1]):
        raise UserError(f'{called} is {weight!r}: give a share of the tokens (0.3), "1 epoch", "2.5 epochs" or "rest"')
    return float(found[1])


def _quotas(shares: np.ndarray) -> np.ndarray:
    """Quotas of a cycle of 1024 samples; of more where whole numbers of so few would be other shares."""
    size, some = _SHORTEST, shares > 0
    exact = shares[some] / shares.sum()
    while np.abs(_apportion(shares, size)[some] / size / exact - 1).max() > _ROUNDING and size < _LONGEST:
        size *= 32
    return _apportion(shares, size)


def _apportion(shares: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers in proportion to `shares` that sum to `size`, at least 1 where any, by largest remainder."""
    least = (shares > 0).astype(np.int64)
    exact = shares / shares.sum() * (size - least.sum())
    quotas = exact.astype(np.int64)
    left = size - int(least.sum()) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    return quotas + least
