"""The names, places and facts of the demo's world, and the small talk of its dialogues, as tables.

A relation is a table of (subject, object) rows with one statement and four ways to ask. The facts belong to the
world, not to a seed: every corpus made from this package tells the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

WOMEN = ("Anna", "Olga", "Julia", "Clara", "Sophie", "Ingrid", "Nadia", "Bridget", "Helen", "Monica")
MEN = ("Peter", "Marcus", "Victor", "Hugo", "David", "Oscar", "Felix", "Thomas", "Samuel", "Leo")
TOWNS = (
    "Ashford",
    "Bexley",
    "Carmel",
    "Clifton",
    "Harlow",
    "Milton",
    "Oakdale",
    "Quincy",
    "Redfield",
    "Salem",
    "Verona",
    "Winslow",
)


@dataclass(frozen=True)
class Relation:
    """Facts of one kind. `{s}` and `{o}` stand for a row's subject and object, `{S}` and `{O}` at a sentence's start.

    A question comes with the half of the row that it asks for: "o", or "s" where it is turned around.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    statement: str
    questions: tuple[tuple[str, str], ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        (
            ("Norland", "Ashford"),
            ("Arden", "Salem"),
            ("Belmont", "Quincy"),
            ("Tasman", "Verona"),
            ("Galway", "Milton"),
            ("Cordova", "Harlow"),
        ),
        "The capital of {s} is {o}.",
        (
            ("What is the capital of {s}?", "o"),
            ("Which town is the capital of {s}?", "o"),
            ("Tell me the capital of {s}.", "o"),
            ("{O} is the capital of which land?", "s"),
        ),
    ),
    Relation(
        "ruler",
        (
            ("Norland", "Queen Helen"),
            ("Arden", "King Oscar"),
            ("Belmont", "Queen Ingrid"),
            ("Tasman", "King Victor"),
            ("Galway", "Queen Clara"),
            ("Cordova", "King Hugo"),
        ),
        "{O} rules the land of {s}.",
        (
            ("Who rules {s}?", "o"),
            ("Who rules the land of {s}?", "o"),
            ("Tell me who rules {s}.", "o"),
            ("{O} rules which land?", "s"),
        ),
    ),
    Relation(
        "famous",
        (
            ("Ashford", "cheese"),
            ("Bexley", "glass"),
            ("Carmel", "flowers"),
            ("Clifton", "gold"),
            ("Harlow", "honey"),
            ("Milton", "music"),
            ("Oakdale", "wood"),
            ("Quincy", "silk"),
            ("Redfield", "horses"),
            ("Salem", "salt"),
            ("Verona", "tea"),
            ("Winslow", "bread"),
        ),
        "The town of {s} is famous for {o}.",
        (
            ("What is {s} famous for?", "o"),
            ("What is the town of {s} famous for?", "o"),
            ("Tell me what {s} is famous for.", "o"),
            ("Which town is famous for {o}?", "s"),
        ),
    ),
    Relation(
        "makes",
        (
            ("a baker", "bread"),
            ("a tailor", "a coat"),
            ("a carpenter", "a table"),
            ("a smith", "a sword"),
            ("a cook", "soup"),
            ("a painter", "a portrait"),
            ("a bee", "honey"),
            ("a spider", "silk"),
        ),
        "{S} makes {o}.",
        (
            ("What does {s} make?", "o"),
            ("What does {s} make every day?", "o"),
            ("Tell me what {s} makes.", "o"),
            ("Who makes {o}?", "s"),
        ),
    ),
    Relation(
        "works",
        (
            ("a baker", "a bakery"),
            ("a sailor", "a ship"),
            ("a doctor", "a hospital"),
            ("a gardener", "a garden"),
            ("a farmer", "a farm"),
            ("a teacher", "a school"),
            ("a musician", "a theater"),
            ("a smith", "a forge"),
            ("a cook", "a kitchen"),
            ("a miner", "a mine"),
            ("an astronomer", "a tower"),
            ("a magician", "a circus"),
        ),
        "{S} works in {o}.",
        (
            ("Where does {s} work?", "o"),
            ("Where does {s} work every day?", "o"),
            ("Tell me where {s} works.", "o"),
            ("Who works in {o}?", "s"),
        ),
    ),
    Relation(
        "needs",
        (
            ("a tailor", "a needle"),
            ("a carpenter", "a hammer"),
            ("a painter", "a brush"),
            ("a gardener", "rain"),
            ("a firefighter", "a ladder"),
            ("a miner", "a lamp"),
            ("a runner", "a coach"),
            ("a magician", "a wand"),
            ("a pilot", "fuel"),
            ("a sailor", "wind"),
            ("an astronomer", "a telescope"),
            ("a teacher", "chalk"),
            ("a smith", "coal"),
            ("a cook", "a pot"),
        ),
        "{S} needs {o} for the work.",
        (
            ("What does {s} need?", "o"),
            ("What does {s} need for the work?", "o"),
            ("Tell me what {s} needs.", "o"),
            ("Who needs {o}?", "s"),
        ),
    ),
    Relation(
        "eats",
        (
            ("a cow", "grass"),
            ("a donkey", "hay"),
            ("a goat", "flowers"),
            ("a snail", "leaves"),
            ("a bear", "honey"),
            ("a mouse", "cheese"),
            ("a pigeon", "corn"),
            ("a cat", "fish"),
            ("a dog", "bread"),
            ("a pig", "onions"),
        ),
        "{S} likes to eat {o}.",
        (
            ("What does {s} eat?", "o"),
            ("What does {s} like to eat?", "o"),
            ("Tell me what {s} likes to eat.", "o"),
            ("Who likes to eat {o}?", "s"),
        ),
    ),
    Relation(
        "lives",
        (
            ("a bee", "a hive"),
            ("a bird", "a nest"),
            ("a bear", "a forest"),
            ("a cow", "a barn"),
            ("a snail", "a garden"),
            ("a mouse", "a hole"),
            ("a queen", "a castle"),
            ("a spider", "a tower"),
        ),
        "{S} lives in {o}.",
        (
            ("Where does {s} live?", "o"),
            ("Tell me where {s} lives.", "o"),
            ("Can you tell me where {s} lives?", "o"),
            ("Who lives in {o}?", "s"),
        ),
    ),
    Relation(
        "color",
        (
            ("a ruby", "red"),
            ("the grass", "green"),
            ("the snow", "white"),
            ("the coal", "black"),
            ("the sky", "blue"),
            ("the corn", "yellow"),
            ("the wood", "brown"),
            ("the honey", "golden"),
        ),
        "The color of {s} is {o}.",
        (
            ("What color is {s}?", "o"),
            ("What is the color of {s}?", "o"),
            ("Tell me the color of {s}.", "o"),
            ("Can you tell me the color of {s}?", "o"),
        ),
    ),
)

GREETINGS = (
    ("Hello, how are you?", "I am well, thank you."),
    ("Good morning.", "Good morning, how can I help you?"),
    ("Good evening, can you help me?", "Good evening, I can help you."),
    ("Hello, who are you?", "Hello, I am a friend."),
)
THANKS = (
    ("Thank you.", "You are welcome."),
    ("Thank you, that was good.", "You are welcome, ask me again."),
    ("Thank you, my friend.", "I am happy to help you."),
)
