"""What the demo's road is walked with: the built-in world spoken by espeak, or the user's own text and speech.

    material = of_world(folder, sizes, seed)                     # text is written, nothing is spoken yet
    material = of_user(folder, texts, audio, sizes, seed)

Both give the same files, so that the road does not know which it has.
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

from weft.artifacts import write_bytes
from weft.config import Count
from weft.data.corpus import read_manifest, read_texts
from weft.demo.world import World
from weft.errors import UserError
from weft.eval.cloze import ClozePair, write_pairs
from weft.interleave.spans import draw, hash64
from weft.records import Utterance
from weft.sentences import sentences_of
from weft.speak import speak_lines
from weft.voices import Line

MAIN_VOICE = "espeak:en-us"
OTHER_VOICE = "espeak:en-us+f3"
_PASSAGE_SENTENCES = 5
_SPAN_SHARE, _SPAN_WORDS = 0.5, 10.0
# Words a minute, drawn for each line: a synthesiser that said the same words in the same way each time would be learnt
# by heart, and what was learnt by heart is likelier than anything that makes sense.
SPEEDS = (158, 164, 170, 176, 182, 188, 194)


@dataclass(frozen=True)
class Sizes:
    """How much of everything the demo uses."""

    stories: Count = 800
    """Stories of the world spoken for training, sentence by sentence."""
    turns: Count = 400
    """Dialogue turns of the world spoken for training."""
    span_documents: Count = 200
    """Documents of the world of which spans are spoken for training, cut where interleaving cuts."""
    held_out: Count = 160
    """Utterances kept from training, to measure on, and as many spans."""
    woven_documents: Count = 1800
    """Text documents that get spoken spans."""
    spoken_documents: Count = 1200
    """Text documents that are spoken from beginning to end, as unsupervised speech would be."""
    plain_documents: Count = 600
    """Text documents that stay text."""
    dialogues: Count = 500
    """Dialogues of the fine-tune."""
    pairs: Count = 400
    """Pairs of the topic-cloze."""


@dataclass(frozen=True)
class Material:
    """Files of the road. `voice` is the one that text-to-token and decoder learn; `others` train the tokenizer too.

    `held_out_spans` are stretches of text cut anywhere, as interleaving cuts them, where an engine can speak such.
    `expected` answers the question, and `gold` are the words of it that matter, where they are known. `pairs_speech` is
    None where no engine can speak new text in the right voice: then text-to-token does.
    """

    voice: Path
    others: tuple[Path, ...]
    held_out: Path
    woven: Path
    spoken: Path
    plain: Path
    dialogues: Path
    pairs: Path
    pairs_speech: Path | None
    held_out_spans: Path | None
    held_out_text: Path
    question: Utterance
    expected: str | None = None
    gold: str | None = None

    @property
    def speech(self) -> tuple[Path, ...]:
        """All speech to train on."""
        return (self.voice, *self.others)


def of_world(folder: Path, sizes: Sizes, seed: int, workers: int) -> Material:
    """Stories, facts and dialogues of the built-in world, three quarters of the speech in the main voice."""
    world = World(seed)
    pairs = [ClozePair(**asdict(world.cloze_pair(i))) for i in range(sizes.pairs)]
    documents = map(world.document, count())
    dialogues = (world.dialogue(i) for i in range(sizes.dialogues))
    question = world.questions(held_out=True)[seed % len(world.questions(held_out=True))]
    _write_texts(folder / "woven.jsonl", islice(documents, sizes.woven_documents))
    _write_texts(folder / "plain.jsonl", islice(documents, sizes.plain_documents))
    unheard = range(sizes.stories, sizes.stories + sizes.spoken_documents)
    _write_texts(folder / "spoken.jsonl", (world.story(i).text for i in unheard))
    _write_texts(folder / "held_out_text.jsonl", (f"{p.beginning} {p.right}" for p in pairs))
    _write_lines(folder / "dialogues.jsonl", ({"id": d.id, "turns": [asdict(t) for t in d.turns]} for d in dialogues))
    write_bytes(folder / "pairs.jsonl", write_pairs(pairs).encode())
    lines = _training_lines(world, islice(documents, sizes.span_documents), sizes)
    spoken = {
        "voice": [line for line in lines if line.voice.startswith(f"{MAIN_VOICE}?")],
        "other": [line for line in lines if line.voice.startswith(f"{OTHER_VOICE}?")],
        "held_out": _held_out_lines(world, sizes.held_out),
        "held_out_spans": _held_out_spans(world, sizes.held_out),
        "pairs": [Line(n, t, MAIN_VOICE, p.id) for p in pairs for n, t in p.pieces.items()],
        "question": [Line("question", question.question, MAIN_VOICE)],
    }
    for name, part in spoken.items():
        speak_lines(part, folder / name, workers)
    return Material(
        voice=folder / "voice",
        others=(folder / "other",),
        held_out=folder / "held_out",
        woven=folder / "woven.jsonl",
        spoken=folder / "spoken.jsonl",
        plain=folder / "plain.jsonl",
        dialogues=folder / "dialogues.jsonl",
        pairs=folder / "pairs.jsonl",
        pairs_speech=folder / "pairs",
        held_out_spans=folder / "held_out_spans",
        held_out_text=folder / "held_out_text.jsonl",
        question=read_manifest(folder / "question")[0],
        expected=question.answer,
        gold=question.gold,
    )


def _training_lines(world: World, documents: Iterable[str], sizes: Sizes) -> list[Line]:
    """Whole sentences, and spans of the documents: a model that heard only whole sentences can say nothing else."""
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
    """Names and texts of spans, cut as interleaving cuts them, half of the words of each document."""
    for i, document in enumerate(documents):
        drawn = draw(document, _SPAN_SHARE, _SPAN_WORDS, np.random.default_rng(hash64(seed, "span", i)))
        yield from ((f"span-{i}.{j}", part.text.strip()) for j, part in enumerate(drawn.parts) if part.spoken)


def _held_out_lines(world: World, num: int) -> list[Line]:
    stories = (world.story(i, held_out=True) for i in range(num))
    lines = (Line(f"{s.id}.{j}", text, MAIN_VOICE, s.id) for s in stories for j, text in enumerate(s.sentences))
    return list(islice(lines, num))


def _held_out_spans(world: World, num: int) -> list[Line]:
    stories = (world.story(i, held_out=True).text for i in range(num))
    return [Line(f"held-out-{name}", text, MAIN_VOICE) for name, text in islice(_spans(stories, world.seed), num)]


def of_user(
    folder: Path, texts: Sequence[Path], audio: Sequence[Path], sizes: Sizes, seed: int, workers: int
) -> Material:
    """The user's text, speech, or both; what is missing is made from the other: transcripts are text, and espeak
    speaks text. Every twentieth utterance is held out, pairs come from documents of four sentences and more."""
    rng = random.Random(seed)
    if audio:
        utterances = [u for u in read_manifest(*audio) if u.text]
        if len(utterances) < 40:
            raise UserError(f"{audio[0]}: {len(utterances)} utterances with a transcript are too few, give at least 40")
        sentences = [_ended(u.text or "") for u in utterances]
        documents = _passages(d.text for d in read_texts(*texts)) if texts else _passages([" ".join(sentences)])
    else:
        documents = _passages(d.text for d in read_texts(*texts))
        utterances = _speak_sentences(folder, documents, sizes, rng, workers)
    rng.shuffle(documents)
    order = rng.sample(utterances, len(utterances))
    num_held_out = min(sizes.held_out, len(order) // 20)
    held = {u.id for u in order[:num_held_out]}
    _write_manifest(folder / "voice.jsonl", (u for u in utterances if u.id not in held))
    _write_manifest(folder / "held_out.jsonl", order[:num_held_out])
    pairs, rest = _pairs_of(documents, sizes.pairs, rng)
    half = min(sizes.woven_documents, -(-len(rest) // 2))
    stop = half + min(sizes.plain_documents, max(1, len(rest) // 4))
    _write_texts(folder / "held_out_text.jsonl", (f"{p.beginning} {p.right}" for p in pairs))
    _write_texts(folder / "woven.jsonl", rest[:half])
    _write_texts(folder / "plain.jsonl", rest[half:stop] or rest[:half])
    _write_texts(folder / "spoken.jsonl", rest[stop : stop + sizes.spoken_documents] or rest[:half])
    _write_lines(folder / "dialogues.jsonl", _dialogues_of(rest, sizes.dialogues))
    write_bytes(folder / "pairs.jsonl", write_pairs(pairs).encode())
    return Material(
        voice=folder / "voice.jsonl",
        others=(),
        held_out=folder / "held_out.jsonl",
        woven=folder / "woven.jsonl",
        spoken=folder / "spoken.jsonl",
        plain=folder / "plain.jsonl",
        dialogues=folder / "dialogues.jsonl",
        pairs=folder / "pairs.jsonl",
        pairs_speech=None,
        held_out_spans=None,
        held_out_text=folder / "held_out_text.jsonl",
        question=order[0],
    )


def _passages(texts: Iterable[str]) -> list[str]:
    """Texts cut into passages of a few sentences, as long as the world's documents."""
    passages = []
    for text in texts:
        sentences = sentences_of(" ".join(text.split()))
        cut = (" ".join(sentences[i : i + _PASSAGE_SENTENCES]) for i in range(0, len(sentences), _PASSAGE_SENTENCES))
        passages += [p for p in cut if 20 <= len(p.split()) <= 150]
    return passages


