"""Speech to codes: `weft tokenize`.

manifest = run(TokenizeConfig(audio=(Path("speech"),), tokenizer=Path("runs/tokenizer"), out=Path("runs/codes")))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ
from weft.config import FLAT, NOT_IN_PLAN
from weft.data import job
from weft.data.datasets import write_codes_part
from weft.data.job import JobConfig, Report
from weft.data.skipped import map_batch
from weft.data.speech import load_speech, read_manifest, speech_id
from weft.device import Precision, default_device, uses_bf16
from weft.errors import UserError
from weft.plan import Draft, Plan, create
from weft.records import CodedUtterance, Utterance
from weft.tokenizer.artifact import KIND
from weft.tokenizer.codebook import usage_of
from weft.tokenizer.tokenizer import SpeechTokenizer

_UTTERANCES_PER_TASK = 512
_SEC_PER_CALL = 1200.0  # of speech in memory at once, except for a longer recording


@dataclass(frozen=True)
class TokenizeConfig:
    """Speech to tokenize, and the tokenizer to use."""

    audio: tuple[Path, ...]
    """Manifests, audio files, or directories of either."""
    tokenizer: Path
    """Directory of the speech tokenizer."""
    out: Path
    """Output directory for the codes."""
    precision: Precision = "fp32"
    """Precision of the encoder layers. fp32 gives the codes of a stream. bf16 takes down to two thirds of the time and
    changes a few codes in a thousand; auto is bf16 where the hardware supports it natively."""
    recase: bool = False
    """Store upper-case transcripts in sentence case: lower case, but for the first letter and the English "I"."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)
    licence: Annotated[str | None, NOT_IN_PLAN] = None
    """Licence of the speech, passed on to the notes of everything made from it."""


def run(config: TokenizeConfig) -> Manifest:
    """Create the artifact `config.out`.

    Counts: utterances, codes, seconds, and codebook use. Raises UserError for no or too much unreadable speech.
    """
    utterances = read_manifest(*config.audio, recase=config.recase)
    parents = {"tokenizer": artifacts.read_parent(config.tokenizer, KIND)}
    tasks = job.tasks_for(len(utterances), _UTTERANCES_PER_TASK)
    precision: Precision = "bf16" if uses_bf16(config.precision, default_device()) else "fp32"
    plan = Plan.of("codes", config, parents, audio=speech_id(utterances), tasks=tasks, precision=precision)

    def write(draft: Draft) -> None:
        shared = utterances.shared(draft.folder / job.UTTERANCES)
        work = _Tokenize(config.tokenizer, shared, draft.folder, tasks, precision)
        report = job.run(work, draft, tasks, config.job, "tokenize")
        draft.counts.update(_summary(report, work.tokenizer.num_codes))

    return create(config.out, plan, write, config.licence)


@dataclass
class _Tokenize:
    """A task: encode some of the utterances into a part of the dataset."""

    tokenizer_folder: Path
    utterances: Sequence[Utterance]
    folder: Path
    num_tasks: int
    precision: Precision

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        return SpeechTokenizer.from_pretrained(self.tokenizer_folder, self.precision)

    def __call__(self, task: int) -> Report:
        report = Report()
        indices = job.task_range(len(self.utterances), task, self.num_tasks)
        report.written = write_codes_part(
            self.folder, task, self._coded(self.utterances[indices.start : indices.stop], report)
        )
        return report

    def _coded(self, utterances: Sequence[Utterance], report: Report) -> Iterator[CodedUtterance]:
        for group in read_groups(utterances, report):
            coded = encode_group(self.tokenizer, group, report)
            report.skipped.num_good += len(coded)
            for (u, samples), c in coded:
                used, uses = np.unique(c, return_counts=True)
                report.counts.update({f"code {c}": n for c, n in zip(used.tolist(), uses.tolist(), strict=True)})
                seconds = len(samples) / SAMPLE_RATE_HZ
                report.counts.update({"utterances": 1, "codes": len(c), "milliseconds": round(1000 * seconds)})
                yield CodedUtterance(u.id, c.tolist(), u.text, seconds, u.speaker, u.language, u.source)


Recording = tuple[Utterance, np.ndarray]
"""An utterance and its samples (S,)."""


def read_groups(utterances: Sequence[Utterance], report: Report) -> Iterator[list[Recording]]:
    """Yield groups of readable utterances; skip the others."""
    group: list[Recording] = []
    num_samples = 0
    for utterance in utterances:
        with report.skipped.on_error(utterance.id):
            samples = load_speech(utterance)
            group.append((utterance, samples))
            num_samples += len(samples)
        if num_samples >= _SEC_PER_CALL * SAMPLE_RATE_HZ:
            yield group
            group, num_samples = [], 0
    if group:
        yield group


def encode_group(
    tokenizer: SpeechTokenizer, group: list[Recording], report: Report
) -> list[tuple[Recording, np.ndarray]]:
    """Return the codes (N,) of recordings; skip those that cannot be encoded."""
    return map_batch(
        lambda recordings: tokenizer.encode([samples for _, samples in recordings]),
        group,
        report.skipped,
        lambda recording: recording[0].id,
    )


def _summary(report: Report, num_codes: int) -> dict[str, Any]:
    counts = report.counts
    if not counts["utterances"]:
        raise UserError("no utterance could be read: see log/skipped.jsonl")
    usage = usage_of(torch.tensor([counts[f"code {c}"] for c in range(num_codes)]))
    return {
        "utterances": counts["utterances"],
        "codes": counts["codes"],
        "seconds": counts["milliseconds"] / 1000,
        "skipped_utterances": report.skipped.num_bad,
        "codes_used_share": usage.codes_used_fraction,
        "perplexity": usage.perplexity,
    }
