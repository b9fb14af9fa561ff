"""`weft eval logit-lens`: how many words of speech can be read from each layer of the language model."""

from __future__ import annotations

from dataclasses import dataclass

from weft.audio import load
from weft.config import PositiveInt
from weft.device import default_device
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.logit_lens import decodable_words
from weft.eval.results import Result, protocol, write
from weft.lm.model import LanguageModel
from weft.text.error_rate import split_by_words


@dataclass(frozen=True)
class LogitLensEval(EvalConfig):
    """Settings of the metric `logit-lens`."""

    top: PositiveInt = 5
    """A word counts if its first id is among this many likeliest text ids at a position."""


def run(config: LogitLensEval) -> None:
    """Measure, and write the results."""
    check(config, ("tokenizer", "lm"))
    speech, tokenizer = load_speech(config), load_tokenizer(config)
    utterances, left_out = split_by_words(speech.utterances, lambda u: u.text)
    lm = LanguageModel.from_pretrained(config.model / "lm", device=default_device())
    codes = [c.tolist() for c in tokenizer.encode([load(u.audio) for u in utterances])]
    found = decodable_words(lm, codes, [u.text or "" for u in utterances], config.top)
    known = {**fingerprints(config, "lm", "tokenizer"), "data": speech.id}
    used = protocol(config, direction="S", top=config.top, fingerprints=known)
    scores = {f"layer {i}": counts for i, counts in enumerate(found.words)}
    scores |= {f"control, layer {i}": counts for i, counts in enumerate(found.control)}
    results = {name: Result.of_counts(c, used) for name, c in scores.items() if any(units for _, units in c)}
    details = {"utterances": len(utterances), "left_out": len(left_out), "left_out_ids": [u.id for u in left_out]}
    items = [{"id": u.id, "text": u.text} for u in utterances]
    write(config.out, "logit-lens", results, details | speech.skipped, items, scores)
