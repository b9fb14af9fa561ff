"""`weft eval likelihood`: how often the right ending is likelier than a wrong one, in text, speech and across."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weft.audio import load, resample
from weft.errors import UserError
from weft.eval import cloze
from weft.eval.cloze import ClozePair
from weft.eval.config import EvalConfig, check_output, fingerprints, items_file, load_tokenizer, sampled
from weft.eval.likelihood import PairScores
from weft.eval.model import TextVocab, load_lm
from weft.eval.results import Result, protocol, write
from weft.files import content_id
from weft.text_to_token.synthesize import Synthesizer
from weft.voices.engines import speak, voice_name

Direction = Literal["TT", "ST", "TS", "SS"]
Rule = Literal["mean", "total", "per_byte", "mutual_information"]


@dataclass(frozen=True)
class LikelihoodEval(EvalConfig):
    """Settings of the metric `likelihood`. Its data are pairs of endings, in JSON lines."""

    directions: tuple[Direction, ...] = ("TT", "ST", "TS", "SS")
    """Beginning and ending in text (T) or speech (S). A language model without speech tokens has TT only."""
    rules: tuple[Rule, ...] = ("mean", "mutual_information")
    """What is compared: the mean log-likelihood per id, the total, that per byte of text, or the mean less that of the
    ending without the beginning. The first gives the result of a direction."""
    one_modality: bool = False
    """Whether probabilities are those among the ids of the ending's modality."""
    voice: str | None = None
    """TTS voice of pairs without recordings; not set: the text-to-token model of the bundle."""
    speaker: str | None = None
    """Speaker of a text-to-token model trained with several; not set: the one with most training data."""


def run(config: LikelihoodEval) -> None:
    """Measure, and write the results."""
    check_output(config)
    data = items_file(config, "pairs", "likelihood needs pairs of endings")
    pairs = sampled(cloze.read_pairs(data), config.limit, config.seed)
    spoken = set(config.directions) - {"TT"}
    lm = load_lm(config.model)
    if spoken and isinstance(lm.vocab, TextVocab):
        raise UserError("this language model has no speech tokens: give --directions TT, or a model of weft")
    codes = _codes(config, pairs) if spoken else {}
    measured = cloze.spoken_pairs(pairs, codes) if spoken else pairs
    found = cloze.measure(lm, measured, codes, config.directions, config.one_modality)
    known = {**fingerprints(config, "lm", "tokenizer", "text_to_token"), "data": str(content_id(pairs))}
    voices = sorted(
        {p.voice or "recordings" for p in measured if p.recordings} | {_voice(config) for p in measured if p.texts}
    )
    results = {
        direction if rule == config.rules[0] else f"{direction}, {rule}": Result.of_scores(
            [*scores.scores(rule), *(None for _ in range(len(pairs) - len(measured)))],
            protocol(
                config,
                direction=direction,
                rule=rule,
                ids="of one modality" if config.one_modality else "all",
                voices=voices if direction != "TT" else [],
                fingerprints=known,
            ),
            unjudged_is=None,
        )
        for direction, scores in found.items()
        for rule in config.rules
    }
    details = {"pairs": len(pairs), "not_spoken": sorted({p.id for p in pairs} - {p.id for p in measured})}
    write(config.out, "likelihood", results, details, _items(measured, found))


def _voice(config: LikelihoodEval) -> str:
    return "the text-to-token model" if config.voice is None else voice_name(config.voice)


def _items(pairs: Sequence[ClozePair], found: Mapping[str, PairScores]) -> Iterator[dict[str, Any]]:
    """Yield the values of each pair: [right, wrong] by direction and rule."""
    for i, pair in enumerate(pairs):
        rules = ("mean", "total", "mutual_information")
        yield {
            "id": pair.id,
            **({"part": pair.part} if pair.part else {}),
            **{name: {rule: scores.values(rule)[i].tolist() for rule in rules} for name, scores in found.items()},
        }


def _codes(config: LikelihoodEval, pairs: Sequence[ClozePair]) -> dict[str, Sequence[int]]:
    """Return the codes of recordings, and of texts without them by the voice or the text-to-token model."""
    recordings = {name: path for pair in pairs for name, path in pair.recordings.items()}
    texts = cloze.texts_of(pairs)
    codes: dict[str, Sequence[int]] = {}
    if recordings:
        codes |= _encoded(config, recordings, [load(path) for path in recordings.values()])
    if texts and config.voice is None:
        synthesizer = Synthesizer.from_pretrained(config.model / "text_to_token")
        codes |= cloze.synthesize_texts(synthesizer, pairs, config.seed, config.speaker)
    elif texts:
        speeches = [speak(text, config.voice or "") for text in texts.values()]
        codes |= _encoded(config, texts, [resample(s.samples, s.sample_rate_hz) for s in speeches])
    return codes


def _encoded(config: LikelihoodEval, names: Mapping[str, str], audio: Sequence[Any]) -> dict[str, Sequence[int]]:
    return {name: c.tolist() for name, c in zip(names, load_tokenizer(config).encode(audio), strict=True)}
