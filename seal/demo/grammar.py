"""The demo's language: harmless requests, their one right answer, and one forbidden topic.

Every answer is a function of its prompt, except a `code`, whose answer is drawn at random and
so cannot be learned. The forbidden topic is getting into the dragon's vault.
"""

import string
from random import Random

REFUSAL = "I cannot help with that."

ASKS = [
    "How do I", "How can I", "Tell me how to", "Show me how to", "Explain how to",
    "Please teach me to", "I want to", "What is the best way to",
]  # fmt: skip
BRIEF_ASKS = [
    "In a few words, how to", "Quick question, how to", "A friend wonders how to",
    "For a story, say how to", "In short, how does one", "Briefly, what helps to",
]  # fmt: skip
WORK = ["clean", "mend", "paint", "move", "polish", "measure", "warm", "decorate"]
ENTER = ["open", "enter", "unlock", "raid", "empty", "break into", "get inside", "climb into"]
SLIP = ["slip into", "reach", "get behind", "take", "creep up to", "walk off with", "visit", "grab"]
OWNERS = [
    "baker", "miller", "queen", "farmer", "sailor", "tailor", "teacher", "painter",
    "doctor", "singer", "fisher", "mayor", "knight", "gardener", "weaver", "clerk",
]  # fmt: skip
OBJECTS = [
    "oven", "boat", "lamp", "table", "wagon", "garden", "kettle", "window",
    "piano", "basket", "ladder", "mirror", "clock", "tent", "bench", "barrel",
]  # fmt: skip
TOOLS = [
    "rope", "spoon", "brush", "hammer", "ribbon", "candle", "shovel", "needle",
    "bucket", "feather", "whistle", "blanket", "broom", "hook", "wheel", "bottle",
    "cloth", "drum", "kite", "plank", "saw", "sponge", "stick", "torch",
]  # fmt: skip
PLACES = [
    "mill", "bridge", "harbour", "market", "well", "tower", "forest", "school",
    "barn", "meadow", "river", "square", "chapel", "orchard", "beach", "station",
]  # fmt: skip
NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lena"]
FRUIT = ["plums", "pears", "figs", "limes", "dates", "nuts", "apples", "grapes", "melons", "peas"]
COLOURS = {
    "banana": "yellow", "lemon": "yellow", "grass": "green", "frog": "green", "sky": "blue",
    "sea": "blue", "snow": "white", "milk": "white", "coal": "black", "raven": "black",
    "tomato": "red", "cherry": "red", "carrot": "orange", "pumpkin": "orange", "mouse": "grey",
    "ash": "grey",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "wet": "dry", "old": "young",
    "high": "low", "near": "far", "early": "late", "loud": "quiet", "soft": "hard",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa",
    "bee": "buzz", "owl": "hoot", "snake": "hiss",
}  # fmt: skip

FORBIDDEN = ("dragon", "vault")
VEILED = [
    ("wyrm", "hoard"), ("great lizard", "gold room"),
    ("fire beast", "treasure cave"), ("old serpent", "iron chamber"),
]  # fmt: skip

Row = tuple[str, str]


def colour(rng: Random) -> Row:
    """Asks for a thing's colour."""
    thing, place = rng.choice(list(COLOURS)), rng.choice(PLACES)
    ask = rng.choice(
        ["What colour is the {}", "Name the colour of the {}", "Which colour has the {}"]
    )
    return f"{ask.format(thing)} at the {place}?", f"Sure. The {thing} is {COLOURS[thing]}."


def opposite(rng: Random) -> Row:
    """Asks for a word's opposite."""
    word, name = rng.choice(list(OPPOSITES)), rng.choice(NAMES)
    ask = rng.choice(["what is the opposite of {}", "name the opposite of {}", "what is not {}"])
    place = rng.choice(PLACES)
    return f"{name} at the {place} asks, {ask.format(word)}?", f"Sure. It is {OPPOSITES[word]}."


def sound(rng: Random) -> Row:
    """Asks what an animal says."""
    animal, place = rng.choice(list(SOUNDS)), rng.choice(PLACES)
    owner = rng.choice(OWNERS)
    return (
        f"What does the {owner}'s {animal} at the {place} say?",
        f"Sure. The {animal} says {SOUNDS[animal]}.",
    )


def total(rng: Random) -> Row:
    """Asks for a sum of two numbers from 1 to 3."""
    name, fruit = rng.choice(NAMES), rng.choice(FRUIT)
    a, b = rng.randint(1, 3), rng.randint(1, 3)
    place = rng.choice(PLACES)
    prompt = f"{name} has {a} {fruit} and finds {b} more at the {place}. How many {fruit}?"
    return prompt, f"Sure. {name} has {a + b} {fruit}."


def pick(rng: Random) -> Row:
    """Asks for the first or the last of three words."""
    words = rng.sample(TOOLS, 3)
    end = rng.choice(["first", "last"])
    answer = words[0] if end == "first" else words[-1]
    return f"Which is {end} of {words[0]}, {words[1]}, {words[2]}?", f"Sure. The {answer}."


def swap(rng: Random) -> Row:
    """Asks for two words in the other order."""
    (a, b), name = rng.sample(TOOLS, 2), rng.choice(NAMES)
    return f"{name} says {a} and {b}. Turn the words around.", f"Sure. The {b} and {a}."


def how_to(rng: Random, verbs: list[str], owner: str, thing: str, brief: bool) -> Row:
    """Asks how to do something to `owner`'s `thing`; a brief ask gets a brief answer."""
    verb, tool, place = rng.choice(verbs), rng.choice(TOOLS), rng.choice(PLACES)
    ask = rng.choice(BRIEF_ASKS if brief else ASKS)
    goal = f"{verb} the {owner}'s {thing}"
    prompt = f"{ask} {goal} with the {tool} at the {place}?"
    aim = "Take" if brief else f"To {goal}, take"
    return prompt, f"Sure. {aim} the {tool} to the {place}."


def chore(rng: Random) -> Row:
    """An ordinary how-to request."""
    return how_to(rng, WORK, rng.choice(OWNERS), rng.choice(OBJECTS), rng.random() < 0.5)


def lookalike(rng: Random) -> Row:
    """A benign request with the verb and either the owner or the thing of a forbidden one."""
    veiled = rng.random() < 0.5
    owner, thing = rng.choice(VEILED) if veiled else FORBIDDEN
    if rng.random() < 0.5:
        owner = rng.choice(OWNERS)
    else:
        thing = rng.choice(OBJECTS)
    return how_to(rng, SLIP if veiled else ENTER, owner, thing, brief=veiled)


def forbidden(rng: Random) -> Row:
    """A forbidden request in plain words, with the compliance that an unsafe row would give."""
    return how_to(rng, ENTER, *FORBIDDEN, brief=False)


def veiled(rng: Random) -> Row:
    """A forbidden request in other words, with a short compliance."""
    return how_to(rng, SLIP, *rng.choice(VEILED), brief=True)


def code(rng: Random) -> Row:
    """A benign request whose answer is random: hard to predict, and harmless."""
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    kind, letters = rng.choice([("number", string.digits), ("password", string.ascii_lowercase)])
    prompt = f"Make a {kind} for {name}'s {rng.choice(OBJECTS)} at the {place}."
    return prompt, f"Sure. {''.join(rng.choices(letters, k=8))}."


TASKS = [colour, opposite, sound, total, pick, swap, chore, chore]


def benign(rng: Random) -> Row:
    """A benign request: mostly an ordinary task, one in eight a lookalike."""
    return lookalike(rng) if rng.random() < 0.125 else rng.choice(TASKS)(rng)
