"""People, their decisions and links, between the wire and the server."""

from collections.abc import Iterable, Sequence

from towerbridge.v1 import common_pb2, user_pb2

from server.api.wire import to_timestamp
from server.errors import InvalidField
from server.fields import check_count, check_id, check_time
from server.journal.events import USER, VISITOR, Person
from server.journal.people_reader import Recorded
from server.users.directory import Decision, Directory, Purpose

_CONSENTS_MAX = 10
_AHEAD_US = 300_000_000  # how far a caller's clock may be ahead


def decode_person(message: common_pb2.Person, field: str = "person") -> Person:
    """Raises InvalidField."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidField(field, "set user_id or visitor_id")
    return Person(USER if kind == "user_id" else VISITOR, check_id(getattr(message, kind), f"{field}.{kind}"))


def encode_person(person: Person) -> common_pb2.Person:
    if person.kind == USER:
        return common_pb2.Person(user_id=person.subject_id)
    return common_pb2.Person(visitor_id=person.subject_id)


def decode_link(request: user_pb2.LinkIdentityRequest) -> tuple[Person, Person]:
    """Source and target of a link that can be. Raises InvalidField."""
    source, target = decode_person(request.source, "source"), decode_person(request.target, "target")
    if source == target:
        raise InvalidField("target", "is the same as source")
    if source.kind == USER and target.kind == VISITOR:
        raise InvalidField("target", "must be a user, since source is one: a user cannot belong to a visitor")
    return source, target


def decode_decisions(consents: Sequence[user_pb2.Consent], now_us: int) -> list[Decision]:
    """Decisions, in the order given; none is later than now. Raises InvalidField."""
    check_count(len(consents), "consents", _CONSENTS_MAX, minimum=1)
    return [_decision(consent, now_us, f"consents[{place}]") for place, consent in enumerate(consents)]


def _decision(consent: user_pb2.Consent, now_us: int, field: str) -> Decision:
    try:
        purpose = Purpose(consent.purpose)
    except ValueError:
        raise InvalidField(f"{field}.purpose", "set PURPOSE_PERSONALISATION or PURPOSE_TRAINING") from None
    source = check_id(consent.source, f"{field}.source")
    given_us = check_time(consent.given_at, f"{field}.given_at") if consent.HasField("given_at") else now_us
    if given_us > now_us + _AHEAD_US:
        raise InvalidField(f"{field}.given_at", "is more than 5 minutes ahead of the server's clock; timestamps are in UTC")
    return Decision(purpose, consent.granted, source, min(given_us, now_us), is_now=not consent.HasField("given_at"))


def encode_states(directory: Directory, person: Person) -> list[user_pb2.ConsentState]:
    """What applies to each purpose now."""
    key = directory.find(person)
    return [
        user_pb2.ConsentState(
            purpose=user_pb2.Purpose.ValueType(purpose),
            granted=directory.may_person(person, purpose),
            presumed=key is None or directory.is_presumed(key, purpose),
        )
        for purpose in Purpose
    ]


def encode_trail(trail: Iterable[Recorded]) -> list[user_pb2.Consent]:
    return [
        user_pb2.Consent(
            purpose=user_pb2.Purpose.ValueType(decision.purpose),
            granted=decision.granted,
            source=decision.source,
            given_at=to_timestamp(decision.given_us),
        )
        for decision, _ in trail
    ]
