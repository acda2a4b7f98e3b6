"""Somebody to be erased, and a search for what is left of them."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import apsw
import grpc
from towerbridge.v1 import common_pb2, event_pb2, user_pb2

from tests.server.about_people import TRAINING, About, decision, timestamp, user, visitor
from tests.server.conftest import DAY_US, NOW_US, Served

ACCEPTED = event_pb2.EVENT_STATUS_ACCEPTED
ERASED = event_pb2.EVENT_STATUS_DROPPED_ERASED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
SECOND_US = 1_000_000
_numbers = count()

# In a process of its own: closing a file that SQLite has open in this one would give up SQLite's locks on it.
_SEARCH = """
import sys, pathlib
words = [bytes.fromhex(word) for word in sys.argv[2:]]
for path in pathlib.Path(sys.argv[1]).rglob("*"):
    if path.is_file():
        data = path.read_bytes()
        print(*(f"{path.name}:{word!r}" for word in words if word in data), sep="\\n", end="")
"""


def found(directory: Path, words: Iterable[str | bytes]) -> str:
    """Where any of the words is, byte by byte, in any file of a directory."""
    as_hex = [(word.encode() if isinstance(word, str) else word).hex() for word in words]
    command = [sys.executable, "-c", _SEARCH, str(directory), *as_hex]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def event(person: common_pb2.Person, item: str, occurred_us: int | None = None, event_id: str = "") -> event_pb2.Event:
    made = event_pb2.Event(event_id=event_id or f"event-{next(_numbers)}", item_id=item, type="view")
    if person.user_id:
        made.user_id = person.user_id
    else:
        made.visitor_id = person.visitor_id
    if occurred_us is not None:
        made.occurred_at.CopyFrom(timestamp(occurred_us))
    return made


def record(served: Served, *events: event_pb2.Event) -> list[int]:
    request = event_pb2.RecordEventsRequest(events=events)
    return [result.status for result in served.client._events.RecordEvents(request, timeout=20).results]


def erase(served: Served, person: common_pb2.Person) -> user_pb2.EraseUserResponse:
    return served.client._users.EraseUser(user_pb2.EraseUserRequest(person=person), timeout=60)


def export(served: Served, person: common_pb2.Person) -> list[dict[str, object]]:
    parts = served.client._users.ExportUser(user_pb2.ExportUserRequest(person=person), timeout=60)
    return [json.loads(line) for part in parts for line in part.json_lines.splitlines()]


def receipts(reply: user_pb2.EraseUserResponse) -> dict[str, int]:
    return {receipt.store: receipt.count for receipt in reply.receipts}


def directory(served: Served) -> Path:
    return served.app.tenant._config.data / "default"


class Somebody:
    """A user with a visitor, everything that can be held about both, and words that occur nowhere else."""

    def __init__(self, served: Served) -> None:
        self.served = served
        mark = secrets.token_hex(8)
        self.user, self.visitor = user(f"zebra-user-{mark}"), visitor(f"zebra-visitor-{mark}")
        self.item, self.like, self.source = (f"zebra-{name}-{mark}" for name in ("item", "like", "source"))
        self.attribute = f"zebra-attribute-{mark}"
        self.events = [
            event(self.user, "item-3", NOW_US - DAY_US, f"zebra-event-1-{mark}"),
            event(self.user, self.item, NOW_US - SECOND_US, f"zebra-event-2-{mark}"),
            event(self.visitor, "item-4", None, f"zebra-event-3-{mark}"),
            event(self.user, "item-5", NOW_US + DAY_US // 2, f"zebra-event-4-{mark}"),
        ]
        self.words = [
            *(self.user.user_id, self.visitor.visitor_id, self.item, self.like, self.source, self.attribute),
            *(one.event_id for one in self.events),
        ]

    def live(self) -> "Somebody":
        about = About(self.served)
        about.decide(self.user, decision(True, source=self.source), decision(True, TRAINING, source=self.source))
        record(self.served, *self.events)
        about.profile(
            self.user, attributes={"colour": common_pb2.AttributeValue(string_value=self.attribute)}, likes=[self.like]
        )
        about.link(self.visitor, self.user)
        about.get(self.user)
        self.served.client.recommend(user_id=self.user.user_id, limit=1)  # so that there is a vector
        return self

    @property
    def hashes(self) -> list[bytes]:
        """What the journal keeps instead of event_ids."""
        with_ids = apsw.Connection(str(directory(self.served) / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
        query = "SELECT event_hash FROM events JOIN people USING (person_key) WHERE subject_id LIKE 'zebra%'"
        found_there = [row[0] for row in with_ids.execute(query)]
        with_ids.close()
        return found_there


def crowd(served: Served) -> Served:
    """Gives a server's journal enough people that SQLite moves rows between pages."""
    for _ in range(40):
        record(served, *(event(user(f"other-{secrets.randbelow(300)}"), f"item-{n % 50}") for n in range(50)))
    return served
