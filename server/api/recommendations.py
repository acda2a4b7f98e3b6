"""RecommendationService."""

import asyncio
from collections.abc import Callable, Sequence

from towerbridge.v1 import common_pb2, recommendation_pb2, recommendation_pb2_grpc

from index.filters.filter import Filter
from server.api.filters import FilterDecoder
from server.api.status import row_error
from server.api.subjects import check_release, decode_subject
from server.api.wire import Context, deadline_of, to_timestamp
from server.catalogue.attributes import to_wire
from server.catalogue.catalogue import Catalogue
from server.config import Config
from server.engine.query import Answer
from server.errors import FailedPrecondition, InvalidField, ServiceError
from server.fields import (
    ATTRIBUTES_MAX,
    EXCLUDED_MAX,
    ROWS_MAX,
    check_count,
    check_id,
    check_ids,
    check_limit,
    check_text,
    check_vector,
)
from server.journal.events import Person
from server.journal.revision import require, to_token
from server.journal.writer import JournalWriter
from server.recommend.ask import Ask, Degraded, Given, Ranked, Skip, Started, Who
from server.recommend.flow import Recommender
from server.recommend.preferences import Preferences, usable_profile
from server.releases.release import Release
from server.users.people import People
from server.users.profile import Profile

_BATCH_MAX = 100
_DEGRADED = {
    Degraded.NO_HISTORY: common_pb2.DEGRADED_REASON_NO_HISTORY,
    Degraded.STALE_VECTOR: common_pb2.DEGRADED_REASON_STALE_VECTOR,
    Degraded.NO_USER_TOWER: common_pb2.DEGRADED_REASON_NO_USER_TOWER,
    Degraded.NO_CONSENT: common_pb2.DEGRADED_REASON_NO_CONSENT,
}
_SKIPPED = {
    Skip.UNKNOWN_ITEM: recommendation_pb2.SKIP_REASON_UNKNOWN_ITEM,
    Skip.UNAVAILABLE: recommendation_pb2.SKIP_REASON_UNAVAILABLE,
    Skip.NO_VECTOR: recommendation_pb2.SKIP_REASON_NO_VECTOR,
    Skip.DISLIKED: recommendation_pb2.SKIP_REASON_DISLIKED,
}


