"""Packing: conversion of documents to token shards, the token ids of one language model.

    run(PackConfig(dataset=(Path("runs/interleaved"), Path("runs/asr")), lm=Path("runs/lm"), out=Path("runs/tokens")))

Each dataset gets a directory of shards, such as OUT/interleaved/00000.ds, so that a mixture can weight it. Sequence
length, mixture and packing into sequences are decided when the shards are read (`weft.data.token_shards`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import FLAT, NOT_IN_PLAN
from weft.data import job
from weft.data.datasets import Rows, tokenizer_parent
from weft.data.job import JobConfig, Report
from weft.data.token_shards import write_tokens
from weft.errors import UserError
from weft.files import content_id
from weft.plan import Draft, Plan, create
from weft.pretrained import load_pretrained
from weft.vocab import SpeechVocab

_ROWS_PER_TASK = 20_000
_REPLACED, _REPLACING = "replaced text tokens", "speech tokens in their place"


@dataclass(frozen=True)
class PackConfig:
    """Documents, and the language model of their tokens."""

    dataset: tuple[Path, ...]
    """Documents datasets, in directories with different names."""
    lm: Path
    """Directory of a language model whose vocabulary contains the speech tokens."""
    out: Path
    """Output directory for the token shards."""
    job: Annotated[JobConfig, FLAT, NOT_IN_PLAN] = field(default_factory=JobConfig)


def run(config: PackConfig) -> Manifest:
    """Create the artifact `config.out`.

    Raises UserError if documents and language model have different tokenizers, and for codes outside the vocabulary.
    """
    names = [folder.resolve().name for folder in config.dataset]
    if len(set(names)) < len(names):
        raise UserError(f"two datasets have the same name ({', '.join(names)}): rename a directory")
    if "log" in names:
        raise UserError("a dataset is named log, like the log directory of the shards: rename its directory")
    manifests = {n: artifacts.read_parent(folder, "documents") for n, folder in zip(names, config.dataset, strict=True)}
    lm = {"the language model": artifacts.read_parent(config.lm)} if (config.lm / artifacts.MANIFEST).is_file() else {}
    vocab = _vocab(config.lm)
    shards = [shard for n, folder in zip(names, config.dataset, strict=True) for shard in _shards(n, Rows.of(folder))]

    def write(draft: Draft) -> None:
        report = job.run(_Pack(shards, vocab, draft.folder), draft, len(shards), config.job, "pack")
        draft.counts.update(_summary(report.counts))

    parents = manifests | tokenizer_parent(manifests | lm)
    text_tokenizer = _text_tokenizer_id(vocab)
    plan = Plan.of("tokens", config, parents, vocab=vocab.fingerprint, text_tokenizer=text_tokenizer, tasks=len(shards))
    # Token shards of earlier versions do not have the identity of the text tokenizer.
    defaults = {**plan.defaults, "text_tokenizer": text_tokenizer}
    flags = {"vocab": "vocabulary of --lm", "text_tokenizer": "text tokenizer of --lm"}
    flags |= {name: f"--dataset {name}" for name in names}
    return create(config.out, replace(plan, defaults=defaults, flags=flags), write)


def _vocab(lm: Path) -> SpeechVocab:
    from transformers import AutoTokenizer

    artifacts.require_directory(lm, "the directory of a language model")
    with artifacts.loading(lm, "a language model"):
        return SpeechVocab.of(load_pretrained(AutoTokenizer, lm))


def _text_tokenizer_id(vocab: SpeechVocab) -> str:
    """Return an identity of how text is converted to ids: normalization, merges and special tokens."""
    backend = getattr(vocab.tokenizer, "backend_tokenizer", None)
    return content_id(backend.to_str() if backend else vocab.fingerprint)


@dataclass(frozen=True)
class _Shard:
    """The rows of a dataset that one task converts."""

    dataset: str
    number: int
    rows: Rows
    indices: range


def _shards(name: str, rows: Rows) -> list[_Shard]:
    num = job.tasks_for(len(rows), _ROWS_PER_TASK)
    return [_Shard(name, i, rows, job.task_range(len(rows), i, num)) for i in range(num)]


@dataclass
class _Pack:
    """A task: write one shard."""

    shards: list[_Shard]
    vocab: SpeechVocab
    folder: Path

    def __call__(self, task: int) -> Report:
        shard, report = self.shards[task], Report()
        tokens = self._tokens(shard, report.counts)
        report.written = write_tokens(self.folder / shard.dataset, shard.number, self.vocab.size, tokens)
        return report

    def _tokens(self, shard: _Shard, counts: Counter[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for document in shard.rows.documents(shard.indices):
            try:
                ids, loss = self.vocab.document_ids(document)
            except UserError as e:
                raise UserError(f"{shard.dataset}, document {document.id!r}: {e}") from e
            speech, control = int(self.vocab.is_audio(ids).sum()), int(self.vocab.is_control(ids).sum())
            found = {
                "documents": 1,
                "text_tokens": len(ids) - speech - control,
                "speech_tokens": speech,
                "control_tokens": control,
                "trained_tokens": int(loss.sum()),
            }
            if document.kind == "interleaved":
                spoken = [s for s in document.segments if s.codes is not None and s.text]
                found[_REPLACING] = sum(len(s.codes or ()) for s in spoken)
                found[_REPLACED] = sum(len(self.vocab.text_ids(s.text or "")) for s in spoken)
            counts.update({f"{shard.dataset}/{document.kind}/{name}": n for name, n in found.items()})
            yield ids, loss


def _summary(counts: Counter[str]) -> dict[str, Any]:
    """Return the counts by dataset, by kind of document, and in total.

    For interleaved documents, they include the number of speech tokens per replaced text token: 3 to 4.5 for natural
    speech at 12.5 codes per second and a vocabulary of 100,000 or more.
    """
    datasets: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for key, count in counts.items():
        dataset, kind, name = key.rsplit("/", 2)
        for group in (datasets.setdefault(dataset, Counter()), kinds.setdefault(kind, Counter()), total):
            group[name] += count
    if not total["documents"]:
        raise UserError("the datasets contain no documents: give others")
    by_dataset, by_kind = ({n: _with_ratio(c) for n, c in groups.items()} for groups in (datasets, kinds))
    return {**_with_ratio(total), "datasets": by_dataset, "kinds": by_kind}


def _with_ratio(counts: Counter[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {n: c for n, c in counts.items() if n not in (_REPLACED, _REPLACING)}
    if replaced := counts[_REPLACED]:
        shown["speech_tokens_per_replaced_text_token"] = round(counts[_REPLACING] / replaced, 3)
    return shown
