"""UserService."""

from collections.abc import Callable

from towerbridge.v1 import user_pb2, user_pb2_grpc

from server.api.wire import Context, to_timestamp
from server.catalogue.catalogue import Catalogue
from server.errors import InvalidField, NotFound
from server.fields import check_id, check_limit
from server.journal.events import USER, VISITOR, Person
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.releases.release import Release
from server.users.people import People

_DEFAULT_LIMIT = 100


class UserServicer(user_pb2_grpc.UserServiceServicer):
    def __init__(self, people: People, catalogue: Catalogue, journal: JournalWriter, release: Callable[[], Release]) -> None:
        self._people = people
        self._catalogue = catalogue
        self._journal = journal
        self._release = release

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Context) -> user_pb2.GetUserResponse:
        kind = request.WhichOneof("person")
        if kind is None:
            raise InvalidField("person", "set user_id or visitor_id")
        person_id = check_id(getattr(request, kind), kind)
        limit = check_limit(request.limit, minimum=0) if request.HasField("limit") else _DEFAULT_LIMIT
        revision = self._journal.revision
        key = self._people.directory.find(Person(USER if kind == "user_id" else VISITOR, person_id))
        if key is None:
            raise NotFound(f"{kind}: nothing was ever recorded for {person_id!r}")
        history = self._people.history(self._people.directory.root(key))
        release = self._release()
        newest = range(len(history.ordinals) - 1, max(-1, len(history.ordinals) - 1 - limit), -1)
        response = user_pb2.GetUserResponse(
            item_ids=[self._catalogue.item_id(int(history.ordinals[place])) for place in newest],
            event_types=[self._people.type_names[history.types[place]] for place in newest],
            occurred_at=[to_timestamp(int(history.times_us[place])) for place in newest],
            event_count=history.counted,
            waiting_event_count=self._people.held_count(key) - history.counted,
            events_behind=history.counted,
            release_id=release.release_id,
            revision=to_token(self._journal.epoch, revision),
        )
        stored = release.user_vectors.get(self._people.directory.root(key))
        if stored is not None:
            response.events_behind = max(0, history.counted - stored.counted)
            response.vector.extend(stored.vector.tolist())
            response.vector_computed_at.CopyFrom(to_timestamp(stored.computed_us))
        return response