def _ended(sentence: str) -> str:
    """A transcript as a sentence of a text."""
    return sentence if sentence.rstrip().endswith((".", "!", "?")) else f"{sentence.rstrip()}."


def _speak_sentences(
    folder: Path, documents: Sequence[str], sizes: Sizes, rng: random.Random, workers: int
) -> list[Utterance]:
    sentences = [s for d in documents for s in sentences_of(d) if 3 <= len(s.split()) <= 16]
    if len(sentences) < 40:
        raise UserError(f"the text has {len(sentences)} sentences of 3 to 16 words: give more text")
    chosen = rng.sample(sentences, min(len(sentences), 4 * sizes.stories))
    lines = [Line(f"line-{i}", s, f"{MAIN_VOICE}?speed={rng.choice(SPEEDS)}") for i, s in enumerate(chosen)]
    speak_lines(lines, folder / "spoken", workers)
    return read_manifest(folder / "spoken")


def _pairs_of(documents: Sequence[str], num: int, rng: random.Random) -> tuple[list[ClozePair], list[str]]:
    """Pairs from documents of four sentences and more, which leave the training text; the others."""
    fit = [d for d in documents if len(sentences_of(d)) >= 4][: max(2, min(num, len(documents) // 5))]
    if len(fit) < 2:
        raise UserError("the text has no documents of four sentences for the evaluation: give longer text")
    told = [sentences_of(d)[:4] for d in fit]
    pairs = [
        ClozePair(f"pair-{i}", " ".join(t[:3]), t[3], told[(i + rng.randrange(1, len(told))) % len(told)][3])
        for i, t in enumerate(told)
    ]
    held = set(fit)
    return pairs, [d for d in documents if d not in held]


def _dialogues_of(documents: Iterable[str], num: int) -> list[dict[str, Any]]:
    """Without real dialogues: the user says a sentence, and the answer is the one that follows in the text."""
    asked = ((a, b) for d in documents for a, b in zip(sentences_of(d)[::2], sentences_of(d)[1::2], strict=False))
    short = ((a, b) for a, b in asked if len(a.split()) <= 20 and len(b.split()) <= 20)
    return [
        {"id": f"dialogue-{i}", "turns": [{"role": "user", "text": a}, {"role": "assistant", "text": b}]}
        for i, (a, b) in enumerate(islice(short, num))
    ]


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    _write_lines(path, ({"id": f"{path.stem}-{i}", "text": text} for i, text in enumerate(texts)))


def _write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    _write_lines(path, (asdict(u) for u in utterances))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
