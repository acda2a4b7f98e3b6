"""What a field may hold: something that this world knows, by the field's name, or something odd, by its type.

Odd strings come from a pool of fixed size, so that what a server rightly keeps of them (people, items, decisions) has an end,
and memory that goes on growing is a leak.
"""

import math
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field

INT32, INT64 = 2**31 - 1, 2**63 - 1
_ODD_INTS = (0, 1, -1, 2, 10, 100, 101, 1_000, 1_001, 100_000, 100_001, 2**16, 2**24)
_ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-320, 3.4e38, 1e39, -1e308, 1.7e308, math.nan, math.inf, -math.inf, 0.1, 1e16)
_ODD_STRINGS = (
    *("", " ", "\0", "a\0b", "\n", "\t\r", "'", '"', "\\", "%s%n", "{0}", "../../etc/passwd", "'; DROP TABLE events; --"),
    *("null", "None", "NaN", "-1", "0", "true", "[]", "{}", "view", "text", "categories", "user_id", "item_id"),
    *("ÿ", "é" * 128, "é" * 129, "\u202eright", "\u200b", "\ufeff", "\ufffe", "🦄" * 64, "🦄" * 65, "ﷺ", "ß", "İ", "ı"),
    *("a" * 64, "a" * 65, "a" * 255, "a" * 256, "a" * 257, "a" * 8192, "a" * 8193, "Z" * 70_000, "z" * 4096 + "/"),
)
_POOL = 1_500
_NAMES = 60


@dataclass(frozen=True)
class Known:
    """What is true of the server that is fuzzed."""

    items: tuple[str, ...]
    users: tuple[str, ...]
    event_types: tuple[str, ...]
    categories: tuple[str, ...]
    attributes: tuple[str, ...]
    dim: int
    text_dim: int
    release_ids: tuple[str, ...]
    bundles: tuple[str, ...]
    services: tuple[str, ...]
    revision: str
    now_s: int


Choose = Callable[[random.Random, Known], Any]


def _item(draw: random.Random, known: Known) -> str:
    return draw.choice(known.items) if draw.random() < 0.9 else f"new-{draw.randrange(60)}"


def _number(draw: random.Random, known: Known) -> float:
    return draw.choice((draw.random(), float(draw.randrange(2_100)), 0.5))


_BY_NAME: dict[str, Choose] = {
    "item_id": _item,
    "item_ids": _item,
    "exclude_item_ids": _item,
    "liked_item_ids": _item,
    "disliked_item_ids": _item,
    "user_id": lambda draw, known: draw.choice(known.users) if draw.random() < 0.8 else f"user-{draw.randrange(20)}",
    "visitor_id": lambda draw, known: f"visitor-{draw.randrange(60)}",
    "event_id": lambda draw, known: f"event-{draw.getrandbits(8 if draw.random() < 0.2 else 48)}",
    "type": lambda draw, known: draw.choice((*known.event_types, "impression")),
    "event_types": lambda draw, known: draw.choice(known.event_types),
    "limit": lambda draw, known: draw.choice((1, 5, 10, 100, 1_000)),
    "attribute": lambda draw, known: draw.choice(known.attributes),
    "attributes": lambda draw, known: draw.choice(known.attributes),
    "profile_attribute": lambda draw, known: draw.choice(known.attributes),
    "categories": lambda draw, known: draw.choice(known.categories),
    "liked_categories": lambda draw, known: draw.choice(known.categories),
    "disliked_categories": lambda draw, known: draw.choice(known.categories),
    "strings": lambda draw, known: draw.choice(known.categories),
    "string_value": lambda draw, known: draw.choice((*known.categories, "a title")),
    "text": lambda draw, known: " ".join(draw.choices(("red", "blue", "wool", "hats", "summer"), k=3)),
    "source": lambda draw, known: draw.choice(("banner", "settings")),
    "purpose": lambda draw, known: draw.choice((1, 2)),
    "min_revision": lambda draw, known: known.revision,
    "release_id": lambda draw, known: draw.choice(known.release_ids),
    "expected_live_release_id": lambda draw, known: draw.choice(known.release_ids),
    "bundle": lambda draw, known: draw.choice(known.bundles),
    "service": lambda draw, known: draw.choice(("", *known.services)),
    "file_containing_symbol": lambda draw, known: draw.choice(known.services),
    "file_by_filename": lambda draw, known: "towerbridge/v1/common.proto",
    "min_score": lambda draw, known: draw.uniform(-1, 1),
    "seconds": lambda draw, known: known.now_s - draw.randrange(20 * 86_400),
    "nanos": lambda draw, known: draw.randrange(10**9),
    "values": _number,
    "numbers": _number,
    "number_value": _number,
    "gt": _number,
    "gte": _number,
    "lt": lambda draw, known: 1_000 + _number(draw, known),
    "lte": lambda draw, known: 1_000 + _number(draw, known),
    "vector": lambda draw, known: draw.gauss(0, 1),
    "text_embedding": lambda draw, known: draw.gauss(0, 1),
}


class Values:
    """Draws values for fields that are not messages."""

    def __init__(self, known: Known, seed: int) -> None:
        self.known = known
        draw = random.Random(f"{seed}-strings")
        taken = set(known.items)
        self._strings = [text for text in (*_ODD_STRINGS, *(_odd_text(draw) for _ in range(_POOL))) if text not in taken]

    def sane(self, field: Field, draw: random.Random) -> Any:
        """What an honest client would send."""
        choose = _BY_NAME.get(field.name)
        if choose is not None and _fits(value := choose(draw, self.known), field):
            return value
        if field.type == Field.TYPE_STRING:
            return draw.choice(self.known.categories)
        if field.type == Field.TYPE_BOOL:
            return draw.random() < 0.5
        if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
            return draw.random()
        return draw.randrange(10)

    def odd_name(self, draw: random.Random) -> str:
        """An attribute's name. Fewer than other texts: a server has a column of all items for each, which is soon full."""
        return draw.choice(self._strings[:_NAMES])

    def odd(self, field: Field, draw: random.Random) -> Any:
        """What fits the type, and nothing else."""
        if field.type == Field.TYPE_STRING:
            return draw.choice(self._strings)
        if field.type == Field.TYPE_BYTES:
            return draw.randbytes(draw.choice((0, 1, 16, 1_000)))
        if field.type == Field.TYPE_BOOL:
            return draw.random() < 0.5
        if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
            return draw.choice(_ODD_FLOATS)
        largest = INT64 if field.type in (Field.TYPE_INT64, Field.TYPE_SINT64, Field.TYPE_SFIXED64) else INT32
        return draw.choice((*_ODD_INTS, largest, -largest - 1, draw.randint(-largest, largest)))


def _fits(value: Any, field: Field) -> bool:
    """Fields of one name have several types: the values of a vector, and of a list of strings."""
    wanted = {Field.TYPE_STRING: str, Field.TYPE_DOUBLE: float, Field.TYPE_FLOAT: float}
    return isinstance(value, wanted.get(field.type, int))


def _odd_text(draw: random.Random) -> str:
    """Letters, or anything but surrogates, which UTF-8 cannot say."""
    length = int(draw.expovariate(0.05)) + 1
    if draw.random() < 0.5:
        return "".join(draw.choices(string.ascii_letters + string.digits + "-_./ ", k=length))
    return "".join(chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)))) for _ in range(length))
