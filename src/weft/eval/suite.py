"""`weft eval SUITE ... --model BUNDLE --out results.json`: evaluate the models of a bundle.

tokenizer      error rates with and without quantization, codebook use   --speech MANIFEST [--noise-snr-db 10]
resynth        word error rate after speech to codes and back            --speech MANIFEST
decoder        quality of speech from codes, and of the steps on the way  --speech MANIFEST --judge WHISPER
text-to-token  errors compared with speech of the same words             --texts CORPUS, or --speech MANIFEST
topic-cloze    accuracy of preferring the right ending: T, ST, TS, S     --pairs PAIRS.jsonl

All transcripts are by the tokenizer's own ASR model; for text-to-token also, and for decoder only, by the Whisper of
`--judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from weft import progress
from weft.artifacts import MANIFEST, base_manifest, read, read_bundle
from weft.audio import resample
from weft.config import MODEL, Decibels, NonNegativeInt, PositiveInt
from weft.data.skipped import Skipped
from weft.data.speech import read_manifest, readable
from weft.decoder.decoder import SpeechDecoder
from weft.device import default_device
from weft.errors import UserError
from weft.eval import cloze, decoder, text_to_token, tokenizer
from weft.eval.cloze import ClozePair
from weft.eval.resynth import resynthesize
from weft.files import check_writable, write_bytes, write_json
from weft.lm.model import LanguageModel
from weft.pages.components import Clip
from weft.pages.decoder_report import Example, render
from weft.records import Utterance
from weft.text.error_rate import split_by_words
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.artifact import KIND
from weft.tokenizer.tokenizer import SpeechTokenizer
from weft.voices.engines import speak, voice_name

_T = TypeVar("_T")
_NUM_EXAMPLES = 8  # on a page
_VOICE = "espeak:en-us"  # the default of `weft speak`


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and on which data."""

    suite: tuple[Literal["tokenizer", "resynth", "decoder", "text-to-token", "topic-cloze"], ...]
    """What to evaluate."""
    model: Path
    """Bundle: a directory with tokenizer/, decoder/, text_to_token/ and lm/; for `tokenizer`, also a tokenizer."""
    out: Path
    """JSON file for the results."""
    speech: tuple[Path, ...] = ()
    """Manifests of transcribed speech."""
    limit: PositiveInt | None = None
    """Number of utterances of `speech` to evaluate, sampled by the seed; not set: all."""
    base: Annotated[Path | None, MODEL] = None
    """Whisper that the tokenizer was trained from, a directory or a name on the Hub: `tokenizer` reports its error
    rates as well."""
    noise_snr_db: tuple[Decibels, ...] = ()
    """Ratios of speech to noise in dB, such as 10: `tokenizer` reports unit edit distance and error rates of the same
    speech with synthetic noise."""
    texts: tuple[Path, ...] = ()
    """Corpora of sentences for text-to-token, compared with `voice`; not set: the transcripts of `speech`, with it."""
    num_sentences: PositiveInt | None = None
    """Number of sentences for text-to-token, sampled by the seed; not set: all."""
    judge: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes the audio of decoder and text-to-token."""
    utmos: Path | None = None
    """Weights of UTMOS, utmos_state_dict.pt of Blinorot/UTMOS-PyTorch on the Hub: decoder reports it as well."""
    codes: tuple[Path, ...] = ()
    """Codes datasets that text-to-token was trained on, which define rare words."""
    speaker: str | None = None
    """Speaker of a text-to-token model trained with several; not set: the one with most training data."""
    page: Path | None = None
    """HTML file with the results of decoder, and the audio and spectrograms of its first eight utterances."""
    pairs: Path | None = None
    """JSONL of story pairs: id, beginning, right, wrong."""
    voice: str | None = None
    """TTS voice of pairs (not set: the bundle's text-to-token model) and texts (not set: espeak:en-us)."""
    language: str | None = None
    """Language of speech and texts without one, such as en; not set: that of the voice or the tokenizer's training."""
    seed: NonNegativeInt = 0
    """Seed of all sampling."""


def run(config: EvalConfig) -> None:
    """Evaluate, print, and write `config.out`. Raises UserError for missing models and data."""
    check_writable(config.out)
    if config.page:
        check_writable(config.page)
    if config.suite != ("tokenizer",) or not _is_tokenizer(config.model):
        read_bundle(config.model, needed=("tokenizer",))
    results: dict[str, Any] = {name: SUITES[name](config) for name in config.suite}
    write_json(config.out, results)
    progress.summary(results)


def _speech(config: EvalConfig) -> tuple[list[Utterance], dict[str, Any]]:
    """Return the utterances to evaluate, and for the results those that are unreadable, with their reasons, if any.

    Raises UserError without speech, and if no transcribed utterance is left.
    """
    if not config.speech:
        raise UserError("there is no speech to measure on: give --speech MANIFEST")
    utterances = [replace(u, language=u.language or config.language) for u in read_manifest(*config.speech)]
    with_words, _ = split_by_words(utterances, lambda u: u.text)
    if not with_words:
        raise UserError(f"{', '.join(map(str, config.speech))} has no transcripts with words: add `text`")
    skipped = Skipped()
    found = readable(utterances if config.limit is None else _sampled(with_words, config.limit, config.seed), skipped)
    if not split_by_words(found, lambda u: u.text)[0]:
        where, reason = skipped.bad[0]
        raise UserError(f"no transcribed speech can be read: fix it; the first utterance is {where} ({reason})")
    return found, {"skipped": skipped.num_bad, "skipped_reasons": dict(skipped.bad)} if skipped.bad else {}


def _sampled(items: list[_T], num: int | None, seed: int) -> list[_T]:
    """Return `num` of the items in their order, or all."""
    if num is None or num >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), num, replace=False)
    return [items[i] for i in sorted(chosen)]


