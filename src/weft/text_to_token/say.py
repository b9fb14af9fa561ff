"""Say a text: text-to-token, then the decoder.

run(SayConfig(text="Good morning.", text_to_token=Path("..."), decoder=Path("..."), out=Path("x.wav")))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weft.artifacts import check_writable, read
from weft.audio import save
from weft.config import Natural
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.text_to_token.model import spoken_form
from weft.text_to_token.synthesize import Synthesizer


@dataclass(frozen=True)
class SayConfig:
    """What to say, and with what."""

    text: str
    """The text."""
    text_to_token: Path
    """Folder of the text-to-token model."""
    decoder: Path
    """Folder of the speech decoder."""
    out: Path
    """WAV file to write."""
    speaker: str | None = None
    """Name of the voice, of a text-to-token model trained with several; by default the one it heard most of."""
    seed: Natural = 0
    """Seed of the codes and of the decoder's noise."""


def run(config: SayConfig) -> None:
    """Write the sound of a text. Raises UserError when the parts do not fit, and for a text or a speaker that cannot be
    said."""
    speaker, decoder = read(config.text_to_token, "text_to_token"), read(config.decoder, "decoder")
    if speaker.parents.get("tokenizer") != decoder.parents.get("tokenizer"):
        raise UserError(
            f"{config.text_to_token} and {config.decoder} were made with different tokenizers: they do not fit"
        )
    if not spoken_form(config.text):
        raise UserError(f"there is nothing to say in {config.text!r}: give words")
    check_writable(config.out, ".wav")
    speakers = None if config.speaker is None else [config.speaker]
    codes = Synthesizer.load(config.text_to_token).speak([config.text], [config.seed], speakers)[0]
    if not codes:
        raise UserError("the text-to-token model ran away on this text: try another --seed, or shorter text")
    voice = SpeechDecoder.load(config.decoder)
    samples = voice.synthesize(codes, config.seed)
    save(config.out, samples, voice.sample_rate_hz)
    print(f"{config.out}: {len(samples) / voice.sample_rate_hz:.2f} s, {len(codes)} codes")
