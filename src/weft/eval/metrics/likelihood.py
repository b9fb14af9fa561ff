"""`weft eval likelihood`: how often the right ending is likelier than a wrong one, in text, speech and across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weft.audio import load, resample
from weft.errors import UserError
from weft.eval import cloze, contamination
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
    keys = {(d, r): d if r == config.rules[0] else f"{d}, {r}" for d in config.directions for r in config.rules}
    by_id = {key: dict(zip((p.id for p in measured), found[d].scores(r), strict=True)) for (d, r), key in keys.items()}
    scores = {key: [of.get(p.id) for p in pairs] for key, of in by_id.items()}
    results = {
        key: Result.of_scores(
            scores[key],
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
        for (direction, rule), key in keys.items()
    }
    details = {"pairs": len(pairs), "not_spoken": sorted({p.id for p in pairs} - {p.id for p in measured})}
    texts = {p.id: " ".join(filter(None, (p.beginning, p.right))) for p in pairs}
    details |= contamination.measure(texts, config.training, lm.vocab)
    write(config.out, "likelihood", results, details, _items(pairs, measured, found), scores)


def _voice(config: LikelihoodEval) -> str:
    return "the text-to-token model" if config.voice is None else voice_name(config.voice)


def _items(
    pairs: Sequence[ClozePair], measured: Sequence[ClozePair], found: Mapping[str, PairScores]
) -> list[dict[str, Any]]:
    """Return the values of each pair that was measured: [right, wrong] by direction and rule."""
    row_of, rules = {pair.id: row for row, pair in enumerate(measured)}, ("mean", "total", "mutual_information")
    values = {name: {rule: scores.values(rule) for rule in rules} for name, scores in found.items()}
    items: list[dict[str, Any]] = [{"id": p.id, **({"part": p.part} if p.part else {})} for p in pairs]
    for item in items:
        if (row := row_of.get(item["id"])) is not None:
            item |= {name: {rule: v[row].tolist() for rule, v in of.items()} for name, of in values.items()}
    return items


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
