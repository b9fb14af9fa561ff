"""A small invented world that tells stories, facts and dialogues in English, without limit, from a seed.

    world = World(seed=0)
    world.story(7).text                 # four sentences; the ending follows from the beginning
    world.document(7)                   # 50 to 120 words for a text corpus: stories of one topic among facts
    world.dialogue(7).turns             # user and assistant in turn
    world.utterance(7)                  # something short for a voice to say
    world.questions(held_out=True)      # facts asked in words that training never uses for them
    world.cloze_pair(7)                 # a story never told in training, with its own ending and another's

Every item is a pure function of (seed, index, held_out). What is held out depends on no seed: an eighth of the
(topic, hero, thing) combinations of stories and an eighth of the (fact, phrasing) combinations of questions appear
only with `held_out=True`, so that any held-out item is new to a model trained on any seed.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from functools import cached_property

from weft.demo.lexicon import GREETINGS, MEN, RELATIONS, THANKS, TOWNS, WOMEN, Relation
from weft.demo.topics import TOPICS, Topic

HELD_OUT_ONE_IN = 8
_CHOICE = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{\w+\}")
_PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "his", "him")}


@dataclass(frozen=True)
class Story:
    """Three sentences of beginning and the one that ends them; `hero` and `thing` are whom and what it is about."""

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
    """One way to ask for a fact. `answer` states the fact; `gold` is the word or two that a right answer contains."""

    id: str
    question: str
    answer: str
    gold: str


@dataclass(frozen=True)
class Turn:
    """What one side says; `role` is "user" or "assistant"."""

    role: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Turns of user and assistant in alternation, the user first."""

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class ClozePair:
    """A held-out beginning, its right ending, and the ending of a story of another topic (Topic-StoryCloze)."""

    id: str
    beginning: str
    right: str
    wrong: str


