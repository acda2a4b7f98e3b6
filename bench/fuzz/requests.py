"""One fuzzed request: made from the seed and its number alone, so that each can be made, and sent, again."""

import base64
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from bench.fuzz.damage import damaged, deep_filter, field_of
from bench.fuzz.messages import Messages
from bench.fuzz.methods import Method
from bench.fuzz.values import Known, Values

ALL_ROLES, READ_ONLY = "$all", "$read"
"""Stand for API keys in a request's metadata."""

# Of calls that do much, or only wait. All others have 1.
_WEIGHTS = {"EraseUser": 0.2, "ExportUser": 0.5, "Watch": 0.2, "ServerReflectionInfo": 0.5, "List": 0.2}
_WEIGHTS |= {"LoadRelease": 0.05, "PromoteRelease": 0.1, "RollbackRelease": 0.1}
_KINDS = {"sane": 40, "mostly sane": 20, "half sane": 12, "odd": 8, "damaged": 15, "random": 3, "deep": 2}
_SANITY = {"sane": 1.0, "mostly sane": 0.97, "half sane": 0.7, "odd": 0.0}
_FILTER_IN = {"RecommendRequest": 9, "FindSimilarItemsRequest": 6, "SearchVectorsRequest": 7}  # field numbers
_HUGE_MESSAGE = 33 * 1024 * 1024  # more than listen.max_message_bytes
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Request:
    """A call: `messages` are bytes as they go out; a deadline of None is none; the caller leaves after `cancel_after_s`."""

    number: int
    method: str
    kind: str
    messages: tuple[bytes, ...]
    deadline_s: float | None
    cancel_after_s: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    closes: bool = True
    """False: the stream of requests is left open."""

    def to_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        values = asdict(self)
        values["messages"] = [base64.b64encode(message).decode() for message in self.messages]
        values["metadata"] = [
            [name, value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}]
            for name, value in self.metadata
        ]
        return values

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """A request as `to_json` gave it; what else is there is left out. Raises KeyError, TypeError or ValueError."""
        values = {name: value for name, value in given.items() if name in cls.__dataclass_fields__}
        values["messages"] = tuple(base64.b64decode(message) for message in values["messages"])
        values["metadata"] = tuple(
            (name, value if isinstance(value, str) else base64.b64decode(value["base64"])) for name, value in values["metadata"]
        )
        return cls(**values)


class Requests:
    """All requests of a seed, for a server of which that is known."""

    def __init__(self, methods: Sequence[Method], known: Known, seed: int) -> None:
        self._methods = list(methods)
        self._weights = [_WEIGHTS.get(method.short_name, 1.0) for method in methods]
        self._messages = Messages(Values(known, seed))
        self._seed = seed

    def make(self, number: int) -> Request:
        draw = random.Random(f"{self._seed}-{number}")
        [method] = draw.choices(self._methods, self._weights)
        [kind] = draw.choices(list(_KINDS), list(_KINDS.values()))
        closes = not method.takes_stream or draw.random() < 0.9
        messages = tuple(self._message(method, kind, draw) for _ in range(_count(method, draw)))
        # These end by the caller's will alone: grpc.aio waits for a unary call's message for ever.
        endless = method.short_name == "Watch" or not closes or (not messages and not method.takes_stream)
        return Request(
            number=number,
            method=method.name if draw.random() < 0.995 else method.name + draw.choice(("x", "/", "/x")),
            kind=kind,
            messages=messages,
            deadline_s=draw.uniform(0.01, 0.3) if endless else _deadline(draw),
            cancel_after_s=draw.choice((0.0, draw.uniform(0, 0.02))) if draw.random() < 0.06 else None,
            metadata=tuple(self._metadata(draw)),
            closes=closes,
        )

    def _message(self, method: Method, kind: str, draw: random.Random) -> bytes:
        if kind == "random":
            if draw.random() < 0.01:
                return field_of(15, b"\0" * _HUGE_MESSAGE)
            return draw.randbytes(draw.choice((0, 1, 10, 100, 1_000, 100_000)))
        sane = self._messages.make(method.descriptor, draw, _SANITY.get(kind, 1.0)).SerializeToString()
        if kind == "damaged":
            return damaged(sane, draw)
        if kind == "deep":
            number = _FILTER_IN.get(method.descriptor.name)
            depth = draw.choice((3, 4, 5, 30, 90, 100, 101, 1_000, 10_000))
            # A later field of the same number is merged with the earlier one.
            return sane + (field_of(number, deep_filter(depth)) if number else deep_filter(depth))
        return sane

    def _metadata(self, draw: random.Random) -> list[tuple[str, str | bytes]]:
        chance = draw.random()
        # Names of keys, which calls.py puts in: so a request can be kept, and sent to another server.
        key = ALL_ROLES if chance < 0.96 else draw.choice((READ_ONLY, "tb_wrong", ""))
        said: list[tuple[str, str | bytes]] = [] if chance > 0.99 else [("authorization", f"Bearer {key}")]
        if draw.random() < 0.03:
            said.append(draw.choice((("x-long", "x" * 6_000), ("x-odd-bin", draw.randbytes(40)), ("authorization", "Basic x"))))
        if draw.random() < 0.03:
            traced = f"00-{draw.getrandbits(128):032x}-{draw.getrandbits(64):016x}-01"
            said.append(("traceparent", draw.choice((traced, traced[:-4], "00-zz", ""))))
        return said


def _count(method: Method, draw: random.Random) -> int:
    if method.takes_stream:
        return draw.choice((0, 1, 1, 2, 5, 20))
    # Once in a while as no generated stub does: without a message, or with several.
    return draw.choice((0, 2, 3)) if draw.random() < 0.005 else 1


def _deadline(draw: random.Random) -> float | None:
    if draw.random() < 0.15:
        return draw.choice((0.0, draw.uniform(0, 0.005), draw.uniform(0.005, 0.1)))
    return None if draw.random() < 0.2 else _PATIENCE_S
