"""From the wire's subject to a person, a history or a vector."""

import numpy as np
from towerbridge.v1 import common_pb2

from server.catalogue.catalogue import Catalogue
from server.engine.batch import other_release
from server.errors import FailedPrecondition, InvalidField
from server.fields import LIMIT_MAX, check_count, check_id, check_ids, check_time, check_type, check_vector
from server.journal.events import USER, VISITOR, Person
from server.recommend.ask import Given, Who
from server.releases.release import Release
from server.users.histories import History
from server.users.people import People


def check_release(release_id: str, release: Release, field: str) -> None:
    """Refuses a vector of another release."""
    if release_id != release.release_id:
        raise FailedPrecondition(f"{field}: {other_release(release.release_id, release_id)}", field)


def decode_subject(subject: common_pb2.Subject, people: People, catalogue: Catalogue, release: Release) -> Who:
    """Whom the answer is for. Raises InvalidField, or FailedPrecondition for a vector of another release."""
    kind = subject.WhichOneof("kind")
    if kind == "user_id":
        return Person(USER, check_id(subject.user_id, "subject.user_id"))
    if kind == "visitor_id":
        return Person(VISITOR, check_id(subject.visitor_id, "subject.visitor_id"))
    if kind == "history":
        return _history(subject.history, people, catalogue, release)
    if kind == "vector":
        release_id = subject.vector.release_id if subject.vector.HasField("release_id") else None
        if release_id is not None:
            check_release(release_id, release, "subject.vector.release_id")
        return Given(check_vector(subject.vector.values, "subject.vector.values", release.bundle.manifest.dim), release_id)
    raise InvalidField("subject", "set user_id, visitor_id, history or vector")


def _default_type(release: Release) -> str:
    """The type of events that came without one: "view", or the release's first type if it does not know that."""
    names = list(release.bundle.manifest.event_types)
    return "view" if "view" in names or not names else names[0]


def _history(message: common_pb2.InlineHistory, people: People, catalogue: Catalogue, release: Release) -> History:
    """The history as if it had been recorded: events on unknown items or of unknown types do not count."""
    count = len(message.item_ids)
    item_ids = check_ids(message.item_ids, "subject.history.item_ids", LIMIT_MAX, minimum=1)
    for name, column in (("event_types", message.event_types), ("occurred_at", message.occurred_at)):
        if column:
            check_count(len(column), f"subject.history.{name}", count, minimum=count)
    types = [check_type(name, f"subject.history.event_types[{place}]") for place, name in enumerate(message.event_types)] or [
        _default_type(release)
    ] * count
    times_us = [
        check_time(value, f"subject.history.occurred_at[{place}]") for place, value in enumerate(message.occurred_at)
    ] or [place * 1_000_000 for place in range(count)]
    rows = [
        (time_us, place, item.ordinal, code)
        for place, (item_id, name, time_us) in enumerate(zip(item_ids, types, times_us, strict=True))
        if (item := catalogue.get(item_id)) is not None and (code := people.type_code(name)) is not None
    ]
    rows.sort()
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return History(
        ordinals=columns[:, 2].astype(np.int32),
        types=columns[:, 3].astype(np.int16),
        times_us=columns[:, 0],
        version=0,
        counted=len(rows),
        generation=0,
    )
