"""Data of the demo: the built-in world spoken by espeak, or the user's own text and speech.

    data = from_world(folder, sizes, seed, workers)
    data = from_user(folder, texts, audio, sizes, seed, workers)

Both write the same files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from weft.config import PositiveInt
from weft.data.corpus import read_texts
from weft.data.job import JobConfig
from weft.data.speech import read_manifest
from weft.demo.world import World
from weft.errors import UserError
from weft.eval.cloze import ClozePair, write_pairs
from weft.files import write_bytes
from weft.interleave.spans import hash64, select
from weft.records import Utterance
from weft.text.segment import sentences_of
from weft.voices.speak import Line, speak_lines

MAIN_VOICE = "espeak:en-us"
OTHER_VOICE = "espeak:en-us+f3"
_PASSAGE_SENTENCES = 5
_MIN_UTTERANCES = 40
_SPAN_RATIO, _SPAN_WORDS = 0.5, 10.0
# Words per minute, sampled for each line. A synthesizer that speaks the same words always in the same way would be
# memorized, and memorized speech is more likely than any other.
SPEEDS = (158, 164, 170, 176, 182, 188, 194)
# Document ids are part of the seeds of spans and speech. These prefixes keep the figures of earlier versions.
_ID_PREFIX = {"interleaved": "woven", "synthetic_speech": "spoken", "text": "plain"}


@dataclass(frozen=True)
class Sizes:
    """Amounts of data."""

    stories: PositiveInt = 800
    """Stories spoken for training, sentence by sentence."""
    turns: PositiveInt = 400
    """Dialogue turns spoken for training."""
    span_documents: PositiveInt = 200
    """Documents whose spans are spoken for training, cut as interleaving cuts them."""
    held_out: PositiveInt = 160
    """Held-out utterances, and held-out spans."""
    interleaved_documents: PositiveInt = 1800
    """Text documents for interleaving."""
    synthetic_speech_documents: PositiveInt = 1200
    """Text documents that are spoken completely, in place of unsupervised speech."""
    text_documents: PositiveInt = 600
    """Text documents that stay text."""
    dialogues: PositiveInt = 500
    """Dialogues for fine-tuning."""
    pairs: PositiveInt = 400
    """Pairs of topic-cloze."""


@dataclass(frozen=True)
class DemoData:
    """Files of a run.

    Text-to-token and decoder learn `voice`; the tokenizer is also trained on `others`. `held_out_spans` are spans as
    interleaving cuts them, if a TTS engine speaks. `expected` is the answer to the question and `keywords` its
    essential words, if known. `pairs_speech` is None if no TTS engine has the right voice.
    """

    voice: Path
    others: tuple[Path, ...]
    held_out: Path
    interleaved: Path
    synthetic_speech: Path
    text: Path
    dialogues: Path
    pairs: Path
    pairs_speech: Path | None
    held_out_spans: Path | None
    held_out_text: Path
    question: Utterance
    expected: str | None = None
    keywords: str | None = None

    @property
    def speech(self) -> tuple[Path, ...]:
        """All speech to train on."""
        return (self.voice, *self.others)


def from_world(folder: Path, sizes: Sizes, seed: int, workers: int) -> DemoData:
    """Write stories, facts and dialogues of the built-in world, with three quarters of the speech in the main voice."""
    world = World(seed)
    pairs = [world.cloze_pair(i) for i in range(sizes.pairs)]
    documents = map(world.document, count())
    questions = world.questions(held_out=True)
    question = questions[seed % len(questions)]
    new_stories = range(sizes.stories, sizes.stories + sizes.synthetic_speech_documents)
    texts = {
        "interleaved": list(islice(documents, sizes.interleaved_documents)),
        "text": list(islice(documents, sizes.text_documents)),
        "synthetic_speech": [world.story(i).text for i in new_stories],
    }
    dialogues = (asdict(world.dialogue(i)) for i in range(sizes.dialogues))
    lines = _training_lines(world, islice(documents, sizes.span_documents), sizes)
    speech = {
        "voice": [line for line in lines if line.voice.startswith(f"{MAIN_VOICE}?")],
        "other": [line for line in lines if line.voice.startswith(f"{OTHER_VOICE}?")],
        "held_out": _held_out_lines(world, sizes.held_out),
        "held_out_spans": _held_out_spans(world, sizes.held_out),
        "pairs": [Line(n, t, MAIN_VOICE, p.id) for p in pairs for n, t in p.texts.items()],
        "question": [Line("question", question.question, MAIN_VOICE)],
    }
    for name, part in speech.items():
        speak_lines(part, folder / name, JobConfig(workers))
    return DemoData(
        **_write_texts(folder, texts, pairs, dialogues),
        voice=folder / "voice",
        others=(folder / "other",),
        held_out=folder / "held_out",
        pairs_speech=folder / "pairs",
        held_out_spans=folder / "held_out_spans",
        question=read_manifest(folder / "question")[0],
        expected=question.answer,
        keywords=question.keywords,
    )


def from_user(
    folder: Path, texts: Sequence[Path], audio: Sequence[Path], sizes: Sizes, seed: int, workers: int
) -> DemoData:
    """Write the user's text and speech. Missing text is taken from transcripts, and missing speech is synthesized.

    Every twentieth utterance is held out. Pairs are made from documents of four sentences or more.
    """
    rng = random.Random(seed)
    if audio:
        utterances: Sequence[Utterance] = [u for u in read_manifest(*audio) if u.text]
        if len(utterances) < _MIN_UTTERANCES:
            raise UserError(f"{audio[0]} has {len(utterances)} transcribed utterances: give at least {_MIN_UTTERANCES}")
        sentences = [_with_end(u.text or "") for u in utterances]
        documents = _passages(d.text for d in read_texts(*texts)) if texts else _passages([" ".join(sentences)])
    else:
        documents = _passages(d.text for d in read_texts(*texts))
        utterances = _speak_sentences(folder, documents, sizes, rng, workers)
    rng.shuffle(documents)
    order = rng.sample(utterances, len(utterances))
    num_held_out = min(sizes.held_out, len(order) // 20)
    held_out = {u.id for u in order[:num_held_out]}
    _write_rows(folder / "voice.jsonl", (asdict(u) for u in utterances if u.id not in held_out))
    _write_rows(folder / "held_out.jsonl", (asdict(u) for u in order[:num_held_out]))
    pairs, rest = _pairs_of(documents, sizes.pairs, rng)
    half = min(sizes.interleaved_documents, -(-len(rest) // 2))
    stop = half + min(sizes.text_documents, max(1, len(rest) // 4))
    parts = {
        "interleaved": rest[:half],
        "text": rest[half:stop] or rest[:half],
        "synthetic_speech": rest[stop : stop + sizes.synthetic_speech_documents] or rest[:half],
    }
    return DemoData(
        **_write_texts(folder, parts, pairs, _dialogues_of(rest, sizes.dialogues)),
        voice=folder / "voice.jsonl",
        others=(),
        held_out=folder / "held_out.jsonl",
        pairs_speech=None,
        held_out_spans=None,
        question=order[0],
    )


def _write_texts(
    folder: Path, texts: dict[str, list[str]], pairs: list[ClozePair], dialogues: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Write texts, dialogues and pairs; return their files by the names of the fields of `DemoData`."""
    texts = {**texts, "held_out_text": [f"{pair.beginning} {pair.right}" for pair in pairs]}
    files = {name: folder / f"{name}.jsonl" for name in (*texts, "dialogues", "pairs")}
    for name, documents in texts.items():
        prefix = _ID_PREFIX.get(name, name)
        _write_rows(files[name], ({"id": f"{prefix}-{i}", "text": text} for i, text in enumerate(documents)))
    _write_rows(files["dialogues"], dialogues)
    write_bytes(files["pairs"], write_pairs(pairs).encode())
    return files


