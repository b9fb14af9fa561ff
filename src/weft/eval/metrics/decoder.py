"""`weft eval decoder`: words, quality and speed of decoded speech, beside the recording and other vocoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from weft.config import MODEL
from weft.decoder.decoder import SpeechDecoder
from weft.errors import UserError
from weft.eval.config import EvalConfig, check, fingerprints, load_speech, load_tokenizer
from weft.eval.decoder import Sound, measure
from weft.eval.results import Result, protocol, write
from weft.files import check_writable, write_bytes
from weft.pages.components import Clip
from weft.pages.decoder_report import Example, render
from weft.records import Utterance
from weft.text.error_rate import word_errors

_NUM_EXAMPLES = 8  # on a page


@dataclass(frozen=True)
class DecoderEval(EvalConfig):
    """Settings of the metric `decoder`."""

    judge: Annotated[Path | None, MODEL] = None
    """Whisper, a directory or a name on the Hub, that transcribes the audio."""
    utmos: Path | None = None
    """Weights of UTMOS, utmos_state_dict.pt of Blinorot/UTMOS-PyTorch on the Hub: its ratings are reported as well."""
    page: Path | None = None
    """HTML file with the results, and the audio and spectrograms of the first eight utterances."""


def run(config: DecoderEval) -> None:
    """Measure, and write the results. Raises UserError without a judge."""
    if config.judge is None:
        raise UserError("decoder needs a Whisper that transcribes its audio: give --judge WHISPER")
    check(config, ("tokenizer", "decoder"))
    if config.page:
        check_writable(config.page)
    speech, decoder = load_speech(config), SpeechDecoder.from_pretrained(config.model / "decoder")
    examples, items = list[Example](), list[dict[str, Any]]()

    def receive(utterance: Utterance, sound: Sound, texts: Sequence[str]) -> None:
        items.append({"id": utterance.id, "text": utterance.text, **dict(zip(sound, texts, strict=True))})
        if config.page and len(examples) < _NUM_EXAMPLES:
            pairs = zip(sound.items(), texts, strict=True)
            clips = {name: Clip(samples, decoder.sample_rate_hz, text) for (name, samples), text in pairs}
            examples.append(Example(utterance.text or "", clips))

    tokenizer = load_tokenizer(config)
    found = measure(decoder, tokenizer, speech.utterances, config.judge, config.seed, config.utmos, receive)
    if config.page:
        write_bytes(config.page, render(found, examples).encode())
    known = {**fingerprints(config, "tokenizer", "decoder"), "data": speech.id}
    used = protocol(config, fingerprints=known, match="basic", judge=found["judge"])
    results = {
        f"{system}.{name}": Result.of_rate(rate, found["utterances"], used)
        for system, measured in found["systems"].items()
        for name, rate in measured.items()
        if isinstance(rate, dict)
    }
    scores = {
        f"{system}.wer": [word_errors(item["text"], item[system]) for item in items] for system in found["systems"]
    }
    write(config.out, "decoder", results, found | speech.skipped, items, scores)
