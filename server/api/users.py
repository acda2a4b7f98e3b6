"""UserService."""

from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from typing import TypeVar

from towerbridge.v1 import common_pb2, user_pb2, user_pb2_grpc

from server.api.erasure import ErasureCalls
from server.api.people import decode_decisions, decode_link, decode_person, encode_person, encode_states, encode_trail
from server.api.wire import Context, deadline_of, to_timestamp
from server.catalogue.catalogue import Catalogue
from server.config import Config
from server.errors import InvalidField, NotFound
from server.fields import check_id, check_limit
from server.journal.events import USER, VISITOR, Person
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.releases.release import Release
from server.users.changes import PeopleChanges
from server.users.directory import Purpose
from server.users.histories import History
from server.users.people import People
from server.users.profile import Profile
from server.waiting import result_of

T = TypeVar("T")
_DEFAULT_LIMIT = 100
_LATE = "the change was not confirmed in time; repeat the call, which is safe"


class UserServicer(user_pb2_grpc.UserServiceServicer):
    def __init__(
        self,
        people: People,
        changes: PeopleChanges,
        erasure: ErasureCalls,
        catalogue: Catalogue,
        journal: JournalWriter,
        release: Callable[[], Release],
        config: Config,
        clock_us: Callable[[], int],
    ) -> None:
        self._people = people
        self._changes = changes
        self._erasure = erasure
        self._catalogue = catalogue
        self._journal = journal
        self._release = release
        self._default_deadline_ms = config.listen.default_deadline_ms
        self._clock_us = clock_us

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Context) -> user_pb2.GetUserResponse:
        kind = request.WhichOneof("person")
        if kind is None:
            raise InvalidField("person", "set user_id or visitor_id")
        person = Person(USER if kind == "user_id" else VISITOR, check_id(getattr(request, kind), kind))
        limit = check_limit(request.limit, minimum=0) if request.HasField("limit") else _DEFAULT_LIMIT
        revision = self._revision()
        directory = self._people.directory
        key = directory.find(person)
        if key is None:
            raise NotFound(f"{kind}: nothing was ever recorded for {person.subject_id!r}")
        release = self._release()
        response = user_pb2.GetUserResponse(
            release_id=release.release_id,
            revision=revision,
            linked=self._named(directory.members(key)),
            personalised=directory.may(key, Purpose.PERSONALISATION),
            used_for_training=directory.may(key, Purpose.TRAINING),
        )
        profile = self._people.profile(key)
        if profile is not None:
            response.profile.CopyFrom(profile.to_wire())
        if response.personalised:
            self._add_history(response, directory.root(key), limit, release)
        return response

    async def SetProfile(self, request: user_pb2.SetProfileRequest, context: Context) -> user_pb2.SetProfileResponse:
        person = decode_person(request.person)
        profile = Profile.from_wire(request.profile)
        await self._done(self._changes.set_profile(person, None if profile.is_empty else profile), context)
        return user_pb2.SetProfileResponse(revision=self._revision())

    async def SetConsent(self, request: user_pb2.SetConsentRequest, context: Context) -> user_pb2.SetConsentResponse:
        person = decode_person(request.person)
        decisions = decode_decisions(request.consents, self._clock_us())
        await self._done(self._changes.set_consent(person, decisions), context)
        return user_pb2.SetConsentResponse(revision=self._revision())

    async def GetConsent(self, request: user_pb2.GetConsentRequest, context: Context) -> user_pb2.GetConsentResponse:
        person = decode_person(request.person)
        revision = self._journal.revision
        key = self._people.directory.find(person)
        trail = self._people.trail(key, revision) if key is not None else []
        return user_pb2.GetConsentResponse(
            states=encode_states(self._people.directory, person),
            decisions=encode_trail(trail),
            received_at=[to_timestamp(recorded.received_us) for recorded in trail],
            revision=to_token(self._journal.epoch, revision),
        )

    async def LinkIdentity(self, request: user_pb2.LinkIdentityRequest, context: Context) -> user_pb2.LinkIdentityResponse:
        linked = await self._done(self._changes.link(*decode_link(request)), context)
        return user_pb2.LinkIdentityResponse(
            created=linked.created, linked=self._named(linked.members), revision=self._revision()
        )

    async def UnlinkIdentity(
        self, request: user_pb2.UnlinkIdentityRequest, context: Context
    ) -> user_pb2.UnlinkIdentityResponse:
        source, target = decode_person(request.source, "source"), decode_person(request.target, "target")
        removed = await self._done(self._changes.unlink(source, target), context)
        return user_pb2.UnlinkIdentityResponse(removed=removed, revision=self._revision())

    async def EraseUser(self, request: user_pb2.EraseUserRequest, context: Context) -> user_pb2.EraseUserResponse:
        return await self._erasure.erase(request, deadline_of(context, self._default_deadline_ms))

    async def ExportUser(
        self, request: user_pb2.ExportUserRequest, context: Context
    ) -> AsyncIterator[user_pb2.ExportUserResponse]:
        async for part in self._erasure.export(request):
            yield part

    async def _done(self, change: Future[T], context: Context) -> T:
        """The result of a change, once it is on disk and in force."""
        return await result_of(change, deadline_of(context, self._default_deadline_ms), late=_LATE)

    def _add_history(self, response: user_pb2.GetUserResponse, root: int, limit: int, release: Release) -> None:
        history = self._people.history(root)
        newest = range(len(history.ordinals) - 1, max(-1, len(history.ordinals) - 1 - limit), -1)
        response.item_ids.extend(self._catalogue.item_id(int(history.ordinals[place])) for place in newest)
        response.event_types.extend(self._people.type_names[history.types[place]] for place in newest)
        response.occurred_at.extend(to_timestamp(int(history.times_us[place])) for place in newest)
        response.event_count = history.counted
        response.waiting_event_count = max(0, self._people.held_count(root) - history.counted)
        _add_vector(response, root, history, release)

    def _named(self, keys: Iterable[int]) -> list[common_pb2.Person]:
        """The ids of these keys, in their order."""
        subjects = self._people.subjects(list(keys))
        return [encode_person(person) for person in subjects.values()]

    def _revision(self) -> str:
        return to_token(self._journal.epoch, self._journal.revision)


def _add_vector(response: user_pb2.GetUserResponse, root: int, history: History, release: Release) -> None:
    response.events_behind = history.counted
    stored = release.user_vectors.get(root)
    if stored is not None and stored.generation == history.generation:  # otherwise it is about to be dropped
        response.events_behind = max(0, history.counted - stored.counted)
        response.vector.extend(stored.vector.tolist())
        response.vector_computed_at.CopyFrom(to_timestamp(stored.computed_us))