class World:
    """The generator. `seed` chooses which stories, documents and dialogues are told, never what is held out."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def story(self, index: int, held_out: bool = False) -> Story:
        """Story `index` of the training sequence, or of the held-out one."""
        rng = self._rng("story", index, held_out)
        return _tell(rng, rng.choice(TOPICS), f"story-{_part(held_out)}-{index}", held_out)

    def document(self, index: int) -> str:
        """A training document of 50 to 120 words: two stories of one topic, with facts told or asked among them."""
        rng = self._rng("document", index, False)
        topic = rng.choice(TOPICS)
        stories = [_tell(rng, topic, "", False).text for _ in range(2)]
        facts = [_recite(rng, question) for question in rng.sample(self.questions(), rng.choice((1, 2)))]
        parts = [stories[0], facts[0], stories[1], *facts[1:]]
        return " ".join(parts if rng.random() < 0.5 else parts[::-1])

    def dialogue(self, index: int, held_out: bool = False) -> Dialogue:
        """Dialogue `index`, of two or four turns. A held-out one asks only in ways that training does not."""
        rng = self._rng("dialogue", index, held_out)
        first, second = ((q.question, q.answer) for q in rng.sample(self.questions(held_out), 2))
        greeting, thanks = rng.choice(GREETINGS), rng.choice(THANKS)
        exchanges = rng.choice(([first], [first, second], [greeting, first], [first, thanks]))
        turns = [Turn(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
        return Dialogue(f"dialogue-{_part(held_out)}-{index}", tuple(turns))

    def utterance(self, index: int, held_out: bool = False) -> str:
        """A text for a voice, of 2 to 42 words: some neighbouring sentences of a story, or one turn of a dialogue.

        A held-out one is cut from a held-out story or dialogue; a short one may be a sentence that training knows.
        """
        rng = self._rng("utterance", index, held_out)
        if rng.random() < 0.25:
            return rng.choice(self.dialogue(rng.randrange(10**9), held_out).turns).text
        sentences = _tell(rng, rng.choice(TOPICS), "", held_out).sentences
        start = rng.randrange(len(sentences))
        return " ".join(sentences[start : rng.randint(start + 1, len(sentences))])

    def questions(self, held_out: bool = False) -> list[Question]:
        """Every (fact, phrasing) that training may use, or every one that it may not. The same for all seeds."""
        return self._questions[held_out]

    def cloze_pair(self, index: int) -> ClozePair:
        """Pair `index`; the two endings differ by a word or two in length, so that length does not give it away."""
        story = self.story(index, held_out=True)
        rng = self._rng("cloze", index, True)
        while True:
            other = _tell(rng, rng.choice(TOPICS), "", held_out=True)
            if other.topic != story.topic and abs(num_words(other.ending) - num_words(story.ending)) <= 2:
                return ClozePair(f"cloze-{index}", story.beginning, story.ending, other.ending)

    @cached_property
    def _questions(self) -> dict[bool, list[Question]]:
        split: dict[bool, list[Question]] = {False: [], True: []}
        for relation in RELATIONS:
            for row, (subject, thing) in enumerate(relation.rows):
                for phrasing, question in enumerate(_ask(relation, subject, thing)):
                    split[_is_held_out_phrasing(relation, row, phrasing)].append(question)
        return split

    def _rng(self, kind: str, index: int, held_out: bool) -> random.Random:
        return random.Random(f"{self.seed}/{kind}/{_part(held_out)}/{index}")


def vocabulary() -> set[str]:
    """Every word that the world can say, in lower case."""
    texts = [*WOMEN, *MEN, *TOWNS, *(" ".join(forms) for forms in _PRONOUNS.values())]
    for topic in TOPICS:
        templates = [*topic.openings, *topic.scenes, *(t for plot in topic.plots for t in plot.problems + plot.endings)]
        texts += [*topic.things, *(_SLOT.sub(" ", template) for template in templates)]
    texts += [t for r in RELATIONS for row in r.rows for q in _ask(r, *row) for t in (q.question, q.answer)]
    texts += [t for pair in GREETINGS + THANKS for t in pair]
    return {word for text in texts for word in words(text)}


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z]+", text.lower())


def num_words(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


def is_held_out_story(topic: str, hero: str, thing: str) -> bool:
    """Whether stories of this combination are kept from training."""
    return zlib.crc32(f"{topic}/{hero}/{thing}".encode()) % HELD_OUT_ONE_IN == 0


def _is_held_out_phrasing(relation: Relation, row: int, phrasing: int) -> bool:
    # One phrasing of every second fact, chosen by hash, so that each fact keeps at least three for training.
    return zlib.crc32(f"{relation.name}/{relation.rows[row][0]}".encode()) % HELD_OUT_ONE_IN == phrasing


def _part(held_out: bool) -> str:
    return "held-out" if held_out else "train"


def _tell(rng: random.Random, topic: Topic, story_id: str, held_out: bool) -> Story:
    while True:
        hero, thing = rng.choice(WOMEN + MEN), rng.choice(topic.things)
        if is_held_out_story(topic.name, hero, thing) == held_out:
            break
    plot = rng.choice(topic.plots)
    town = rng.choice(TOWNS)
    told = [
        _fill(rng, rng.choice(templates), hero, town, thing)
        for templates in (topic.openings, topic.scenes, plot.problems, plot.endings)
    ]
    return Story(story_id, topic.name, hero, thing, " ".join(told[:3]), told[3])


def _fill(rng: random.Random, template: str, hero: str, town: str, thing: str) -> str:
    he, his, him = _PRONOUNS["she" if hero in WOMEN else "he"]
    text = _CHOICE.sub(lambda m: rng.choice(m[1].split("|")), template)
    slots = {"name": hero, "town": town, "thing": thing, "he": he, "his": his, "him": him}
    return text.format(**slots, He=he.capitalize(), His=his.capitalize())


def _ask(relation: Relation, subject: str, thing: str) -> list[Question]:
    slots = {"s": subject, "o": thing, "S": _capital(subject), "O": _capital(thing)}
    return [
        Question(
            id=f"{relation.name}-{subject.split()[-1]}-{i}".lower(),
            question=template.format(**slots),
            answer=relation.statement.format(**slots),
            gold=re.sub("^(a|an|the) ", "", slots[asked]),
        )
        for i, (template, asked) in enumerate(relation.questions)
    ]


def _recite(rng: random.Random, question: Question) -> str:
    return question.answer if rng.random() < 0.5 else f"{question.question} {question.answer}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
