"""`weft eval asr`: error rates of speech recognition by the language model."""

from __future__ import annotations

from dataclasses import dataclass

from weft.audio import load
from weft.device import default_device
from weft.engine.generate import Engine
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.results import Result, error_counts, protocol, write
from weft.eval.tasks import transcribe
from weft.lm.model import LanguageModel
from weft.text.error_rate import split_by_words


@dataclass(frozen=True)
class AsrEval(EvalConfig):
    """Settings of the metric `asr`, for a language model trained on ASR documents."""


def run(config: AsrEval) -> None:
    """Measure, and write the results."""
    check(config, ("tokenizer", "lm"))
    speech, tokenizer = load_speech(config), load_tokenizer(config)
    utterances, left_out = split_by_words(speech.utterances, lambda u: u.text)
    lm = LanguageModel.from_pretrained(config.model / "lm", device=default_device())
    codes = [c.tolist() for c in tokenizer.encode([load(u.audio) for u in utterances])]
    texts = transcribe(Engine(lm.model), lm.vocab, codes, tokenizer.frame_rate_hz)
    references = [u.text or "" for u in utterances]
    known = {**fingerprints(config, "lm", "tokenizer"), "data": speech.id}
    used = protocol(config, direction="ST", prompt="asr document", match="basic", fingerprints=known)
    scores = error_counts({"": texts}, references)
    results = {name: Result.of_counts(counts, used) for name, counts in scores.items()}
    items = [{"id": u.id, "text": u.text, "transcript": text} for u, text in zip(utterances, texts, strict=True)]
    details = {"utterances": len(utterances), "left_out": len(left_out), "left_out_ids": [u.id for u in left_out]}
    write(config.out, "asr", results, details | speech.skipped, items, scores)
