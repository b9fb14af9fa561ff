"""Overlap of test items with training data: items that occur in it, whole or nearly.

    found = contamination({"a": "What is the capital of Norland?"}, training_texts(folders, vocab))
    found.exact, found.near                     # ids

Texts are compared as words in lower case without punctuation. An item occurs exactly if its words follow one another in
a training document, and nearly if 80 % of its sequences of five words do. Items of fewer than five words are compared
whole. Documents of weft also have the text of their speech; token shards do not, so there only text is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weft import progress
from weft.artifacts import read
from weft.data.datasets import Rows
from weft.data.token_shards import TokenShards
from weft.errors import UserError
from weft.eval.model import Vocab
from weft.text.normalize import comparison_form

_WORDS, _NEAR = 5, 0.8


@dataclass(frozen=True)
class Contamination:
    """Ids of the items that occur in training data, and the number of items and of training documents."""

    exact: list[str]
    near: list[str]
    items: int
    documents: int


def contamination(items: Mapping[str, str], texts: Iterable[str]) -> Contamination:
    """Return the items, texts by id, that occur in training texts."""
    words = {name: tuple(comparison_form(text).split()) for name, text in items.items()}
    shingles = {name: set(_shingles(w, min(_WORDS, len(w)))) for name, w in words.items() if w}
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, parts in shingles.items():
        for part in parts:
            owners.setdefault(part, []).append(name)
    sizes = sorted({len(part) for part in owners})
    seen: dict[str, set[tuple[str, ...]]] = {}
    exact, num = set[str](), 0
    for text in texts:
        num += 1
        training = comparison_form(text).split()
        here = {part for size in sizes for part in _shingles(training, size) if part in owners}
        whole = f" {' '.join(training)} " if here else ""
        for name in dict.fromkeys(name for part in here for name in owners[part]):
            seen.setdefault(name, set()).update(here & shingles[name])
            if f" {' '.join(words[name])} " in whole:
                exact.add(name)
    near = [n for n in items if n in seen and n not in exact and len(seen[n]) >= _NEAR * len(shingles[n])]
    return Contamination([n for n in items if n in exact], near, len(items), num)


def _shingles(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def measure(items: Mapping[str, str], training: Sequence[Path], vocab: Vocab) -> dict[str, Any]:
    """Return the contamination of items by datasets, for the details of results; nothing without datasets."""
    if not training:
        return {}
    return {"contamination": asdict(contamination(items, training_texts(training, vocab)))}


def training_texts(folders: Sequence[Path], vocab: Vocab) -> Iterator[str]:
    """Yield the texts of documents datasets and of token shards. Raises UserError for another directory."""
    for folder in folders:
        kind = read(folder).kind
        if kind == "documents":
            rows = Rows.of(folder)
            with progress.bar("training data", len(rows)) as advance:
                for document in rows.documents():
                    yield " ".join((s.text or "").strip() for s in document.segments)
                    advance()
        elif kind == "tokens":
            for part in sorted({path.parent for path in folder.rglob("*.ds")}):
                yield from _decoded(TokenShards(part), vocab)
        else:
            raise UserError(f"{folder} is of kind {kind}: give documents, or tokens of weft pack")


def _decoded(shards: TokenShards, vocab: Vocab) -> Iterator[str]:
    """Yield the text of each document, without speech and control ids."""
    with progress.bar("training data", len(shards)) as advance:
        for i in range(len(shards)):
            ids = shards[i].ids.astype("int64")
            yield str(vocab.tokenizer.decode(ids[~vocab.is_audio(ids) & ~vocab.is_control(ids)]))
            advance()
