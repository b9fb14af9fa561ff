"""Documents to token shards, for one language model's vocabulary.

    run(PackConfig(dataset=(Path("runs/woven"), Path("runs/asr")), lm=Path("runs/base"), out=Path("runs/tokens")))

Every dataset has its own folder of shards in the result, `OUT/woven/00000.ds`, so that a mixture can weigh it.
Sequence length, mixture and packing into rows are decided when reading (`weft.data.shards.TokenShards`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft import artifacts
from weft.artifacts import Manifest
from weft.config import Count
from weft.data import job
from weft.data.job import Report
from weft.data.shards import Rows, tokenizer_of, write_tokens
from weft.errors import UserError
from weft.records import Document
from weft.vocab import SpeechVocab

_ROWS_PER_TASK = 20_000
_REPLACED, _REPLACING = "replaced text tokens", "speech tokens in their place"


@dataclass(frozen=True)
class PackConfig:
    """What to pack, and for which language model."""

    dataset: tuple[Path, ...]
    """Documents datasets, each with a folder name of its own."""
    lm: Path
    """Language model folder, whose vocabulary holds the speech tokens."""
    out: Path
    """Folder to write the token shards to."""
    workers: Count = 1
    """Processes."""


def run(config: PackConfig) -> Manifest:
    """Make the artifact `config.out`; one that is made already by the same plan is left as it is.

    Raises UserError for documents and a language model of different tokenizers, and for codes outside the vocabulary.
    """
    names = [folder.resolve().name for folder in config.dataset]
    if len(set(names)) < len(names):
        raise UserError(f"two datasets share a name ({', '.join(names)}): rename a folder")
    if "log" in names:
        raise UserError("a dataset is named log, which is the name of the packed shards' own log: rename its folder")
    manifests = {n: artifacts.read(folder, "documents") for n, folder in zip(names, config.dataset, strict=True)}
    lm = {"the language model": artifacts.read(config.lm)} if (config.lm / artifacts.MANIFEST).is_file() else {}
    parents = manifests | tokenizer_of(manifests | lm)
    vocab = _vocab(config.lm)
    shards = [shard for n, folder in zip(names, config.dataset, strict=True) for shard in _shards(n, Rows.of(folder))]
    settings = {"vocab": vocab.fingerprint, "tasks": len(shards)}
    if artifacts.is_made(config.out, "tokens", settings, parents):
        return artifacts.read(config.out)
    with artifacts.build(config.out, "tokens", settings, parents) as draft:
        report = job.run(_Pack(shards, vocab, draft.folder), draft.folder, len(shards), config.workers, "pack")
        draft.counts.update(_summary(report.counts))
    return artifacts.read(config.out)


def _vocab(lm: Path) -> SpeechVocab:
    from transformers import AutoTokenizer

    if not lm.is_dir():
        raise UserError(f"{lm} does not exist: give the folder of a language model")
    with artifacts.loading(lm, "a language model"):
        return SpeechVocab.of(AutoTokenizer.from_pretrained(lm, local_files_only=True))


@dataclass(frozen=True)
class _Shard:
    """What a task packs: some rows of a dataset."""

    dataset: str
    number: int
    rows: Rows
    mine: range


def _shards(name: str, rows: Rows) -> list[_Shard]:
    num = job.tasks_for(len(rows), _ROWS_PER_TASK)
    return [_Shard(name, i, rows, job.share(len(rows), i, num)) for i in range(num)]


@dataclass
class _Pack:
    """The work of a task: one shard."""

    shards: list[_Shard]
    vocab: SpeechVocab
    folder: Path

    def __call__(self, task: int) -> Report:
        shard, report = self.shards[task], Report()
        tokens = self._tokens(shard, report.counts)
        write_tokens(self.folder / shard.dataset, shard.number, self.vocab.size, tokens)
        return report

    def _tokens(self, shard: _Shard, counts: Counter[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for document in shard.rows.documents(shard.mine):
            ids, loss = self._ids(document, shard.dataset)
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

    def _ids(self, document: Document, dataset: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.vocab.document_ids(document)
        except UserError as e:
            raise UserError(f"{dataset}, document {document.id!r}: {e}") from e


def _summary(counts: Counter[str]) -> dict[str, Any]:
    """Counts by dataset, by kind, and in all; where text was replaced by speech, also how many tokens one token of the
    text became (3 to 4.5 in natural speech at 12.5 codes a second, of a vocabulary of 100,000 and more)."""
    datasets: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for key, count in counts.items():
        dataset, kind, name = key.rsplit("/", 2)
        for group in (datasets.setdefault(dataset, Counter()), kinds.setdefault(kind, Counter()), total):
            group[name] += count
    if not total["documents"]:
        raise UserError("the datasets hold no documents: there is nothing to pack")
    by_dataset, by_kind = ({n: _told(c) for n, c in groups.items()} for groups in (datasets, kinds))
    return {**_told(total), "datasets": by_dataset, "kinds": by_kind}


def _told(counts: Counter[str]) -> dict[str, Any]:
    told: dict[str, Any] = {n: c for n, c in counts.items() if n not in (_REPLACED, _REPLACING)}
    if replaced := counts[_REPLACED]:
        told["speech_tokens_per_replaced_text_token"] = round(counts[_REPLACING] / replaced, 3)
    return told