def _training_lines(world: World, documents: Iterable[str], sizes: Sizes) -> list[Line]:
    """Return whole sentences, and spans of documents: a model trained only on sentences cannot speak spans."""
    rng = random.Random(f"{world.seed}/speeds")

    def voice(i: int) -> str:
        return f"{OTHER_VOICE if i % 4 == 3 else MAIN_VOICE}?speed={rng.choice(SPEEDS)}"

    stories = [world.story(i) for i in range(sizes.stories)]
    turns = [t.text for i in range(sizes.turns) for t in world.dialogue(i).turns][: sizes.turns]
    return [
        *(
            Line(f"{s.id}.{j}", text, voice(i), s.id)
            for i, s in enumerate(stories)
            for j, text in enumerate(s.sentences)
        ),
        *(Line(f"turn-{i}", text, voice(i)) for i, text in enumerate(turns)),
        *(Line(name, text, voice(i)) for i, (name, text) in enumerate(_spans(documents, world.seed))),
    ]


def _spans(documents: Iterable[str], seed: int) -> Iterator[tuple[str, str]]:
    """Yield names and texts of spans, cut as interleaving cuts them, for half of the words of each document."""
    for i, document in enumerate(documents):
        selection = select(document, _SPAN_RATIO, _SPAN_WORDS, np.random.default_rng(hash64(seed, "span", i)))
        yield from ((f"span-{i}.{j}", part.text.strip()) for j, part in enumerate(selection.parts) if part.spoken)