def _is_tokenizer(folder: Path) -> bool:
    """Whether a directory is that of a tokenizer and not of a bundle."""
    return (folder / MANIFEST).is_file() and read(folder).kind == KIND


def _load_tokenizer(config: EvalConfig) -> SpeechTokenizer:
    folder = config.model if _is_tokenizer(config.model) else config.model / "tokenizer"
    return SpeechTokenizer.from_pretrained(folder)


def _tokenizer(config: EvalConfig) -> dict[str, Any]:
    utterances, skipped = _speech(config)
    return tokenizer.measure(_load_tokenizer(config), utterances, config.base, config.noise_snr_db) | skipped


def _resynth(config: EvalConfig) -> dict[str, Any]:
    found, skipped = _speech(config)
    utterances, left_out = split_by_words(found, lambda u: u.text)
    model = SpeechDecoder.from_pretrained(config.model / "decoder")
    result = resynthesize(utterances, _load_tokenizer(config), model, config.seed)
    rates = result.error_rates([u.text or "" for u in utterances])
    return {
        "utterances": len(utterances),
        "left_out": len(left_out),
        "left_out_ids": [u.id for u in left_out],
        **{name: asdict(rate) for name, rate in rates.items()},
        **skipped,
    }


def _decoder(config: EvalConfig) -> dict[str, Any]:
    if config.judge is None:
        raise UserError("decoder needs a Whisper that transcribes its audio: give --judge WHISPER")
    utterances, skipped = _speech(config)
    model, examples = SpeechDecoder.from_pretrained(config.model / "decoder"), list[Example]()

    def receive(utterance: Utterance, sound: decoder.Sound, texts: Sequence[str]) -> None:
        if config.page and len(examples) < _NUM_EXAMPLES:
            pairs = zip(sound.items(), texts, strict=True)
            clips = {name: Clip(samples, model.sample_rate_hz, text) for (name, samples), text in pairs}
            examples.append(Example(utterance.text or "", clips))

    speech_tokenizer = _load_tokenizer(config)
    found = decoder.measure(model, speech_tokenizer, utterances, config.judge, config.seed, config.utmos, receive)
    if config.page:
        write_bytes(config.page, render(found, examples).encode())
    return found | skipped


def _text_to_token(config: EvalConfig) -> dict[str, Any]:
    sentences, skipped = _sentences(config)
    judge = None
    if config.judge is not None:
        model = SpeechDecoder.from_pretrained(config.model / "decoder")
        judge = text_to_token.Judge(config.judge, model, config.seed)
    synthesizer = Synthesizer.from_pretrained(config.model / "text_to_token")
    seen = text_to_token.occurrences(config.codes, synthesizer) if config.codes else None
    speech_tokenizer = _load_tokenizer(config)
    found = text_to_token.measure(synthesizer, speech_tokenizer, sentences, judge, seen, config.speaker, config.seed)
    base = speech_tokenizer.manifest.parents.get("base")
    if config.judge is not None and base is not None and base == base_manifest(config.judge).fingerprint:
        found["notes"]["judge"] += ", and not independent: the tokenizer was trained from it"
    return {"speech_by": voice_name(config.voice or _VOICE) if config.texts else "the manifest", **found, **skipped}


def _sentences(config: EvalConfig) -> tuple[list[text_to_token.Sentence], dict[str, Any]]:
    """Return the sentences for text-to-token, and what is unreadable as `_speech` does."""
    skipped: dict[str, Any] = {}
    if config.texts and config.speech and config.suite == ("text-to-token",):
        raise UserError("text-to-token needs either texts or speech: give --texts or --speech, not both")
    if config.texts:
        sentences = text_to_token.spoken_by_voice(config.texts, config.voice or _VOICE, config.language)
    elif not config.speech:
        raise UserError("text-to-token needs sentences: give --texts CORPUS or --speech MANIFEST")
    else:
        utterances, skipped = _speech(config)
        sentences = text_to_token.recorded(utterances)
    return _sampled(sentences, config.num_sentences, config.seed), skipped


def _topic_cloze(config: EvalConfig) -> dict[str, Any]:
    if config.pairs is None:
        raise UserError("topic-cloze needs pairs of endings: give --pairs PAIRS.jsonl")
    pairs = cloze.read_pairs(config.pairs)
    codes = _codes(config, pairs)
    lm = LanguageModel.from_pretrained(config.model / "lm", device=default_device())
    found = cloze.measure(lm, cloze.spoken_pairs(pairs, codes), codes)
    return {direction: cloze.metrics(accuracy) for direction, accuracy in found.items()}


def _codes(config: EvalConfig, pairs: Sequence[ClozePair]) -> dict[str, Sequence[int]]:
    if config.voice is None:
        synthesizer = Synthesizer.from_pretrained(config.model / "text_to_token")
        return cloze.synthesize_texts(synthesizer, pairs, config.seed, config.speaker)
    texts = cloze.texts_of(pairs)
    speeches = [speak(text, config.voice) for text in texts.values()]
    codes = _load_tokenizer(config).encode([resample(s.samples, s.sample_rate_hz) for s in speeches])
    return {name: c.tolist() for name, c in zip(texts, codes, strict=True)}


SUITES: dict[str, Callable[[EvalConfig], dict[str, Any]]] = {
    "tokenizer": _tokenizer,
    "resynth": _resynth,
    "decoder": _decoder,
    "text-to-token": _text_to_token,
    "topic-cloze": _topic_cloze,
}
