"""`weft eval retention`: bits per byte of held-out text, beside those of the base, which has not learned speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from weft.artifacts import base_manifest
from weft.config import MODEL, PositiveInt
from weft.data.corpus import read_texts
from weft.errors import UserError
from weft.eval import contamination
from weft.eval.config import EvalConfig, check_output, fingerprints, sampled
from weft.eval.model import load_lm, load_vocab
from weft.eval.results import Result, protocol, write
from weft.eval.retention import bits_per_byte
from weft.files import content_id
from weft.text.error_rate import pooled


@dataclass(frozen=True)
class RetentionEval(EvalConfig):
    """Settings of the metric `retention`. Its data are text files, directories or JSONL of documents."""

    model: Annotated[Path, MODEL]
    """Bundle, or a causal LM of Hugging Face, a directory or a name on the Hub."""
    base: Annotated[Path | None, MODEL] = None
    """Causal LM that training started from, a directory or a name on the Hub: the difference to it is reported."""
    max_tokens: PositiveInt = 1024
    """Ids of the windows that texts are cut into."""


def run(config: RetentionEval) -> None:
    """Measure, and write the results."""
    check_output(config)
    if not config.data:
        raise UserError("retention needs texts: give --data FILE")
    documents = [d for d in read_texts(*config.data) if d.text.strip()]
    if not documents:
        raise UserError(f"{', '.join(map(str, config.data))} has no text: give other files")
    documents = sampled(documents, config.limit, config.seed)
    texts = [d.text for d in documents]
    known = {**fingerprints(config, "lm"), "data": str(content_id(texts))}
    if config.base:
        known["base"] = base_manifest(config.base).fingerprint
    used = protocol(config, direction="TT", unit="bits per byte", max_tokens=config.max_tokens, fingerprints=known)
    found = {"bits_per_byte": _measure(config.model, texts, config.max_tokens)}
    if config.base:
        found["bits_per_byte, base"] = _measure(config.base, texts, config.max_tokens)
        pairs = zip(*found.values(), strict=True)
        found["difference"] = [(bits - of_base, size) for (bits, size), (of_base, _) in pairs]
    results = {name: Result.of_rate(_pooled(counts), len(texts), used) for name, counts in found.items()}
    details = {"documents": len(texts)}
    if config.training:
        by_id = {d.id: d.text for d in documents}
        details |= contamination.measure(by_id, config.training, load_vocab(config.model))
    write(config.out, "retention", results, details, [{"id": d.id} for d in documents], found)


def _measure(folder: Path, texts: Sequence[str], max_tokens: int) -> list[tuple[float, int]]:
    lm = load_lm(folder)
    return bits_per_byte(lm.model, lm.vocab, texts, max_tokens)


def _pooled(counts: Any) -> Any:
    return pooled(counts)
