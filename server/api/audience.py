"""AudienceService."""

from collections.abc import AsyncIterator

from towerbridge.v1 import audience_pb2, audience_pb2_grpc

from server.api.people import decode_person, encode_person
from server.api.wire import Context, deadline_of
from server.catalogue.catalogue import Catalogue
from server.config import Config
from server.errors import InvalidField, NotFound, PermissionDenied
from server.fields import check_id, check_limit
from server.users.audience import Audience

_LIMIT_MAX = 100_000


class AudienceServicer(audience_pb2_grpc.AudienceServiceServicer):
    def __init__(self, audience: Audience, catalogue: Catalogue, config: Config) -> None:
        self._audience = audience
        self._catalogue = catalogue
        self._enabled = config.audience.enabled
        self._default_deadline_ms = config.listen.default_deadline_ms

    async def FindSimilarUsers(
        self, request: audience_pb2.FindSimilarUsersRequest, context: Context
    ) -> AsyncIterator[audience_pb2.FindSimilarUsersResponse]:
        self._check_enabled()
        deadline = deadline_of(context, self._default_deadline_ms)
        person = decode_person(request.person)
        limit = check_limit(request.limit, maximum=_LIMIT_MAX)
        async for part in self._audience.like(person, limit, _min_score(request), deadline):
            yield audience_pb2.FindSimilarUsersResponse(
                people=map(encode_person, part.people),
                scores=part.scores,
                release_id=part.release_id,
                compared=part.compared,
            )

    async def FindAudience(
        self, request: audience_pb2.FindAudienceRequest, context: Context
    ) -> AsyncIterator[audience_pb2.FindAudienceResponse]:
        self._check_enabled()
        deadline = deadline_of(context, self._default_deadline_ms)
        item_id = check_id(request.item_id, "item_id")
        limit = check_limit(request.limit, maximum=_LIMIT_MAX)
        min_score = _min_score(request)
        item = self._catalogue.get(item_id)
        if item is None:
            raise NotFound(f"item_id: no item {item_id!r} is in the catalogue")
        found = self._audience.for_item(item.ordinal, limit, min_score, exclude_seen=request.exclude_seen, deadline=deadline)
        async for part in found:
            yield audience_pb2.FindAudienceResponse(
                people=map(encode_person, part.people),
                scores=part.scores,
                release_id=part.release_id,
                compared=part.compared,
            )

    def _check_enabled(self) -> None:
        if not self._enabled:
            raise PermissionDenied("this server does not name people: set audience.enabled to true in its configuration")


def _min_score(request: audience_pb2.FindSimilarUsersRequest | audience_pb2.FindAudienceRequest) -> float | None:
    if not request.HasField("min_score"):
        return None
    if not -1.0 <= request.min_score <= 1.0:
        raise InvalidField("min_score", "must be a cosine, -1 to 1")
    return request.min_score
