"""Text to audio by a text-to-token model and a decoder: `weft say`.

run(SayConfig(text="Good morning.", text_to_token=Path("..."), decoder=Path("..."), out=Path("x.wav")))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft import progress
from weft.artifacts import read, require_parent
from weft.audio import SAMPLE_RATE_HZ, load, resample, save
from weft.config import NonNegativeInt
from weft.decoder.decoder import SpeechDecoder
from weft.decoder.stream import Voice
from weft.errors import UserError
from weft.files import check_writable
from weft.text.normalize import spoken_form
from weft.text_to_token.synthesize import Synthesizer
from weft.tokenizer.artifact import KIND as TOKENIZER
from weft.tokenizer.tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class SayConfig:
    """A text to synthesize, and the models to use."""

    text: str
    """The text."""
    text_to_token: Path
    """Directory of the text-to-token model."""
    decoder: Path
    """Directory of the speech decoder."""
    out: Path
    """WAV file to write."""
    speaker: str | None = None
    """Speaker of a text-to-token model trained with several; not set: the one with most training data."""
    voice: str | None = None
    """Speaker of a decoder trained with several."""
    voice_prompt: Path | None = None
    """Recording whose voice a decoder with voice prompts imitates, by its last seconds. Needs `tokenizer`."""
    tokenizer: Path | None = None
    """Directory of the speech tokenizer, for `voice_prompt`."""
    seed: NonNegativeInt = 0
    """Seed of the codes and of the decoder's noise."""


def run(config: SayConfig) -> None:
    """Write the audio of a text. Raises UserError for other models, no words, and speech without an end."""
    model, decoder = read(config.text_to_token, "text_to_token"), read(config.decoder, "decoder")
    if model.parents.get("tokenizer") != decoder.parents.get("tokenizer"):
        raise UserError(
            f"{config.text_to_token} and {config.decoder} have different tokenizers: use models of one tokenizer"
        )
    if not spoken_form(config.text):
        raise UserError(f"there is nothing to pronounce in {config.text!r}: give words")
    check_writable(config.out, ".wav")
    speech = SpeechDecoder.from_pretrained(config.decoder)
    voice = _voice(config, speech)
    speakers = None if config.speaker is None else [config.speaker]
    codes = Synthesizer.from_pretrained(config.text_to_token).synthesize([config.text], [config.seed], speakers)[0]
    if not codes:
        raise UserError("the speech of this text repeats itself or does not end: try another --seed, or a shorter text")
    samples = speech.synthesize(codes, config.seed, voice)
    save(config.out, samples, speech.sample_rate_hz)
    progress.show(f"{config.out}: {len(samples) / speech.sample_rate_hz:.2f} s, {len(codes)} codes")


def _voice(config: SayConfig, decoder: SpeechDecoder) -> Voice | None:
    """Return the voice of the speaker, or of the recording. Raises UserError if the decoder does not have it."""
    if config.voice_prompt is None:
        return None if config.voice is None else decoder.speaker(config.voice)
    if config.tokenizer is None:
        raise UserError("a voice prompt needs the codes of its recording: give --tokenizer")
    require_parent(decoder.manifest, "tokenizer", read(config.tokenizer, TOKENIZER))
    samples = load(config.voice_prompt, decoder.sample_rate_hz)
    tokenizer = SpeechTokenizer.from_pretrained(config.tokenizer)
    codes = tokenizer.encode([resample(samples, decoder.sample_rate_hz, SAMPLE_RATE_HZ)])[0]
    samples = samples[: len(codes) * decoder.samples_per_code]
    return decoder.prompt(codes, samples, decoder.sample_rate_hz, config.voice)
