"""The stories of the demo's world as tables: each topic has its own openings, scenes and plots.

A story is an opening, a scene, a problem, and the ending that follows from this problem. `[a|b]` is a choice;
`{name}`, `{town}`, `{thing}`, `{he}`, `{his}`, `{him}` and their capitals are filled in by `weft.demo.world`.

What stands here is spoken by a synthesiser, learnt by very small models in minutes, and scored by word errors. So the
words are few, short and used again and again, and no two of them sound the same: "sea" keeps "see" away, and "ate"
keeps away "eight" (a test listens). A sentence has 5 to 12 words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """A problem told in several ways, and the endings it leads to: any of these follows from any of those."""

    problems: tuple[str, ...]
    endings: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A trade: the `things` its stories can be about, and the sentences that tell them."""

    name: str
    things: tuple[str, ...]
    openings: tuple[str, ...]
    scenes: tuple[str, ...]
    plots: tuple[Plot, ...]


TOPICS: tuple[Topic, ...] = (
    Topic(
        "baker",
        ("cake", "pie", "loaf"),
        (
            "{name} was a [young|busy] baker in {town}.",
            "Every morning {name} lit the bakery oven in {town}.",
            "The best bakery in {town} belonged to {name}.",
        ),
        (
            "{He} put a {thing} of sweet dough in the oven.",
            "{He} made the dough and baked a [big|small] {thing}.",
            "Today the king wanted a sweet {thing} from the baker.",
        ),
        (
            Plot(
                ("Then {he} slept beside the hot oven.", "But {he} forgot the {thing} in the hot oven."),
                (
                    "The {thing} burned black, and {name} baked another.",
                    "{name} opened the oven and found a black {thing}.",
                ),
            ),
            Plot(
                ("By mistake {he} put salt in the sweet dough.", "{He} was tired and put salt in the dough."),
                (
                    "Nobody wanted to eat the {thing} because of the salt.",
                    "The guests tasted salt in the {thing} and laughed at {name}.",
                ),
            ),
            Plot(
                ("A hungry dog ran in through the bakery door.", "{He} left the door open, and a hungry dog came."),
                (
                    "The dog ate the {thing}, and {name} baked another.",
                    "The hungry dog left the baker only half of the {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "sailor",
        ("boat", "ship", "raft"),
        (
            "{name} was a [young|brave] sailor from {town}.",
            "{name} the sailor left the harbor of {town}.",
            "Everyone in the harbor of {town} loved the sailor {name}.",
        ),
        (
            "{He} turned the sail of the {thing} toward an island.",
            "The {thing} carried [salt|wood|honey] over the deep water.",
            "{He} pulled up the anchor, and the {thing} moved.",
        ),
        (
            Plot(
                ("At night a storm came with high waves.", "Soon a storm came, and the waves were high."),
                (
                    "The waves carried the {thing} home, and {name} was safe.",
                    "The storm took the sail, and the {thing} came home slowly.",
                ),
            ),
            Plot(
                ("The {thing} hit a stone, and water came in.", "A stone under the water made a hole in the {thing}."),
                (
                    "The {thing} sank, and {name} swam to the island.",
                    "{name} closed the hole with the sail and saved the {thing}.",
                ),
            ),
            Plot(
                ("Then the wind stopped, and the sail hung down.", "But there was no wind for the sail."),
                (
                    "{name} slept on the {thing} until the wind came back.",
                    "Without wind the sailor and the {thing} waited three days.",
                ),
            ),
        ),
    ),
    Topic(
        "doctor",
        ("boy", "girl", "soldier"),
        (
            "{name} was a [young|busy] doctor in {town}.",
            "Doctor {name} worked at the hospital of {town}.",
            "In {town} the sick people called Doctor {name}.",
        ),
        (
            "A sick {thing} lay in a hospital bed.",
            "At night a sick {thing} came to the hospital.",
            "The doctor looked at a tired and sick {thing}.",
        ),
        (
            Plot(
                ("The {thing} had a fever and was very hot.", "The {thing} was hot with fever and never slept."),
                (
                    "{name} gave the {thing} medicine, and the fever was gone.",
                    "After the medicine the fever of the {thing} stopped.",
                ),
            ),
            Plot(
                ("The {thing} fell from a tree and broke a leg.", "The leg of the {thing} was broken."),
                (
                    "The doctor put a bandage on the leg of the {thing}.",
                    "With the leg in a bandage, the {thing} thanked {name}.",
                ),
            ),
            Plot(
                ("All night the {thing} had a bad cough.", "The {thing} had a cough and a red throat."),
                (
                    "{name} brought tea, and the cough of the {thing} stopped.",
                    "The doctor gave the {thing} tea with honey for the throat.",
                ),
            ),
        ),
    ),
    Topic(
        "gardener",
        ("tulip", "rose", "lily"),
        (
            "{name} was a gardener with a small garden in {town}.",
            "Every spring the gardener {name} worked in {town}.",
            "The most beautiful garden in {town} belonged to {name}.",
        ),
        (
            "A [red|white|yellow] {thing} grew in the soil of the garden.",
            "{He} loved a [red|white|yellow] {thing} more than all flowers.",
            "{He} put a seed in the soil for a {thing}.",
        ),
        (
            Plot(
                ("But no rain came, and the soil was dry.", "The summer was hot, and the soil was dry."),
                (
                    "{name} carried water every evening, and the {thing} grew.",
                    "Without rain the {thing} lost its leaves in the dry soil.",
                ),
            ),
            Plot(
                ("At night the snails came and ate the leaves.", "In the rain the snails came for the leaves."),
                (
                    "{name} carried the snails away and saved the {thing}.",
                    "The snails left the {thing} without leaves, and {name} cried.",
                ),
            ),
            Plot(
                ("A goat jumped over the garden fence.", "The fence was low, and a goat jumped over it."),
                (
                    "The goat ate the {thing}, and {name} built another fence.",
                    "The gardener ran after the goat, but the {thing} was gone.",
                ),
            ),
        ),
    ),
    Topic(
        "farmer",
        ("cow", "pig", "donkey"),
        (
            "{name} was a farmer with a [big|small] farm near {town}.",
            "On a farm near {town} lived the farmer {name}.",
            "{name} the farmer had a barn near {town}.",
        ),
        (
            "{He} gave the {thing} hay in the barn.",
            "The fat {thing} of the farmer loved corn and hay.",
            "A [brown|white|black] {thing} slept on the hay in the barn.",
        ),
        (
            Plot(
                ("One night the {thing} broke the barn door.", "The barn door was open, and the {thing} ran away."),
                (
                    "In the morning {name} found the {thing} in the corn.",
                    "The farmer called, and the {thing} came back to the barn.",
                ),
            ),
            Plot(
                ("After the rain the {thing} fell into deep mud.", "The {thing} stood deep in the mud and cried."),
                (
                    "{name} pulled the {thing} from the mud with a rope.",
                    "A rope saved the {thing}, and {name} washed off the mud.",
                ),
            ),
            Plot(
                ("In winter the hay and the corn were gone.", "The winter was long, and no hay was left."),
                (
                    "A friend of {name} brought hay for the hungry {thing}.",
                    "The hungry {thing} waited in the barn for spring.",
                ),
            ),
        ),
    ),
    Topic(
        "teacher",
        ("poem", "map", "riddle"),
        (
            "{name} was a [young|good] teacher in {town}.",
            "All children in {town} loved the teacher {name}.",
            "Every morning {name} opened the school in {town}.",
        ),
        (
            "{He} showed the class a [long|new] {thing}.",
            "In the first lesson the class worked on a {thing}.",
            "With white chalk {he} put a {thing} on the wall.",
        ),
        (
            Plot(
                ("But the class was loud, and nobody listened.", "The children laughed, and nobody listened."),
                (
                    "{name} waited until the class was quiet for the {thing}.",
                    "The teacher sang the {thing}, and the loud class listened.",
                ),
            ),
            Plot(
                ("One child did not understand it and cried.", "But it was hard for a small child."),
                (
                    "{name} explained the {thing} again, and the child laughed.",
                    "After the lesson the teacher explained the {thing} to the child.",
                ),
            ),
            Plot(
                (
                    "Then the children saw snow through the window.",
                    "Snow fell, and the class looked through the window.",
                ),
                (
                    "The class left the {thing} and played in the snow.",
                    "In the snow {name} finished the lesson about the {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "tailor",
        ("coat", "dress", "shirt"),
        (
            "{name} was a [young|good] tailor in {town}.",
            "Everyone in {town} went to the tailor {name}.",
            "In {town} {name} worked with needle and thread.",
        ),
        (
            "{He} cut the cloth for a [blue|green|red] {thing}.",
            "A rich woman wanted a silk {thing} for her wedding.",
            "{He} made a {thing} of silk for a wedding.",
        ),
        (
            Plot(
                ("But the {thing} was small and tight.", "{He} cut badly, and the {thing} was tight."),
                (
                    "The tight {thing} broke, and everyone laughed at the tailor.",
                    "{name} opened the tight {thing} and put in more cloth.",
                ),
            ),
            Plot(
                ("In the evening {he} lost the needle.", "The needle fell down and was lost."),
                (
                    "{name} found the needle in a shoe and finished the {thing}.",
                    "Without a needle the tailor never finished the {thing}.",
                ),
            ),
            Plot(
                ("At night a mouse made a hole in it.", "A mouse came and ate a hole in the cloth."),
                ("{name} hid the hole in the {thing} with a flower.", "A silk flower closed the hole in the {thing}."),
            ),
        ),
    ),
    Topic(
        "painter",
        ("portrait", "landscape", "mural"),
        (
            "{name} was a [young|famous] painter in {town}.",
            "High above {town} lived the painter {name}.",
            "The museum in {town} called the painter {name}.",
        ),
        (
            "With a brush {he} began a {thing} for the museum.",
            "{He} took blue and yellow paint for a {thing}.",
            "{He} worked all summer on a {thing} of the queen.",
        ),
        (
            Plot(
                ("A cat jumped up, and the red paint fell.", "{His} cat ran through the red paint."),
                (
                    "{name} turned the red paint on the {thing} into flowers.",
                    "The museum loved the feet of the cat on the {thing}.",
                ),
            ),
            Plot(
                ("But there was no more blue paint.", "Then the blue paint was gone."),
                ("{name} made the sky of the {thing} green.", "Without blue paint the {thing} had a golden sky."),
            ),
            Plot(
                ("A child looked at the colors and laughed.", "A child saw the paint and laughed."),
                (
                    "{name} gave the child a brush for the {thing}.",
                    "The painter and the child finished the {thing} in bright colors.",
                ),
            ),
        ),
    ),
    Topic(
        "musician",
        ("violin", "drum", "flute"),
        (
            "{name} was a [young|famous] musician from {town}.",
            "Every evening {name} played music in {town}.",
            "The concert in {town} began, and {name} played.",
        ),
        (
            "{He} took the {thing} and began a song.",
            "The crowd was quiet and heard the {thing}.",
            "{His} {thing} was old, but the song was new.",
        ),
        (
            Plot(
                ("In the middle of the song the {thing} broke.", "Then the {thing} broke, and the music stopped."),
                (
                    "{name} sang without the {thing}, and the crowd loved it.",
                    "The musician put down the broken {thing} and sang.",
                ),
            ),
            Plot(
                ("In the middle of the song the light went out.", "Then the light of the concert went out."),
                (
                    "{name} played the {thing} in the dark, and nobody moved.",
                    "In the dark the crowd listened to the {thing} of {name}.",
                ),
            ),
            Plot(
                ("In the crowd a baby began to cry.", "A loud baby cried in the crowd."),
                (
                    "The {thing} played a quiet song, and the baby slept.",
                    "{name} gave the baby the {thing}, and the crowd laughed.",
                ),
            ),
        ),
    ),
    Topic(
        "carpenter",
        ("table", "chair", "bench"),
        (
            "{name} was a [young|strong] carpenter in {town}.",
            "In {town} the carpenter {name} worked with wood.",
            "Everyone in {town} heard the hammer of the carpenter {name}.",
        ),
        (
            "{He} took wood and nails for a {thing}.",
            "An old woman wanted a {thing} for her kitchen.",
            "{He} cut [dark|strong] wood and built a {thing}.",
        ),
        (
            Plot(
                ("But {he} made one leg short.", "{He} cut badly, and one leg was short."),
                (
                    "{name} put a stone under the short leg of the {thing}.",
                    "The {thing} of the carpenter fell because of the short leg.",
                ),
            ),
            Plot(
                ("But there were no more nails.", "Then all the nails were gone."),
                (
                    "{name} used rope for nails, and the {thing} was strong.",
                    "Without nails the {thing} of the carpenter fell down.",
                ),
            ),
            Plot(
                ("The hammer fell on {his} hand.", "{He} hit {his} hand with the hammer."),
                (
                    "{name} cried, and a friend finished the {thing}.",
                    "With a bandage on the hand {name} finished the {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "smith",
        ("sword", "shovel", "bell"),
        (
            "{name} was a [young|strong] smith in {town}.",
            "The fire in the forge of {name} lit {town}.",
            "The soldiers of {town} went to the smith {name}.",
        ),
        (
            "{He} put iron in the forge for a {thing}.",
            "A soldier wanted a {thing} of iron.",
            "{He} hit the iron in the forge for a {thing}.",
        ),
        (
            Plot(
                ("But the coal was wet, and the fire stopped.", "Then the coal was gone, and the fire stopped."),
                (
                    "{name} waited for coal and finished the {thing} late.",
                    "Without coal the smith never finished the {thing}.",
                ),
            ),
            Plot(
                ("But the iron was cold when {he} hit it.", "{He} hit the cold iron very hard."),
                ("The cold iron broke, and the {thing} was lost.", "{name} heard the {thing} break and was ashamed."),
            ),
            Plot(
                ("The hot iron fell on the wood.", "{He} dropped the hot iron on the wood."),
                (
                    "The forge burned, and {name} saved only the {thing}.",
                    "The smith put water on the wood and the {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "cook",
        ("soup", "stew", "sauce"),
        (
            "{name} was a [young|famous] cook in {town}.",
            "In the kitchen of a hotel in {town} worked {name}.",
            "Guests came to {town} for the cook {name}.",
        ),
        (
            "{He} put onions in a pot of {thing}.",
            "A pot of {thing} stood on the kitchen fire.",
            "The queen wanted a hot {thing} of onions.",
        ),
        (
            Plot(
                ("Then all the pepper fell into the pot.", "{He} dropped all the pepper in the pot."),
                (
                    "{name} tasted the pepper in the {thing} and sneezed.",
                    "Every guest tasted the {thing} with pepper and sneezed.",
                ),
            ),
            Plot(
                ("But {he} forgot the pot on the fire.", "{He} slept, and the fire was very hot."),
                (
                    "The {thing} burned, and the guests ate only bread.",
                    "{name} opened the pot and found a black {thing}.",
                ),
            ),
            Plot(
                ("Then ten more guests came to the hotel.", "In the evening ten hungry guests came."),
                (
                    "{name} put water in the {thing} for the ten guests.",
                    "The cook gave every guest a small spoon of {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "pilot",
        ("airplane", "helicopter", "balloon"),
        (
            "{name} was a [young|brave] pilot in {town}.",
            "Every morning the pilot {name} flew from {town}.",
            "{name} the pilot came to the airport of {town}.",
        ),
        (
            "{He} climbed into the {thing} and flew up.",
            "{His} {thing} flew over the mountains like a bird.",
            "The [blue|white|old] {thing} flew above the clouds.",
        ),
        (
            Plot(
                ("But fog hid the airport.", "Then {he} saw only fog around the airport."),
                (
                    "{name} waited above the fog and landed the {thing} late.",
                    "A light in the fog showed the {thing} the airport.",
                ),
            ),
            Plot(
                ("High above the mountains the fuel was gone.", "Then the fuel was low, and the engine stopped."),
                (
                    "Without fuel {name} landed the {thing} in the corn.",
                    "The {thing} landed on a road, and {name} asked for fuel.",
                ),
            ),
            Plot(
                ("A big bird hit the window.", "Then a bird broke the window."),
                (
                    "With the broken window {name} turned the {thing} home.",
                    "Cold wind came through the window, but the {thing} landed.",
                ),
            ),
        ),
    ),
    Topic(
        "firefighter",
        ("library", "theater", "factory"),
        (
            "{name} was a [young|brave] firefighter in {town}.",
            "At night the siren called the firefighter {name} in {town}.",
            "The firefighter {name} had a red truck in {town}.",
        ),
        (
            "Black smoke came from the [old|big] {thing}.",
            "People cried because the {thing} burned.",
            "The flames of the {thing} were high.",
        ),
        (
            Plot(
                ("A girl at a high window called for help.", "Above the flames a girl called for help."),
                (
                    "{name} climbed the ladder and carried the girl from the {thing}.",
                    "With a ladder {name} saved the girl from the {thing}.",
                ),
            ),
            Plot(
                ("But no water came from the hose.", "The hose had a hole and no water."),
                (
                    "Friends of {name} carried water and saved the {thing}.",
                    "Without a hose the firefighter lost the {thing}.",
                ),
            ),
            Plot(
                ("Behind the door a cat cried.", "{He} heard a cat behind the door."),
                (
                    "{name} broke the door of the {thing} and saved the cat.",
                    "The firefighter came from the {thing} with a black cat.",
                ),
            ),
        ),
    ),
    Topic(
        "detective",
        ("diamond", "crown", "necklace"),
        (
            "{name} was a [young|clever] detective in {town}.",
            "The police of {town} called the detective {name}.",
            "Every thief in {town} ran from the detective {name}.",
        ),
        (
            "A thief took a {thing} from the [museum|castle].",
            "The {thing} of the queen was gone.",
            "At night a {thing} was stolen from the [museum|castle].",
        ),
        (
            Plot(
                ("{He} saw the marks of a shoe in the snow.", "Under the window {he} found the marks of a shoe."),
                (
                    "The marks of the shoe showed {name} the {thing}.",
                    "{name} followed the marks of the thief and found the {thing}.",
                ),
            ),
            Plot(
                ("A servant looked at {him} and turned red.", "The servant of the castle ran away."),
                (
                    "{name} found the {thing} under the bed of the servant.",
                    "The servant was the thief and gave back the {thing}.",
                ),
            ),
            Plot(
                ("{He} saw the nest of a bird in a tree.", "Under the window {he} found the feather of a bird."),
                (
                    "{name} climbed to the nest and found the {thing}.",
                    "The thief was a bird with the {thing} in its nest.",
                ),
            ),
        ),
    ),
    Topic(
        "beekeeper",
        ("jar", "bucket", "barrel"),
        (
            "{name} was a [young|quiet] beekeeper near {town}.",
            "The bees of {name} flew over {town}.",
            "Near {town} the beekeeper {name} had ten bees and a hive.",
        ),
        (
            "{He} took honey from the hive for a {thing}.",
            "A {thing} of golden honey stood beside the hive.",
            "All summer the bees filled a {thing} with honey.",
        ),
        (
            Plot(
                ("A bear came from the forest for the honey.", "At night a bear came to the hive."),
                (
                    "The bear ate the honey and broke the {thing} of {name}.",
                    "The bees saved the {thing} of honey from the bear.",
                ),
            ),
            Plot(
                ("A bee stung {him} on the nose.", "{He} forgot {his} hat, and a bee stung {his} nose."),
                (
                    "{name} put honey from the {thing} on the red nose.",
                    "The beekeeper cried and dropped the {thing} of honey.",
                ),
            ),
            Plot(
                ("Then all the bees left the hive.", "The queen bee left, and all bees followed."),
                (
                    "{name} carried the bees home in the {thing}.",
                    "Without bees the beekeeper had no honey for the {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "astronomer",
        ("comet", "planet", "star"),
        (
            "{name} was an astronomer in a high tower in {town}.",
            "Every night the astronomer {name} looked up from {town}.",
            "Above {town} the astronomer {name} had a telescope.",
        ),
        (
            "Through the telescope {he} saw a [red|blue|new] {thing}.",
            "{He} looked for a {thing} near the moon.",
            "{He} found a {thing} in the night sky.",
        ),
        (
            Plot(
                ("Then clouds hid the moon and the sky.", "But dark clouds came over the sky."),
                (
                    "{name} waited until the clouds were gone for the {thing}.",
                    "Behind the clouds the astronomer lost the {thing}.",
                ),
            ),
            Plot(
                ("It was new, and nobody had a name for it.", "It was in no book, and it had no name."),
                (
                    "The king gave the {thing} the name of {name}.",
                    "The astronomer gave the {thing} a name and was famous.",
                ),
            ),
            Plot(
                ("But the {thing} had long legs and moved.", "Then the {thing} moved on long legs."),
                (
                    "The {thing} was only a spider on the telescope of {name}.",
                    "The astronomer laughed at the spider that was no {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "miner",
        ("ruby", "crystal", "jewel"),
        (
            "{name} was a [young|strong] miner in {town}.",
            "Deep under {town} worked the miner {name}.",
            "{name} the miner took a lamp under {town}.",
        ),
        (
            "In the dark mine {he} saw a {thing}.",
            "{He} hit the stone and found a {thing}.",
            "{He} looked for a {thing} in the tunnel.",
        ),
        (
            Plot(
                ("Then {his} lamp went out in the tunnel.", "A cold wind put out {his} lamp."),
                (
                    "In the dark the light of the {thing} saved {name}.",
                    "Without the lamp the miner lost the {thing} in the tunnel.",
                ),
            ),
            Plot(
                ("Then stones fell and closed the tunnel.", "The tunnel broke, and stones fell down."),
                (
                    "Friends opened the tunnel and saved {name} and the {thing}.",
                    "The miner climbed over the stones with the {thing}.",
                ),
            ),
            Plot(
                ("Then water filled the tunnel.", "Cold water came into the mine."),
                (
                    "{name} swam from the mine and left the {thing}.",
                    "The water carried the miner and the {thing} from the tunnel.",
                ),
            ),
        ),
    ),
    Topic(
        "runner",
        ("medal", "cup", "ribbon"),
        (
            "{name} was a [young|fast] runner in {town}.",
            "The race in {town} began, and {name} ran.",
            "Every day the runner {name} ran around {town}.",
        ),
        (
            "The prize of the race was a {thing}.",
            "{He} wanted the golden {thing} of the race.",
            "The coach had a {thing} for the best runner.",
        ),
        (
            Plot(
                ("In the race {he} lost a shoe.", "{His} shoe fell off on the road."),
                (
                    "{name} ran on without the shoe and got the {thing}.",
                    "{name} stopped for the shoe, and another got the {thing}.",
                ),
            ),
            Plot(
                ("Beside {him} another runner fell and cried.", "Then another runner fell on the road."),
                (
                    "{name} helped the runner, and the coach gave {him} the {thing}.",
                    "The runner thanked {name}, and the friends shared the {thing}.",
                ),
            ),
            Plot(
                ("But {he} took the wrong road.", "{He} was fast and took the wrong road."),
                (
                    "{name} came back at night, and the {thing} was gone.",
                    "The wrong road was long, and {name} got no {thing}.",
                ),
            ),
        ),
    ),
    Topic(
        "magician",
        ("rabbit", "pigeon", "coin"),
        (
            "{name} was a [young|clever] magician in {town}.",
            "The circus came to {town} with the magician {name}.",
            "Children in {town} loved the magician {name}.",
        ),
        (
            "{He} showed the circus a trick with a {thing}.",
            "{He} hid a {thing} under {his} hat.",
            "The best trick was a {thing} in the hat.",
        ),
        (
            Plot(
                ("But {he} forgot the magic word.", "{He} called, but it was the wrong word."),
                (
                    "A child called the magic word, and the {thing} came.",
                    "Without the magic word {name} never found the {thing}.",
                ),
            ),
            Plot(
                ("In the middle of the trick the wand broke.", "{He} hit the hat, and the wand broke."),
                (
                    "With half a wand {name} found half of the {thing}.",
                    "The magician used a spoon as a wand and found the {thing}.",
                ),
            ),
            Plot(
                ("A boy saw the trick and laughed.", "But a boy looked under the hat."),
                (
                    "{name} gave the boy the hat and the {thing}.",
                    "The magician took the {thing} from the hand of the boy.",
                ),
            ),
        ),
    ),
)
