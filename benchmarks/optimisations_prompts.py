"""What the optimisation benchmark asks: four kinds of prompts, each made to show what one optimisation is for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

Kind = Literal["stories", "shared beginning", "long", "mixed", "copy"]

ANIMALS = ["fox", "otter", "heron", "lynx", "badger", "raven", "salmon", "hedgehog", "tortoise", "falcon"]
PLACES = ["harbour", "desert", "library", "lighthouse", "orchard", "glacier", "market", "monastery", "railway"]
THINGS = ["compass", "violin", "lantern", "map", "clock", "kite", "telescope", "locket", "ledger", "mirror"]
VERBS = ["found", "carried", "painted", "repaired", "borrowed", "buried", "praised", "forgot", "sold", "guarded"]

# In sentences of `_sentence`, of about 17 tokens each.
LONG_SENTENCES = 90
SHARED_SENTENCES = 60
COPIED_SENTENCES = 6
# Of the mixed prompts every so many-th is a long one.
ONE_LONG_IN = 4


def prompts(kind: Kind, chance: random.Random, count: int) -> list[str]:
    """`count` prompts that differ from their first word on, but for what the kind wants them to share."""
    return _MAKERS[kind](chance, count)


def _stories(chance: random.Random, count: int) -> list[str]:
    return [
        f"{chance.choice(ANIMALS).title()} number {chance.randrange(10**6)}: write a very long and detailed story "
        f"about a {chance.choice(ANIMALS)}, a {chance.choice(THINGS)} and a {chance.choice(PLACES)}. Do not end soon."
        for _ in range(count)
    ]


def _shared_beginning(chance: random.Random, count: int) -> list[str]:
    beginning = _chronicle(chance, SHARED_SENTENCES)
    return [f"{beginning}\n\nTell more about sentence {1 + number}." for number in range(count)]


def _long(chance: random.Random, count: int) -> list[str]:
    return [f"{_chronicle(chance, LONG_SENTENCES)}\n\nContinue this chronicle." for _ in range(count)]


def _mixed(chance: random.Random, count: int) -> list[str]:
    short, long = _stories(chance, count), _long(chance, -(-count // ONE_LONG_IN))
    return [long.pop() if number % ONE_LONG_IN == ONE_LONG_IN - 1 else short[number] for number in range(count)]


def _copy(chance: random.Random, count: int) -> list[str]:
    return [f"Repeat this text word for word:\n\n{_chronicle(chance, COPIED_SENTENCES)}" for _ in range(count)]


def _chronicle(chance: random.Random, sentences: int) -> str:
    return " ".join(_sentence(chance) for _ in range(sentences))


def _sentence(chance: random.Random) -> str:
    return (
        f"In {chance.randrange(1200, 1900)} the {chance.choice(ANIMALS)} {chance.choice(VERBS)} "
        f"a {chance.choice(THINGS)} near the {chance.choice(PLACES)}."
    )


_MAKERS: dict[Kind, Callable[[random.Random, int], list[str]]] = {
    "stories": _stories,
    "shared beginning": _shared_beginning,
    "long": _long,
    "mixed": _mixed,
    "copy": _copy,
}