def _held_out_lines(world: World, num: int) -> list[Line]:
    stories = (world.story(i, held_out=True) for i in range(num))
    lines = (Line(f"{s.id}.{j}", text, MAIN_VOICE, s.id) for s in stories for j, text in enumerate(s.sentences))
    return list(islice(lines, num))


def _held_out_spans(world: World, num: int) -> list[Line]:
    stories = (world.story(i, held_out=True).text for i in range(num))
    return [Line(f"held-out-{name}", text, MAIN_VOICE) for name, text in islice(_spans(stories, world.seed), num)]


def _passages(texts: Iterable[str]) -> list[str]:
    """Split texts into passages of a few sentences, as long as the world's documents."""
    passages = []
    for text in texts:
        sentences = sentences_of(" ".join(text.split()))
        cut = (" ".join(sentences[i : i + _PASSAGE_SENTENCES]) for i in range(0, len(sentences), _PASSAGE_SENTENCES))
        passages += [p for p in cut if 20 <= len(p.split()) <= 150]
    return passages


def _with_end(sentence: str) -> str:
    """Return a transcript with a full stop."""
    return sentence if sentence.rstrip().endswith((".", "!", "?")) else f"{sentence.rstrip()}."


def _speak_sentences(
    folder: Path, documents: Sequence[str], sizes: Sizes, rng: random.Random, workers: int
) -> Sequence[Utterance]:
    sentences = [s for d in documents for s in sentences_of(d) if 3 <= len(s.split()) <= 16]
    if len(sentences) < _MIN_UTTERANCES:
        raise UserError(f"the text has {len(sentences)} sentences of 3 to 16 words: give at least {_MIN_UTTERANCES}")
    chosen = rng.sample(sentences, min(len(sentences), 4 * sizes.stories))
    lines = [Line(f"line-{i}", s, f"{MAIN_VOICE}?speed={rng.choice(SPEEDS)}") for i, s in enumerate(chosen)]
    speak_lines(lines, folder / "speech", JobConfig(workers))
    return read_manifest(folder / "speech")


def _pairs_of(documents: Sequence[str], num: int, rng: random.Random) -> tuple[list[ClozePair], list[str]]:
    """Return pairs from documents of four sentences or more, and the documents that remain for training."""
    long = [d for d in documents if len(sentences_of(d)) >= 4][: max(2, min(num, len(documents) // 5))]
    if len(long) < 2:
        raise UserError("the text has no documents of four sentences for the evaluation: give longer text")
    stories = [sentences_of(d)[:4] for d in long]
    pairs = [
        ClozePair(f"pair-{i}", " ".join(s[:3]), s[3], stories[(i + rng.randrange(1, len(stories))) % len(stories)][3])
        for i, s in enumerate(stories)
    ]
    held_out = set(long)
    return pairs, [d for d in documents if d not in held_out]


def _dialogues_of(documents: Iterable[str], num: int) -> list[dict[str, Any]]:
    """Return dialogues in which the user says a sentence, and the answer is the next sentence of the text."""
    pairs = ((a, b) for d in documents for a, b in zip(sentences_of(d)[::2], sentences_of(d)[1::2], strict=False))
    short = ((a, b) for a, b in pairs if len(a.split()) <= 20 and len(b.split()) <= 20)
    return [
        {"id": f"dialogue-{i}", "turns": [{"role": "user", "text": a}, {"role": "assistant", "text": b}]}
        for i, (a, b) in enumerate(islice(short, num))
    ]


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
