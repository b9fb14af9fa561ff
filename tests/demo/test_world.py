import math
import re
from collections import Counter

import pytest

from weft.demo.lexicon import GREETINGS, MEN, RELATIONS, THANKS, TOPICS, TOWNS, WOMEN
from weft.demo.world import _PRONOUNS, World, is_held_out_story
from weft.voices import espeak


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0)


@pytest.fixture(scope="module")
def training_text(world: World) -> str:
    texts = [world.document(i) for i in range(3000)] + [world.story(i).text for i in range(1000)]
    return " ".join(texts + [turn.text for i in range(1000) for turn in world.dialogue(i).turns])


@pytest.fixture(scope="module")
def vocabulary(world: World) -> set[str]:
    """All words of the world."""
    texts = [*WOMEN, *MEN, *TOWNS, *(" ".join(forms) for forms in _PRONOUNS.values())]
    for topic in TOPICS:
        templates = [*topic.openings, *topic.scenes, *(t for plot in topic.plots for t in plot.problems + plot.endings)]
        texts += [*topic.things, *(re.sub(r"\{\w+\}", " ", template) for template in templates)]
    texts += [t for held_out in (False, True) for q in world.questions(held_out) for t in (q.question, q.answer)]
    texts += [t for pair in GREETINGS + THANKS for t in pair]
    return {word for text in texts for word in words(text)}


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z]+", text.lower())


def num_words(text: str) -> int:
    return len(text.split())


def test_items_depend_only_on_seed_and_index(world: World) -> None:
    again = World(seed=0)
    backwards = [again.story(i) for i in reversed(range(50))]
    assert [world.story(i) for i in range(50)] == backwards[::-1]
    assert [world.document(i) for i in range(20)] == [again.document(i) for i in range(20)]
    assert world.dialogue(10**9) == again.dialogue(10**9)
    assert world.cloze_pair(3) == again.cloze_pair(3)
    other = World(seed=1)
    assert sum(world.story(i).text == other.story(i).text for i in range(200)) < 3
    assert other.questions() == world.questions()


def test_stories_have_four_short_sentences_and_vary(world: World) -> None:
    stories = [world.story(i, held_out) for i in range(2000) for held_out in (False, True)]
    for story in stories:
        assert len(story.sentences) == 4
        assert story.beginning == " ".join(story.sentences[:3])
        assert 25 <= num_words(story.text) <= 45
        assert all(5 <= num_words(sentence) <= 12 for sentence in story.sentences)
    assert len({story.text for story in stories}) > 0.98 * len(stories)
    assert {story.topic for story in stories} == {topic.name for topic in TOPICS}


def test_an_ending_names_the_hero_the_topic_or_the_thing_of_its_story(world: World) -> None:
    for story in (world.story(i) for i in range(2000)):
        assert any(mention in words(story.ending) for mention in (story.hero.lower(), story.topic, story.thing))


def test_text_has_only_letters_and_correct_articles(training_text: str) -> None:
    assert set(training_text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?")
    assert not re.search(r"\b[Aa] [aeiou]", training_text)
    assert not re.search(r"\b[Aa]n [^aeiou]", training_text)
    assert not re.search(r"[.?] [a-z]|  ", training_text)


def test_the_vocabulary_is_small_and_all_of_it_is_frequent_in_training(
    vocabulary: set[str], training_text: str
) -> None:
    assert 500 <= len(vocabulary) <= 650
    count = Counter(words(training_text))
    assert set(count) <= vocabulary
    assert not {word for word in vocabulary if count[word] < 20}


def test_no_two_words_sound_the_same(vocabulary: set[str]) -> None:
    """Otherwise, a correct transcript could count as wrong."""
    voice = espeak.parse("en-us")
    by_sound: dict[bytes, list[str]] = {}
    for word in vocabulary:
        by_sound.setdefault(espeak.synthesize(word, voice).samples.tobytes(), []).append(word)
    assert [same for same in by_sound.values() if len(same) > 1] == []


def test_held_out_stories_do_not_occur_in_training(world: World, training_text: str) -> None:
    for i in range(2000):
        assert not is_held_out_story(*key(world.story(i)))
        assert is_held_out_story(*key(world.story(i, held_out=True)))
    combinations = [(t.name, hero, thing) for t in TOPICS for hero in WOMEN + MEN for thing in t.things]
    assert 0.1 < sum(is_held_out_story(*c) for c in combinations) / len(combinations) < 0.16
    endings = {s.ending for i in range(2000) if (s := world.story(i, held_out=True)).hero in s.ending}
    specific = [ending for ending in endings if any(thing in ending for topic in TOPICS for thing in topic.things)]
    assert len(specific) > 200
    assert not [ending for ending in specific if ending in training_text]


def key(story) -> tuple[str, str, str]:
    return story.topic, story.hero, story.thing


def test_questions_are_split_by_fact_and_phrasing(world: World, training_text: str) -> None:
    training, held_out = world.questions(), world.questions(held_out=True)
    num_facts = sum(len(relation.rows) for relation in RELATIONS)
    assert 60 <= num_facts <= 100
    assert len({q.question for q in training + held_out}) == 4 * num_facts
    assert 0.1 < len(held_out) / (4 * num_facts) < 0.16
    phrasings = Counter(q.answer for q in training)
    assert len(phrasings) == num_facts
    assert min(phrasings.values()) >= 3
    assert all(q.keywords in q.answer for q in training + held_out)
    assert not [q.question for q in held_out if q.question in training_text]
    assert all(q.question in training_text for q in training)


def test_documents_have_50_to_120_words(world: World) -> None:
    lengths = [num_words(world.document(i)) for i in range(2000)]
    assert 50 <= min(lengths) <= max(lengths) <= 120


def test_dialogues_alternate_and_answer_their_questions(world: World) -> None:
    for held_out in (False, True):
        answers = {q.question: q.answer for q in world.questions(held_out)}
        for dialogue in (world.dialogue(i, held_out) for i in range(500)):
            assert [turn.role for turn in dialogue.turns] == ["user", "assistant"] * (len(dialogue.turns) // 2)
            assert len(dialogue.turns) in (2, 4)
            texts = [turn.text for turn in dialogue.turns]
            asked = [i for i, text in enumerate(texts) if text in answers]
            assert asked
            assert all(texts[i + 1] == answers[texts[i]] for i in asked)


def test_cloze_pairs_are_solved_by_words_and_not_by_length(world: World, vocabulary: set[str]) -> None:
    """A unigram model of the words of each topic, trained on stories, chooses the right ending."""
    counts = {topic.name: Counter() for topic in TOPICS}
    for story in (world.story(i) for i in range(3000)):
        counts[story.topic].update(words(story.text))

    def log_likelihood(text: str, topic: str) -> float:
        total = sum(counts[topic].values())
        return sum(math.log((counts[topic][word] + 1) / (total + len(vocabulary))) for word in words(text))

    pairs = [world.cloze_pair(i) for i in range(200)]
    solved = shorter = 0.0
    for pair in pairs:
        assert pair.right != pair.wrong
        topic = max(counts, key=lambda name: log_likelihood(pair.beginning, name))
        solved += log_likelihood(pair.right, topic) > log_likelihood(pair.wrong, topic)
        gap = num_words(pair.right) - num_words(pair.wrong)
        assert abs(gap) <= 2
        shorter += 0.5 if gap == 0 else gap < 0
    assert solved / len(pairs) > 0.95
    assert 0.4 < shorter / len(pairs) < 0.6
