"""Speech to codes: files, folders or manifests of any sound to a codes dataset.

manifest = run(TokenizeConfig(audio=(Path("speech"),), tokenizer=Path("runs/tokenizer"), out=Path("runs/codes")))
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft import artifacts
from weft.artifacts import Manifest
from weft.audio import SAMPLE_RATE_HZ, file_of, load
from weft.config import Count, Share
from weft.data import job
from weft.data.corpus import read_manifest
from weft.data.job import Report
from weft.data.shards import write_codes
from weft.errors import UserError
from weft.records import CodedUtterance, Utterance
from weft.tokenizer.quantizer import health
from weft.tokenizer.tokenizer import KIND, SpeechTokenizer
from weft.training.loop import Precision, takes_bf16

_UTTERANCES_PER_TASK = 512
_SAMPLE_BYTES = 4096
_SEC_PER_CALL = 1200.0  # of speech held in memory at once, save for a longer recording


@dataclass(frozen=True)
class TokenizeConfig:
    """What speech to tokenize, and with what."""

    audio: tuple[Path, ...]
    """Manifests, sound files, or folders of either."""
    tokenizer: Path
    """Folder of the speech tokenizer."""
    out: Path
    """Folder to write the codes to."""
    workers: Count = 1
    """Processes, each with its own copy of the tokenizer."""
    precision: Precision = "fp32"
    """Arithmetic of the encoder's layers. With fp32 codes are those of a stream. bf16 is up to one and a half times as
    quick and changes a few codes in a thousand; auto takes it where the processor multiplies it natively."""
    max_bad_share: Share = 0.01
    """Share of unreadable utterances above which the job fails."""
    licence: str | None = None
    """Licence of the speech, which the notes of all that is made of it will tell."""


def run(config: TokenizeConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Its counts tell utterances, codes, seconds, and the codebook's use. Raises UserError when there is no speech, or too
    much of it is unreadable.
    """
    utterances = read_manifest(*config.audio)
    parents = {"tokenizer": artifacts.read(config.tokenizer, KIND)}
    tasks = job.tasks_for(len(utterances), _UTTERANCES_PER_TASK)
    precision: Precision = "bf16" if takes_bf16(config.precision, device()) else "fp32"
    settings = {"audio": identity(utterances), "tasks": tasks, "precision": precision}
    if artifacts.is_made(config.out, "codes", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "codes", settings, parents, config.licence) as draft:
        work = _Tokenize(config.tokenizer, utterances, draft.folder, tasks, precision)
        report = job.run(work, draft.folder, tasks, config.workers, "tokenize", config.max_bad_share)
        draft.counts.update(_summary(report, work.tokenizer))
    return artifacts.read(config.out)


@dataclass
class _Tokenize:
    """The work of a task: its share of the utterances, as one part of codes."""

    folder_of_tokenizer: Path
    utterances: list[Utterance]
    folder: Path
    num_tasks: int
    precision: Precision

    @cached_property
    def tokenizer(self) -> SpeechTokenizer:
        tokenizer = SpeechTokenizer.load(self.folder_of_tokenizer, self.precision)
        tokenizer.model.to(device())
        return tokenizer

    def __call__(self, task: int) -> Report:
        report = Report()
        mine = job.share(len(self.utterances), task, self.num_tasks)
        write_codes(self.folder, task, self._coded(self.utterances[mine.start : mine.stop], report))
        return report

    def _coded(self, utterances: list[Utterance], report: Report) -> Iterator[CodedUtterance]:
        for good in readable(utterances, report):
            codes = self.tokenizer.encode([samples for _, samples in good])
            found, uses = np.unique(np.concatenate(codes), return_counts=True)
            report.counts.update({f"code {c}": n for c, n in zip(found.tolist(), uses.tolist(), strict=True)})
            for (u, samples), c in zip(good, codes, strict=True):
                seconds = len(samples) / SAMPLE_RATE_HZ
                report.counts.update({"utterances": 1, "codes": len(c), "milliseconds": round(1000 * seconds)})
                yield CodedUtterance(u.id, c.tolist(), u.text, seconds, u.speaker, u.language, u.source)


def readable(utterances: list[Utterance], report: Report) -> Iterator[list[tuple[Utterance, np.ndarray]]]:
    """The utterances that can be read with their samples, by groups that are as long as one call takes."""
    group: list[tuple[Utterance, np.ndarray]] = []
    waiting_samples = 0
    for utterance in utterances:
        try:
            samples = load(utterance.audio)
        except UserError as e:
            report.skipped.add(utterance.id, str(e))
            continue
        report.skipped.num_good += 1
        group.append((utterance, samples))
        waiting_samples += len(samples)
        if waiting_samples >= _SEC_PER_CALL * SAMPLE_RATE_HZ:
            yield group
            group, waiting_samples = [], 0
    if group:
        yield group


def device() -> str:
    """Where codes are made: on a GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _summary(report: Report, tokenizer: SpeechTokenizer) -> dict[str, Any]:
    counts = report.counts
    if not counts["utterances"]:
        raise UserError("no speech was left to tokenize: see log/skipped.jsonl")
    used = health(torch.tensor([counts[f"code {c}"] for c in range(tokenizer.num_codes)]))
    return {
        "utterances": counts["utterances"],
        "codes": counts["codes"],
        "seconds": counts["milliseconds"] / 1000,
        "skipped_utterances": report.skipped.num_bad,
        "codes_used_share": used.codes_used_share,
        "perplexity": used.perplexity,
    }


def identity(utterances: Sequence[Utterance]) -> str:
    """A hash of which sound is meant: by name, by size, and by 4 KiB from the middle of each file."""
    rows = [(u.id, Path(u.audio).name, *_sample(file_of(u.audio))) for u in utterances]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _sample(file: Path) -> tuple[int, str]:
    try:
        with file.open("rb") as f:
            size_bytes = os.fstat(f.fileno()).st_size
            f.seek(max(0, (size_bytes - _SAMPLE_BYTES) // 2))
            return size_bytes, hashlib.sha256(f.read(_SAMPLE_BYTES)).hexdigest()
    except OSError:  # which is told when it is to be read
        return 0, ""
