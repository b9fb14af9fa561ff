"""`weft eval resynth`: error rates of decoded codes of speech."""

from __future__ import annotations

from dataclasses import dataclass

from weft.decoder.decoder import SpeechDecoder
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.results import Result, protocol, write
from weft.eval.resynth import resynthesize
from weft.text.error_rate import split_by_words, word_errors


@dataclass(frozen=True)
class ResynthEval(EvalConfig):
    """Settings of the metric `resynth`."""


def run(config: ResynthEval) -> None:
    """Measure, and write the results."""
    check(config, ("tokenizer", "decoder"))
    speech = load_speech(config)
    utterances, left_out = split_by_words(speech.utterances, lambda u: u.text)
    decoder = SpeechDecoder.from_pretrained(config.model / "decoder")
    found = resynthesize(utterances, load_tokenizer(config), decoder, config.seed)
    references = [u.text or "" for u in utterances]
    known = {**fingerprints(config, "tokenizer", "decoder"), "data": speech.id}
    used = protocol(config, fingerprints=known, match="basic", judge="the tokenizer's own ASR model")
    rates = found.error_rates(references).items()
    details = {"utterances": len(utterances), "left_out": len(left_out), "left_out_ids": [u.id for u in left_out]}
    transcripts = {"wer": found.transcripts, "wer_original": found.original_transcripts}
    rows = zip(found.utterances, found.transcripts, found.original_transcripts, strict=True)
    items = [{"id": u.id, "text": u.text, "transcript": a, "transcript_original": b} for u, a, b in rows]
    results = {name: Result.of_rate(rate, len(utterances), used) for name, rate in rates}
    scores = {
        name: [word_errors(r, t) for r, t in zip(references, texts, strict=True)] for name, texts in transcripts.items()
    }
    write(config.out, "resynth", results, details | speech.skipped, items, scores)
