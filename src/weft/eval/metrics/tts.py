"""`weft eval tts`: error rates of speech synthesized by the language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from weft.config import MODEL
from weft.decoder.decoder import SpeechDecoder
from weft.device import default_device
from weft.engine.generate import Engine
from weft.errors import UserError
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.results import Result, error_counts, protocol, write
from weft.eval.tasks import synthesize
from weft.eval.text_to_token import Judge
from weft.lm.model import LanguageModel
from weft.text.error_rate import split_by_words


@dataclass(frozen=True)
class TtsEval(EvalConfig):
    """Settings of the metric `tts`, for a language model trained on TTS documents. The texts are those of `data`."""

    judge: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes the decoded audio. The tokenizer's own ASR model
    transcribes the codes as well."""


def run(config: TtsEval) -> None:
    """Measure, and write the results. Raises UserError without a judge."""
    if config.judge is None:
        raise UserError("tts needs a Whisper that transcribes its audio: give --judge WHISPER")
    check(config, ("tokenizer", "decoder", "lm"))
    speech, tokenizer = load_speech(config), load_tokenizer(config)
    utterances, left_out = split_by_words(speech.utterances, lambda u: u.text)
    references, languages = [u.text or "" for u in utterances], [u.language for u in utterances]
    lm = LanguageModel.from_pretrained(config.model / "lm", device=default_device())
    codes = synthesize(Engine(lm.model), lm.vocab, references, tokenizer.frame_rate_hz)
    judge = Judge(config.judge, SpeechDecoder.from_pretrained(config.model / "decoder"), config.seed)
    texts = {judge.name: judge.transcribe(codes, languages)}
    if not tokenizer.model.config.encoder_only:
        texts["tokenizer"] = tokenizer.transcribe(codes, languages)
    known = {**fingerprints(config, "lm", "tokenizer", "decoder"), "data": speech.id}
    used = protocol(config, direction="TS", prompt="tts document", match="basic", fingerprints=known)
    scores = error_counts(texts, references)
    results = {
        name: Result.of_counts(counts, {**used, "judge": name.partition(", ")[2]}) for name, counts in scores.items()
    }
    rows = zip(utterances, codes, *texts.values(), strict=True)
    items = [{"id": u.id, "text": u.text, "codes": len(c), **dict(zip(texts, t, strict=True))} for u, c, *t in rows]
    details = {
        "utterances": len(utterances),
        "left_out": len(left_out),
        "left_out_ids": [u.id for u in left_out],
        "without_codes": sum(not c for c in codes),
    }
    write(config.out, "tts", results, details | speech.skipped, items, scores)
