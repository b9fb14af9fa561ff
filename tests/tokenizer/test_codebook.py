import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.tokenizer.codebook import CodebookMonitor, codebook_metrics, collapse_warning, usage_of


def test_evenly_used_codes_have_the_perplexity_of_the_whole_codebook() -> None:
    even, single = usage_of(torch.full((16,), 5)), usage_of(torch.tensor([7] + [0] * 15))
    assert (even.codes_used, round(even.perplexity, 6), round(even.bits, 6)) == (16, 16.0, 4.0)
    assert (single.codes_used, single.perplexity, single.bits) == (1, 1.0, 0.0)


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_perplexity_is_between_one_and_the_number_of_used_codes(counts: list[int]) -> None:
    usage = usage_of(torch.tensor(counts))
    assert usage.codes_used == sum(c > 0 for c in counts)
    assert usage.codes_used_fraction == usage.codes_used / len(counts)
    assert 1 - 1e-9 <= usage.perplexity <= max(1, usage.codes_used) + 1e-6
    assert usage.bits == pytest.approx(math.log2(usage.perplexity))


def test_figures_of_even_use_reach_the_nominal_bit_rate() -> None:
    metrics = codebook_metrics(torch.full((32,), 3), frame_rate_hz=12.5)
    assert (metrics["tokens"], metrics["num_codes"], metrics["codes_used_share"]) == (96, 32, 1.0)
    assert metrics["most_frequent_share"] == pytest.approx(10 / 32)
    assert metrics["bits_per_sec"] == pytest.approx(metrics["nominal_bits_per_sec"]) == pytest.approx(62.5)


def counts(num_codes: int, used: list[int]) -> torch.Tensor:
    return torch.tensor(used + [0] * (num_codes - len(used)))


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (counts(512, [100] * 512), None),
        (counts(16384, [1] * 300), None),  # little speech and a large codebook
        (counts(512, [5_000] + [10] * 500), None),  # half of it silence
        (counts(16, [100] * 4), None),  # a small codebook
        (counts(512, [1000] * 40), "only 40 of 512 codes are used by 40000 tokens"),
        (counts(16384, [300]), "only 1 of 16384 codes are used by 300 tokens"),
        (counts(512, [500] * 10 + [5] * 500), "10 of 512 codes make up 67% of the tokens"),
    ],
)
def test_a_collapsed_codebook_is_reported_with_the_settings_to_change(uses: torch.Tensor, message: str | None) -> None:
    warning = collapse_warning(uses)
    if message is None:
        assert warning is None
        return
    assert message in (warning or "")
    for setting in ("restart_every_steps", "restart_fraction", "quantize_from_step", "train.lr"):
        assert setting in (warning or "")


def test_the_monitor_judges_periods_with_enough_uses_of_every_code() -> None:
    monitor, usage = CodebookMonitor(), usage_of(counts(16, [20]))
    warnings = [monitor.add(usage) for _ in range(2 * CodebookMonitor.MIN_STEPS)]
    judged = [step for step, warning in enumerate(warnings) if warning]
    assert judged == [CodebookMonitor.MIN_STEPS - 1, 2 * CodebookMonitor.MIN_STEPS - 1]
    assert "only 1 of 16 codes" in (monitor.warning or "")
    rare = CodebookMonitor()
    assert not any(rare.add(usage_of(counts(16, [1]))) for _ in range(10 * 16 - 1))
    assert rare.add(usage_of(counts(16, [1])))
    for _ in range(CodebookMonitor.MIN_STEPS):
        monitor.add(usage_of(torch.full((16,), 2)))
    assert monitor.warning is None
