"""Codebook usage: how many codes are used, how evenly, and whether it has collapsed.

    usage = usage_of(counts)                     # from the uses of each code, (K,)
    if warning := collapse_warning(counts): print(warning)

Shapes: K codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

_NUM_FREQUENT = 10
_MIN_USED_FRACTION = 0.1  # of the codes that could be in use
_MAX_FREQUENT_FRACTION = 0.6  # of all tokens, by the ten most frequent codes; silence alone stays below


@dataclass(frozen=True)
class CodebookUsage:
    """Use of a codebook: codes that occur, their fraction, perplexity, bits per code, and restarts of the run."""

    codes_used: int
    codes_used_fraction: float
    perplexity: float
    bits: float
    restarts: int = 0
    counts: Tensor | None = field(default=None, compare=False, repr=False)


def usage_of(counts: Tensor) -> CodebookUsage:
    """Return the usage of a codebook from the uses of each code (K,)."""
    total = counts.sum().clamp(min=1)
    p = counts.double() / total
    bits = float(-(p * p.clamp(min=1e-12).log2()).sum())
    used = int((counts > 0).sum())
    return CodebookUsage(used, used / len(counts), 2.0**bits, bits, counts=counts)


def most_frequent_fraction(counts: Tensor) -> float:
    """Return the fraction of all uses by the ten most frequent codes, from the uses of each code (K,)."""
    return float(counts.topk(min(_NUM_FREQUENT, len(counts))).values.sum() / counts.sum().clamp(min=1))


def codebook_metrics(counts: Tensor, frame_rate_hz: float) -> dict[str, float]:
    """Return the use and the bit rates of a codebook as results.json has them, from the uses of each code (K,)."""
    usage, tokens = usage_of(counts), int(counts.sum())
    return {
        "frame_rate_hz": frame_rate_hz,
        "tokens": tokens,
        "num_codes": len(counts),
        "codes_used": usage.codes_used,
        "codes_used_share": usage.codes_used_fraction,
        "perplexity": usage.perplexity,
        "most_frequent_share": most_frequent_fraction(counts),
        "bits_per_sec": usage.bits * frame_rate_hz,
        "nominal_bits_per_sec": math.log2(len(counts)) * frame_rate_hz,
    }


def collapse_warning(counts: Tensor) -> str | None:
    """Return the problem of a collapsed codebook and what to do, from the uses of each code (K,); None if healthy.

    A codebook with more codes than there are tokens is expected to use one code per token.
    """
    num_codes, tokens, used = len(counts), int(counts.sum()), int((counts > 0).sum())
    if used < _MIN_USED_FRACTION * min(num_codes, tokens):
        problem = f"only {used} of {num_codes} codes are used by {tokens} tokens"
    elif num_codes > 10 * _NUM_FREQUENT and (frequent := most_frequent_fraction(counts)) > _MAX_FREQUENT_FRACTION:
        problem = f"{_NUM_FREQUENT} of {num_codes} codes make up {frequent:.0%} of the tokens"
    else:
        return None
    return (
        f"the codebook has collapsed: {problem}. Train again and restart unused codes sooner (restart_every_steps, "
        "restart_fraction = 0.1 of model.quantizer), or use kind = 'fsq', which has no codebook to collapse; quantize "
        "later, when hidden states are meaningful (quantize_from_step); use a lower train.lr, fewer codes or more "
        "speech. log/metrics.jsonl shows when it happened"
    )


class CodebookMonitor:
    """Detects a collapse during training, over periods in which every code could have been used many times.

        if warning := monitor.add(quantizer.update()): print(warning)

    A resumed run starts a new period.
    """

    MIN_STEPS = 100
    MIN_USES_PER_CODE = 10

    def __init__(self) -> None:
        self.warning: str | None = None
        """The problem of the last complete period, if any."""
        self._counts: Tensor | None = None
        self._num_steps = 0

    def add(self, step: CodebookUsage) -> str | None:
        """Add a step. Return the problem at the end of a period that has one."""
        assert step.counts is not None
        self._counts = step.counts if self._counts is None else self._counts + step.counts
        self._num_steps += 1
        if self._num_steps < self.MIN_STEPS or self._counts.sum() < self.MIN_USES_PER_CODE * len(self._counts):
            return None
        self.warning, self._counts, self._num_steps = collapse_warning(self._counts), None, 0
        return self.warning
