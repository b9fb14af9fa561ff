"""`weft eval text-to-token`: errors of synthesized codes, beside those of speech of the same sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from weft.artifacts import base_manifest
from weft.config import MODEL
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer, sampled
from weft.eval.results import Result, protocol, write
from weft.eval.text_to_token import Judge, Sentence, measure, occurrences, recorded, spoken_by_voice
from weft.files import content_id
from weft.text.error_rate import word_errors
from weft.text_to_token.synthesize import Synthesizer
from weft.voices.engines import voice_name

_VOICE = "espeak:en-us"  # the default of `weft speak`


@dataclass(frozen=True)
class TextToTokenEval(EvalConfig):
    """Settings of the metric `text-to-token`."""

    texts: tuple[Path, ...] = ()
    """Corpora of sentences, compared with speech of `voice`; not set: the transcripts and the speech of `data`."""
    voice: str = _VOICE
    """TTS voice of `texts`."""
    judge: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes the decoded audio."""
    codes: tuple[Path, ...] = ()
    """Codes datasets that the model was trained on, which define rare words."""
    speaker: str | None = None
    """Speaker of a model trained with several; not set: the one with most training data."""


def run(config: TextToTokenEval) -> None:
    """Measure, and write the results."""
    check(config, ("tokenizer", "text_to_token"))
    sentences, data_id, skipped = _sentences(config)
    judge = None
    if config.judge is not None:
        judge = Judge(config.judge, SpeechDecoder.from_pretrained(config.model / "decoder"), config.seed)
    synthesizer, tokenizer = Synthesizer.from_pretrained(config.model / "text_to_token"), load_tokenizer(config)
    seen = occurrences(config.codes, synthesizer) if config.codes else None
    found = measure(synthesizer, tokenizer, sentences, judge, seen, config.speaker, config.seed)
    base = tokenizer.manifest.parents.get("base")
    if config.judge is not None and base is not None and base == base_manifest(config.judge).fingerprint:
        found["notes"]["judge"] += ", and not independent: the tokenizer was trained from it"
    items, voice = found.pop("items"), voice_name(config.voice) if config.texts else "the manifest"
    known = {**fingerprints(config, "tokenizer", "text_to_token", "decoder"), "data": data_id}
    used = protocol(config, fingerprints=known, match="basic", voices=[voice], speaker=config.speaker)
    results = {
        f"{system}.{name}.{by}": Result.of_rate(rate, row["sentences"], {**used, "judge": found["notes"][by]})
        for by in ("gate", "judge")
        for name in ("wer", "cer")
        if (row := found.get(by, {}).get(name, {}).get("all"))
        for system, rate in row.items()
        if isinstance(rate, dict)
    }
    scores = {
        f"{name.removeprefix('judge.')}.wer.{'judge' if name.startswith('judge.') else 'gate'}": [
            word_errors(synthesizer.normalize(item["text"]), synthesizer.normalize(item[name])) for item in items
        ]
        for name in items[0].keys() - {"id", "text"}
    }
    write(config.out, "text-to-token", results, {"speech_by": voice, **found, **skipped}, items, scores)


def _sentences(config: TextToTokenEval) -> tuple[list[Sentence], str, dict[str, Any]]:
    """Return the sentences, their identity, and what cannot be read as `Speech.skipped` does."""
    if config.texts and config.data:
        raise UserError("text-to-token needs either texts or speech: give --texts or --data, not both")
    if config.texts:
        found = sampled(spoken_by_voice(config.texts, config.voice, config.language), config.limit, config.seed)
        return found, str(content_id([s.text for s in found])), {}
    if not config.data:
        raise UserError("text-to-token needs sentences: give --texts CORPUS or --data MANIFEST")
    speech = load_speech(config)
    return recorded(speech.utterances), speech.id, speech.skipped
