"""Synthetic stories, facts and dialogues in English, without limit, from a seed.

    world = World(seed=0)
    world.story(7).text                 # four sentences; the ending follows from the beginning
    world.document(7)                   # 50 to 120 words for a text corpus: stories of one topic among facts
    world.dialogue(7).turns             # user and assistant in turn
    world.questions(held_out=True)      # facts with a wording that does not occur in training
    world.cloze_pair(7)                 # a held-out story, with its own ending and that of another story

Every item is a pure function of (seed, index, held_out). The split does not depend on the seed: an eighth of the
(topic, hero, thing) combinations of stories and an eighth of the (fact, phrasing) combinations of questions occur only
with `held_out=True`, so a held-out item is new to a model trained with any seed.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from functools import cached_property

from weft.demo.lexicon import GREETINGS, MEN, RELATIONS, THANKS, TOPICS, TOWNS, WOMEN, Relation, Topic
from weft.eval.cloze import ClozePair

HELD_OUT_ONE_IN = 8
_CHOICE = re.compile(r"\[([^\]]*)\]")
_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}


@dataclass(frozen=True)
class Story:
    """A beginning of three sentences and an ending of one, about a `hero` and a `thing`."""

    id: str
    topic: str
    hero: str
    thing: str
    beginning: str
    ending: str

    @property
    def text(self) -> str:
        return f"{self.beginning} {self.ending}"

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(re.split(r"(?<=\.) ", self.text))


@dataclass(frozen=True)
class Question:
    """A question for a fact. `answer` states the fact; `keywords` are the words that a right answer contains."""

    question: str
    answer: str
    keywords: str


@dataclass(frozen=True)
class Turn:
    """A turn of a dialogue; `role` is "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Turns of user and assistant in alternation, beginning with the user."""

    id: str
    turns: tuple[Turn, ...]


class World:
    """A generator of texts. `seed` determines stories, documents and dialogues, but not the split."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def story(self, index: int, held_out: bool = False) -> Story:
        """Return story `index` of the training or the held-out sequence."""
        rng = self._rng("story", index, held_out)
        return _make_story(rng, rng.choice(TOPICS), f"story-{_part(held_out)}-{index}", held_out)

    def document(self, index: int) -> str:
        """Return a training document of 50 to 120 words: two stories of one topic, and one or two facts."""
        rng = self._rng("document", index, False)
        topic = rng.choice(TOPICS)
        stories = [_make_story(rng, topic, "", False).text for _ in range(2)]
        questions = rng.sample(self.questions(), rng.choice((1, 2)))
        facts = [q.answer if rng.random() < 0.5 else f"{q.question} {q.answer}" for q in questions]
        parts = [stories[0], facts[0], stories[1], *facts[1:]]
        return " ".join(parts if rng.random() < 0.5 else parts[::-1])

    def dialogue(self, index: int, held_out: bool = False) -> Dialogue:
        """Return dialogue `index`, of two or four turns. Held-out dialogues have held-out phrasings of questions."""
        rng = self._rng("dialogue", index, held_out)
        first, second = ((q.question, q.answer) for q in rng.sample(self.questions(held_out), 2))
        greeting, thanks = rng.choice(GREETINGS), rng.choice(THANKS)
        exchanges = rng.choice(([first], [first, second], [greeting, first], [first, thanks]))
        turns = [Turn(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
        return Dialogue(f"dialogue-{_part(held_out)}-{index}", tuple(turns))

    def questions(self, held_out: bool = False) -> list[Question]:
        """Return all (fact, phrasing) combinations of the training or the held-out split, for all seeds the same."""
        return self._questions[held_out]

    def cloze_pair(self, index: int) -> ClozePair:
        """Return pair `index`: a held-out story, and the ending of a story of another topic (Topic-StoryCloze).

        The lengths of the two endings differ by at most two words.
        """
        story = self.story(index, held_out=True)
        rng = self._rng("cloze", index, True)
        while True:
            other = _make_story(rng, rng.choice(TOPICS), "", held_out=True)
            difference = len(other.ending.split()) - len(story.ending.split())
            if other.topic != story.topic and abs(difference) <= 2:
                return ClozePair(f"cloze-{index}", story.beginning, story.ending, other.ending)

    @cached_property
    def _questions(self) -> dict[bool, list[Question]]:
        split: dict[bool, list[Question]] = {False: [], True: []}
        for relation in RELATIONS:
            for subject, thing in relation.rows:
                # One phrasing of every second fact, by hash, so that each fact has at least three in training.
                held_out = zlib.crc32(f"{relation.name}/{subject}".encode()) % HELD_OUT_ONE_IN
                for phrasing, question in enumerate(_questions_about(relation, subject, thing)):
                    split[phrasing == held_out].append(question)
        return split

    def _rng(self, kind: str, index: int, held_out: bool) -> random.Random:
        return random.Random(f"{self.seed}/{kind}/{_part(held_out)}/{index}")


def is_held_out_story(topic: str, hero: str, thing: str) -> bool:
    """Whether stories of this combination are held out."""
    return zlib.crc32(f"{topic}/{hero}/{thing}".encode()) % HELD_OUT_ONE_IN == 0


def _part(held_out: bool) -> str:
    return "held-out" if held_out else "train"


def _make_story(rng: random.Random, topic: Topic, story_id: str, held_out: bool) -> Story:
    while True:
        hero, thing = rng.choice(WOMEN + MEN), rng.choice(topic.things)
        if is_held_out_story(topic.name, hero, thing) == held_out:
            break
    plot = rng.choice(topic.plots)
    town = rng.choice(TOWNS)
    sentences = [
        _fill(rng, rng.choice(templates), hero, town, thing)
        for templates in (topic.openings, topic.scenes, plot.problems, plot.endings)
    ]
    return Story(story_id, topic.name, hero, thing, " ".join(sentences[:3]), sentences[3])


def _fill(rng: random.Random, template: str, hero: str, town: str, thing: str) -> str:
    he, his, him = _PRONOUNS["she" if hero in WOMEN else "he"]
    text = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), template)
    slots = {"name": hero, "town": town, "thing": thing, "he": he, "his": his, "him": him}
    return text.format(**slots, He=he.capitalize(), His=his.capitalize())


def _questions_about(relation: Relation, subject: str, thing: str) -> list[Question]:
    slots = {"s": subject, "o": thing, "S": _capital(subject), "O": _capital(thing)}
    return [
        Question(
            question=template.format(**slots),
            answer=relation.statement.format(**slots),
            keywords=re.sub("^(a|an|the) ", "", slots[asked]),
        )
        for template, asked in relation.questions
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
