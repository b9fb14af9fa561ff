"""`weft chat`: one spoken turn from an audio file, or a conversation in the terminal.

run(ChatConfig(model=Path("runs/demo"), wav=Path("question.wav"), out=Path("answer.wav")))
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from weft import progress
from weft.audio import SAMPLE_RATE_HZ, load, save
from weft.chat.bundle import Bundle
from weft.chat.session import MAX_ANSWER_SEC, ChatSession, respond
from weft.config import NonNegativeInt, PositiveFloat
from weft.errors import UserError
from weft.files import check_writable
from weft.text.inputs import valid_text

_MIN_TURN_SEC = 0.1
_SILENCE = 3e-4  # 70 dB below full scale: the noise of a microphone that is switched off


@dataclass(frozen=True)
class ChatConfig:
    """A bundle, and the turns of the user."""

    model: Path
    """Bundle: a directory with tokenizer/, decoder/ and lm/."""
    wav: Path | None = None
    """Audio file with one spoken turn; not set: a conversation in the terminal with written turns."""
    out: Path | None = None
    """WAV file for the spoken answer; in a conversation, a directory for answer-1.wav, answer-2.wav, ..."""
    max_sec: PositiveFloat = MAX_ANSWER_SEC
    """Longest answer in seconds."""
    seed: NonNegativeInt = 0
    """Seed of the answers."""


def run(config: ChatConfig) -> None:
    """Answer one spoken turn, or hold a conversation that an empty line ends.

    Raises UserError for a bad bundle, and for a spoken turn that is silent, too short, or unreadable.
    """
    samples = None
    if config.wav is not None:
        if config.out is not None:
            check_writable(config.out, ".wav")
        samples = load(config.wav)
        _check_turn(config.wav, samples)
    bundle = Bundle.from_pretrained(config.model)
    if samples is None:
        _converse(bundle, config)
        return
    answer = respond(bundle, samples, config.seed, config.max_sec)
    progress.show(*answer.text.split("\n"))
    if config.out is not None:
        save(config.out, answer.samples, answer.sample_rate_hz)
        first = "no audio" if answer.first_audio_ms is None else f"first audio after {answer.first_audio_ms:.0f} ms"
        progress.show(f"{config.out}: {len(answer.samples) / answer.sample_rate_hz:.2f} s, {first}")


def _check_turn(path: Path, samples: np.ndarray) -> None:
    if len(samples) < _MIN_TURN_SEC * SAMPLE_RATE_HZ:
        raise UserError(f"{path} has only {len(samples) / SAMPLE_RATE_HZ:.4f} s of audio: give a file with speech")
    if np.abs(samples).max() < _SILENCE:
        raise UserError(f"{path} is silent: give a file with speech, or check the microphone")


def _converse(bundle: Bundle, config: ChatConfig) -> None:
    progress.show("Write to the model. An empty line ends the conversation.")
    session = ChatSession(bundle, config.seed)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # typed text that is not UTF-8
    for turn in count(1):
        try:
            text = valid_text(input("> ")).strip()
        except EOFError:
            return
        if not text:
            return
        session.add_text(text)
        samples = [np.zeros(0, np.float32)]
        for reply in session.answer(config.max_sec):
            progress.show(*reply.text.split("\n"), end="")
            samples.append(reply.samples)
        progress.show("")
        if config.out is not None:
            save(config.out / f"answer-{turn}.wav", np.concatenate(samples), bundle.decoder.sample_rate_hz)