class RecommendationServicer(recommendation_pb2_grpc.RecommendationServiceServicer):
    def __init__(
        self,
        recommender: Recommender,
        people: People,
        catalogue: Catalogue,
        journal: JournalWriter,
        release: Callable[[], Release],
        config: Config,
    ) -> None:
        self._recommender = recommender
        self._people = people
        self._catalogue = catalogue
        self._journal = journal
        self._release = release
        self._default_deadline_ms = config.listen.default_deadline_ms
        self._preference_bonus = config.users.preference_bonus
        self._filters = FilterDecoder()

    async def Recommend(
        self, request: recommendation_pb2.RecommendRequest, context: Context
    ) -> recommendation_pb2.RecommendResponse:
        deadline = deadline_of(context, self._default_deadline_ms)
        revision = self._journal.revision
        ask = await self._decode(request, revision, deadline)
        return self._encode(await self._recommender.recommend(ask, deadline), request.attributes, revision)

    async def BatchRecommend(
        self, request: recommendation_pb2.BatchRecommendRequest, context: Context
    ) -> recommendation_pb2.BatchRecommendResponse:
        check_count(len(request.requests), "requests", _BATCH_MAX, minimum=1)
        deadline = deadline_of(context, self._default_deadline_ms)
        revision = self._journal.revision
        started: list[tuple[Ask, Started] | ServiceError] = []
        for row in request.requests:
            try:
                ask = await self._decode(row, revision, deadline)
                started.append((ask, self._recommender.start(ask, deadline)))
            except ServiceError as error:
                started.append(error)
        results = []
        for place, (row, one) in enumerate(zip(request.requests, started, strict=True)):
            try:
                if isinstance(one, ServiceError):
                    raise one
                ask, future = one
                ranked = await self._recommender.finish(ask, future, deadline)
                response = self._encode(ranked, row.attributes, revision)
                results.append(recommendation_pb2.BatchRecommendResult(response=response))
                await asyncio.sleep(0)  # other calls are not held up by a long batch's replies
            except ServiceError as error:
                results.append(recommendation_pb2.BatchRecommendResult(error=_row_error(error, f"requests[{place}]")))
        return recommendation_pb2.BatchRecommendResponse(results=results)

    async def ScoreItems(
        self, request: recommendation_pb2.ScoreItemsRequest, context: Context
    ) -> recommendation_pb2.ScoreItemsResponse:
        deadline = deadline_of(context, self._default_deadline_ms)
        revision = self._journal.revision
        require(request.min_revision, epoch=self._journal.epoch, head=revision)
        who = decode_subject(request.subject, self._people, self._catalogue, self._release())
        item_ids = check_ids(request.item_ids, "item_ids", ROWS_MAX, minimum=1)
        preferences = Preferences.of(self._profile(who), self._preference_bonus)
        scored, scores, skipped, answer = await self._recommender.score(
            who, item_ids, preferences=preferences, allow_stale=request.allow_stale, deadline=deadline
        )
        response = recommendation_pb2.ScoreItemsResponse(
            item_ids=scored,
            scores=scores,
            skipped=[recommendation_pb2.SkippedItem(item_id=item_id, reason=_SKIPPED[reason]) for item_id, reason in skipped],
            release_id=answer.release_id,
            revision=to_token(self._journal.epoch, revision),
            events_behind=answer.events_behind,
            degraded=[common_pb2.DEGRADED_REASON_STALE_VECTOR] if answer.stale else [],
            timings=_timings(answer),
        )
        if answer.computed_us is not None:
            response.vector_computed_at.CopyFrom(to_timestamp(answer.computed_us))
        return response

    async def FindSimilarItems(
        self, request: recommendation_pb2.FindSimilarItemsRequest, context: Context
    ) -> recommendation_pb2.FindSimilarItemsResponse:
        deadline = deadline_of(context, self._default_deadline_ms)
        item_id = check_id(request.item_id, "item_id")
        limit = check_limit(request.limit)
        excluded = check_ids(request.exclude_item_ids, "exclude_item_ids", EXCLUDED_MAX)
        _check_attributes(request.attributes)
        chosen = await self._filter(request, deadline)
        ranked = await self._recommender.similar(
            item_id, limit, excluded, chosen, exact=request.search.exact, deadline=deadline
        )
        return recommendation_pb2.FindSimilarItemsResponse(
            item_ids=ranked.item_ids,
            scores=ranked.scores,
            attributes=self._attributes(ranked.item_ids, request.attributes),
            release_id=ranked.answer.release_id,
            timings=_timings(ranked.answer),
        )

    async def SearchVectors(
        self, request: recommendation_pb2.SearchVectorsRequest, context: Context
    ) -> recommendation_pb2.SearchVectorsResponse:
        deadline = deadline_of(context, self._default_deadline_ms)
        release = self._release()
        check_count(len(request.vectors), "vectors", _BATCH_MAX, minimum=1)
        release_id = request.release_id if request.HasField("release_id") else None
        if release_id is not None:
            check_release(release_id, release, "release_id")
        limit = check_limit(request.limit)
        excluded = check_ids(request.exclude_item_ids, "exclude_item_ids", EXCLUDED_MAX)
        _check_attributes(request.attributes)
        chosen = await self._filter(request, deadline)
        dim = release.bundle.manifest.dim
        asks = [
            Ask(
                Given(check_vector(vector.values, f"vectors[{place}].values", dim), release_id),
                limit,
                excluded,
                filter=chosen,
                exact=request.search.exact,
            )
            for place, vector in enumerate(request.vectors)
        ]
        ranked = await self._recommender.together(asks, deadline)
        results = [
            recommendation_pb2.SearchVectorsResult(
                item_ids=one.item_ids, scores=one.scores, attributes=self._attributes(one.item_ids, request.attributes)
            )
            for one in ranked
        ]
        return recommendation_pb2.SearchVectorsResponse(
            results=results, release_id=ranked[0].answer.release_id, timings=_timings(ranked[0].answer)
        )

    async def _decode(self, request: recommendation_pb2.RecommendRequest, revision: int, deadline: float) -> Ask:
        who = decode_subject(request.subject, self._people, self._catalogue, self._release())
        limit = check_limit(request.limit)
        # What most requests have none of is not looked at further: each function costs, by what it drives out of the cache.
        excluded = check_ids(request.exclude_item_ids, "exclude_item_ids", EXCLUDED_MAX) if request.exclude_item_ids else ()
        if request.attributes:
            _check_attributes(request.attributes)
        require(request.min_revision, epoch=self._journal.epoch, head=revision)
        profile = self._profile(who)
        chosen = await self._filters.decode(request.filter, profile=lambda: profile) if request.HasField("filter") else None
        ask = Ask(who, limit, excluded, request.exclude_seen, request.allow_stale, chosen, request.search.exact)
        preferences = Preferences.of(profile, self._preference_bonus) if profile is not None else None
        if preferences is not None:
            ask = ask.preferring(preferences)
            await self._recommender.prepare(ask.favoured, deadline)
        if ask.filter is not None:
            await self._recommender.prepare(ask.filter, deadline)
        return ask

    def _profile(self, who: Who) -> Profile | None:
        return usable_profile(self._people, who) if isinstance(who, Person) else None

    async def _filter(
        self,
        request: recommendation_pb2.FindSimilarItemsRequest | recommendation_pb2.SearchVectorsRequest,
        deadline: float,
    ) -> Filter | None:
        if not request.HasField("filter"):
            return None
        chosen = await self._filters.decode(request.filter)
        await self._recommender.prepare(chosen, deadline)
        return chosen

    def _encode(self, ranked: Ranked, attributes: Sequence[str], revision: int) -> recommendation_pb2.RecommendResponse:
        answer = ranked.answer
        response = recommendation_pb2.RecommendResponse(
            item_ids=ranked.item_ids,
            scores=ranked.scores,
            attributes=self._attributes(ranked.item_ids, attributes) if attributes else (),
            recommendation_id=ranked.recommendation_id,
            release_id=answer.release_id,
            revision=to_token(self._journal.epoch, revision),
            events_behind=answer.events_behind,
            degraded=[_DEGRADED[reason] for reason in ranked.degraded] if ranked.degraded else (),
            timings=_timings(answer),
        )
        if answer.computed_us is not None:
            response.vector_computed_at.CopyFrom(to_timestamp(answer.computed_us))
        return response

    def _attributes(self, item_ids: Sequence[str], names: Sequence[str]) -> list[common_pb2.AttributeColumn]:
        columns = [common_pb2.AttributeColumn(name=name) for name in names]
        if columns:
            for item_id in item_ids:
                item = self._catalogue.get(item_id)
                values = item.attribute_values(names) if item is not None else [None] * len(names)
                for column, value in zip(columns, values, strict=True):
                    column.values.append(to_wire(value))
        return columns


def _row_error(error: ServiceError, row: str) -> common_pb2.RowError:
    if isinstance(error, InvalidField):
        return row_error(error.under(row))
    field = error.field if isinstance(error, FailedPrecondition) else ""
    return row_error(error, f"{row}.{field}" if field else row)


def _check_attributes(names: Sequence[str]) -> None:
    check_count(len(names), "attributes", ATTRIBUTES_MAX)
    for place, name in enumerate(names):
        check_text(name, f"attributes[{place}]", 64, minimum=1)


def _timings(answer: Answer) -> common_pb2.Timings:
    return common_pb2.Timings(queue_us=answer.queue_us, encode_us=answer.encode_us, search_us=answer.search_us)
