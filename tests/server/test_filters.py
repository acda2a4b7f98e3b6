"""Filters, through a real server. Items of the tiny bundle: colour by n % 5, kind by n % 2, year 2000 + n % 25, in_stock."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
import towerbridge
from towerbridge import between, exists, match, v1, where

from index.bundle import Bundle
from server.api.filters import FilterDecoder
from server.errors import InvalidField
from tests.server.conftest import Serve, Served
from tests.tiny import write_tiny_bundle

N = 50
ALL = [f"item-{n}" for n in range(N)]
MARCH = datetime(2026, 3, 1, tzinfo=UTC)


def of(wanted: Callable[[int], bool]) -> set[str]:
    return {f"item-{n}" for n in range(N) if wanted(n)}


def is_red(n: int) -> bool:
    return n % 5 == 0


def test_a_filter_takes_a_turn_of_the_engine_only_until_its_mask_is_known(serve: Serve):
    served = serve()
    engine = served.app.tenant._engine
    taken: list[object] = []
    call_in_steps = engine.call_in_steps
    engine.call_in_steps = lambda call: (taken.append(call), call_in_steps(call))[1]  # type: ignore[assignment,method-assign]
    many, few = (where(deny=[f"nobody-{number}" for number in range(count)]) for count in (300, 3))
    for filter_, turns in ((few, 0), (many, 1), (many, 1), (few, 1)):
        assert len(served.client.recommend(vector=[1.0] * 8, limit=5, filter=filter_).item_ids) == 5
        assert len(taken) == turns


CASES = {
    "a keyword of a list": (where(must=[match("categories", "red")]), of(is_red)),
    "any of several": (where(must=[match("categories", "red", "blue")]), of(lambda n: n % 5 in (0, 2))),
    "a boolean": (where(must=[match("in_stock", False)]), of(lambda n: n % 7 == 6)),
    "a number": (where(must=[match("year", 2003, 2004)]), of(lambda n: n % 25 in (3, 4))),
    "a range": (where(must=[between("year", gte=2010, lt=2012)]), of(lambda n: n % 25 in (10, 11))),
    "an open range": (where(must=[between("year", gt=2020)]), of(lambda n: n % 25 > 20)),
    "existence": (where(must=[exists("year")]), set(ALL)),
    "absence": (where(must_not=[exists("year")]), set()),
    "an attribute that nobody has": (where(must=[match("colour", "red")]), set()),
    "not an attribute that nobody has": (where(must_not=[match("colour", "red")]), set(ALL)),
    "a time nobody has": (where(must=[between("since", lte=MARCH)]), set()),
    "should": (where(should=[match("categories", "red"), match("year", 2001)]), of(lambda n: is_red(n) or n % 25 == 1)),
    "must and must not": (
        where(must=[match("categories", "red")], must_not=[match("categories", "hats")]),
        of(lambda n: is_red(n) and n % 2 == 0),
    ),
    "nested": (
        where(must_not=[where(must=[match("categories", "red"), match("categories", "shoes")])]),
        of(lambda n: not (is_red(n) and n % 2 == 0)),
    ),
    "allow": (where(allow=["item-3", "item-9", "never heard of"]), {"item-3", "item-9"}),
    "allow nothing": (where(allow=[]), set()),
    "deny": (where(deny=["item-3", "never heard of"]), set(ALL) - {"item-3"}),
    "allow and deny": (where(allow=["item-3", "item-9"], deny=["item-3"]), {"item-9"}),
    "an empty filter": (where(), set(ALL)),
}


@pytest.fixture(scope="module")
def seen(shared: Served) -> Iterator[Served]:
    """The shared server, and a visitor with a history."""
    shared.client.record_events([towerbridge.event("view", "item-7", visitor_id="somebody")])
    yield shared


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [4, 50])
def test_every_call_returns_exactly_the_best_of_those_that_pass(seen: Served, bundle: Bundle, name: str, limit: int):
    chosen, passing = CASES[name]
    everything = list(seen.client.recommend(visitor_id="somebody", limit=N).item_ids)
    expected = [item_id for item_id in everything if item_id in passing][:limit]
    assert list(seen.client.recommend(visitor_id="somebody", limit=limit, filter=chosen).item_ids) == expected
    request = towerbridge.recommend_request(visitor_id="somebody", limit=limit, filter=chosen)
    batch = seen.client.batch_recommend([request, request])
    assert [list(result.response.item_ids) for result in batch.results] == [expected, expected]

    nearest = list(seen.client.find_similar_items("item-7", limit=N).item_ids)
    expected = [item_id for item_id in nearest if item_id in passing][:limit]
    assert list(seen.client.find_similar_items("item-7", limit=limit, filter=chosen).item_ids) == expected

    vectors = bundle.item_vectors[:2]
    found = seen.client.search_vectors(vectors, limit=limit, filter=chosen)
    for result, unfiltered in zip(found.results, seen.client.search_vectors(vectors, limit=N).results, strict=True):
        assert list(result.item_ids) == [item_id for item_id in unfiltered.item_ids if item_id in passing][:limit]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [4, 50])
def test_people_of_whom_nothing_is_known_get_the_most_popular_of_those_that_pass(seen: Served, name: str, limit: int):
    chosen, passing = CASES[name]
    expected = [item_id for item_id in ALL if item_id in passing][:limit]  # item-0 is the most popular
    for whom in ({"visitor_id": "nobody"}, {"history": ["never heard of"]}):
        answer = seen.client.recommend(limit=limit, filter=chosen, **whom)
        assert list(answer.item_ids) == expected
        assert list(answer.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
        without = seen.client.recommend(limit=limit, filter=chosen, exclude_item_ids=ALL[:10], **whom)
        assert list(without.item_ids) == [item_id for item_id in ALL[10:] if item_id in passing][:limit]


def test_filters_go_with_seen_and_excluded_items(seen: Served):
    seen.client.record_events([towerbridge.event("view", item_id, visitor_id="picky") for item_id in ("item-0", "item-5")])
    answer = seen.client.recommend(
        visitor_id="picky",
        limit=N,
        exclude_seen=True,
        exclude_item_ids=["item-10"],
        filter=where(must=[match("categories", "red")]),
    )
    assert set(answer.item_ids) == of(is_red) - {"item-0", "item-5", "item-10"}


def test_queries_of_one_batch_each_have_their_own_filter(seen: Served):
    filters = [*CASES.values(), (None, set(ALL))]
    asked = [towerbridge.recommend_request(visitor_id="somebody", limit=N, filter=chosen) for chosen, _ in filters]
    batch = seen.client.batch_recommend(asked)
    assert [set(result.response.item_ids) for result in batch.results] == [passing for _, passing in filters]


def test_an_upsert_changes_what_a_filter_passes_as_soon_as_it_is_acknowledged(serve: Serve, bundle: Bundle):
    client = serve().client
    vector = bundle.item_vectors[0]
    chosen = where(must=[match("brand", "acme"), between("price", lte=50), between("since", gte=MARCH)])

    def found() -> list[list[str]]:
        [result] = client.search_vectors([vector], limit=N, filter=chosen).results
        popular = client.recommend(visitor_id="nobody", limit=N, filter=chosen)
        return [sorted(result.item_ids), sorted(popular.item_ids)]

    def put(item_id: str, **attributes: towerbridge.v1.AttributeValue | object) -> None:
        client.upsert_items([towerbridge.item(item_id, vector=vector, attributes=attributes)])  # type: ignore[arg-type]

    assert found() == [[], []]
    for price in (20, 60, 40):
        put("new", brand="acme", price=price, since=MARCH)
        assert found() == ([[], []] if price == 60 else [["new"], ["new"]])
    put("other", brand=["zeta", "acme"], price=1, since=MARCH)
    assert found() == [["new", "other"], ["new", "other"]]
    client.set_availability({"new": False})
    assert found() == [["other"], ["other"]]
    client.remove_items(["other"])
    assert found() == [[], []]
    client.set_availability({"new": True})
    put("other")  # it comes back without its attributes
    assert found() == [["new"], ["new"]]
    for n in range(30):
        put(f"churn-{n % 3}", brand="acme" if n % 2 else "zeta", price=1, since=MARCH)
        expected = [f"churn-{m % 3}" for m in range(max(0, n - 2), n + 1) if m % 2]
        assert found() == [sorted([*expected, "new"])] * 2


def test_searches_beside_a_writer_see_every_acknowledged_change_of_an_attribute(serve: Serve, bundle: Bundle):
    client = serve().client
    vector = bundle.item_vectors[0]
    acknowledged: dict[str, tuple[int, str]] = {}  # id -> number of its change, brand; absent while a change is under way
    acme = where(must=[match("brand", "acme")])
    wrong: list[str] = []
    done = threading.Event()

    def write() -> None:
        for number in range(150):
            item_id, brand = f"busy-{number % 7}", ("acme", "zeta", "omega")[number % 3]
            acknowledged.pop(item_id, None)
            client.upsert_items([towerbridge.item(item_id, vector=vector, attributes={"brand": brand})])
            acknowledged[item_id] = (number, brand)
        done.set()

    def read(ask: Callable[[], list[str]]) -> None:
        while not done.is_set():
            before = dict(acknowledged)
            found = set(ask())
            for item_id, change in before.items():
                if acknowledged.get(item_id) == change and (item_id in found) != (change[1] == "acme"):
                    wrong.append(f"{item_id} is {change[1]}: {sorted(found)}")

    asks = [
        lambda: list(client.search_vectors([vector], limit=N, filter=acme).results[0].item_ids),
        lambda: list(client.recommend(visitor_id="nobody", limit=N, filter=acme).item_ids),
    ]
    threads = [threading.Thread(target=read, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    write()
    for thread in threads:
        thread.join()
    assert not wrong


def test_categories_can_be_filtered_by_and_change_with_the_item(serve: Serve, bundle: Bundle):
    client = serve().client
    purple = where(must=[match("categories", "purple")])
    client.upsert_items([towerbridge.item("item-3", categories=["purple", "hats"], vector=bundle.item_vectors[3])])
    assert list(client.find_similar_items("item-4", limit=5, filter=purple).item_ids) == ["item-3"]
    client.upsert_items([towerbridge.item("item-3", categories=["green"], vector=bundle.item_vectors[3])])
    assert list(client.find_similar_items("item-4", limit=5, filter=purple).item_ids) == []


def test_an_item_without_a_vector_is_among_the_popular_ones_that_pass(serve: Serve, tmp_path: Path):
    write_tiny_bundle(tmp_path / "bare", towers=False)
    client = serve(bundle=tmp_path / "bare").client
    [result] = client.upsert_items([towerbridge.item("bare", attributes={"brand": "acme"})]).results
    assert not result.searchable
    answer = client.recommend(visitor_id="nobody", limit=5, filter=where(must=[match("brand", "acme")]))
    assert list(answer.item_ids) == ["bare"]
    assert list(answer.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_USER_TOWER]


def test_attributes_survive_a_restart(serve: Serve, bundle: Bundle):
    served = serve()
    vector = bundle.item_vectors[0]
    attributes = {"brand": ["acme", "zeta"], "price": 5, "new": True, "since": MARCH}
    served.client.upsert_items([towerbridge.item("kept", vector=vector, attributes=attributes, categories=["purple"])])
    serve.stop(served)  # type: ignore[attr-defined]
    client = serve().client
    for condition in (
        match("brand", "zeta"),
        between("price", gt=4, lt=6),
        match("new", True),
        between("since", gte=MARCH, lte=MARCH),
        match("categories", "purple"),
    ):
        [result] = client.search_vectors([vector], limit=N, filter=where(must=[condition])).results
        assert list(result.item_ids) == ["kept"], condition
    red = client.recommend(visitor_id="nobody", limit=N, filter=where(must=[match("categories", "red")]))
    assert set(red.item_ids) == of(is_red)


def test_what_cannot_be_compared_fails_its_own_query_and_no_other(seen: Served):
    impossible = where(must_not=[between("title", gt=1)])
    with pytest.raises(towerbridge.InvalidArgument, match=r"filter: the attribute 'title' is text .*a number needs") as caught:
        seen.client.recommend(visitor_id="somebody", limit=3, filter=impossible)
    assert caught.value.field == "filter"
    for call in (
        lambda: seen.client.recommend(visitor_id="nobody", limit=3, filter=impossible),
        lambda: seen.client.find_similar_items("item-1", limit=3, filter=impossible),
        lambda: seen.client.search_vectors([np.ones(8)], limit=3, filter=impossible),
    ):
        with pytest.raises(towerbridge.InvalidArgument, match="'title' is text"):
            call()
    good, bad = (
        towerbridge.recommend_request(visitor_id="somebody", limit=3, filter=one)
        for one in (where(must=[exists("title")]), impossible)
    )
    batch = seen.client.batch_recommend([good, bad, good])
    assert [len(result.response.item_ids) for result in batch.results] == [3, 0, 3]
    [(place, error)] = towerbridge.rejected(batch)
    assert (place, error.field, error.code) == (1, "requests[1].filter", grpc.StatusCode.INVALID_ARGUMENT.value[0])


def test_a_removed_item_is_nothing_to_compare_with_though_a_history_refers_to_it(serve: Serve, bundle: Bundle):
    client = serve().client
    client.upsert_items([towerbridge.item("odd", vector=bundle.item_vectors[0], attributes={"size": "large"})])
    client.record_events([towerbridge.event("view", "odd", visitor_id="fan")])
    large = where(must_not=[between("size", gt=5)])
    with pytest.raises(towerbridge.InvalidArgument, match="'size' is text"):
        client.recommend(visitor_id="fan", limit=100, filter=large)
    client.remove_items(["odd"])
    assert set(client.recommend(visitor_id="fan", limit=100, filter=large).item_ids) == set(ALL)


def test_an_item_with_another_kind_of_value_is_ruled_out_whole(serve: Serve, bundle: Bundle):
    client = serve().client
    client.upsert_items([towerbridge.item("odd", vector=bundle.item_vectors[0], attributes={"year": "long ago"})])
    for chosen in (where(must=[between("year", gte=0)]), where(must_not=[between("year", gte=3000)])):
        [result] = client.search_vectors([bundle.item_vectors[0]], limit=100, filter=chosen).results
        assert set(result.item_ids) == set(ALL)
        popular = client.recommend(visitor_id="nobody", limit=100, filter=chosen)
        assert set(popular.item_ids) == set(ALL)


def condition(**kind: object) -> v1.Filter:
    return v1.Filter(must=[v1.Condition(exists=v1.Exists(attribute="a")), v1.Condition(**kind)])  # type: ignore[arg-type]


def nested(depth: int) -> v1.Filter:
    return v1.Filter(deny=v1.ItemIds(item_ids=["x"])) if depth == 1 else where(should=[nested(depth - 1)])


WRONG = [
    (condition(), "filter.must[1]", "set match_any, range, time_range, exists, filter or match_profile"),
    (condition(exists=v1.Exists()), "filter.must[1].exists.attribute", "must have 1 to 64 bytes"),
    (condition(exists=v1.Exists(attribute="é" * 33)), "filter.must[1].exists.attribute", "must have 1 to 64 bytes"),
    (where(must_not=[match("text", "a")]), "filter.must_not[0].match_any.attribute", '"text" cannot be filtered by'),
    (condition(match_any=v1.MatchAny(attribute="a")), "filter.must[1].match_any", "exactly one of strings, numbers and bool"),
    (
        condition(match_any=v1.MatchAny(attribute="a", strings=["a"], numbers=[1])),
        "filter.must[1].match_any",
        "exactly one of strings, numbers and booleans",
    ),
    (where(must=[match("a", *map(str, range(1001)))]), "filter.must[0].match_any.strings", "1 to 1000 entries"),
    (where(must=[match("a", "b", "x" * 257)]), "filter.must[0].match_any.strings[1]", "0 to 256 bytes"),
    (where(must=[match("a", 1, float("nan"))]), "filter.must[0].match_any.numbers[1]", "must be finite"),
    (where(must=[match("a", True, False, True)]), "filter.must[0].match_any.booleans", "1 to 2 entries"),
    (condition(range=v1.Range(attribute="a")), "filter.must[1].range", "needs gt, gte, lt or lte"),
    (where(should=[between("a", lt=float("inf"))]), "filter.should[0].range.lt", "must be finite"),
    (condition(time_range=v1.TimeRange(attribute="a")), "filter.must[1].time_range", "needs gt, gte, lt or lte"),
    (nested(5), "filter.should[0].filter.should[0].filter.should[0].filter.should[0].filter", "more than 4 filters deep"),
    (where(must=[exists("a")] * 65), "filter.must[64]", "at most 64 conditions"),
    (where(must=[where(must=[exists("a")] * 40), *[exists("a")] * 24]), "filter.must[24]", "at most 64 conditions"),
    (where(allow=["a"] * 100_001), "filter.allow.item_ids", "at most 100,000 entries in all, has 100,001"),
    (
        where(deny=["a"] * 60_000, should=[where(deny=["a"] * 60_000)]),
        "filter.deny.item_ids",
        "at most 100,000 entries in all, has 120,000",
    ),
    (where(deny=[*map(str, range(5000)), ""]), "filter.deny.item_ids[5000]", "must not be empty"),
    (where(allow=["a", "x" * 257]), "filter.allow.item_ids[1]", "at most 256 bytes"),
]


@pytest.mark.parametrize(("wrong", "field", "problem"), WRONG, ids=[f"{field}: {problem}" for _, field, problem in WRONG])
def test_what_is_wrong_with_a_filter_is_said_with_its_field(shared: Served, wrong: v1.Filter, field: str, problem: str):
    with pytest.raises(towerbridge.InvalidArgument) as caught:
        shared.client.recommend(visitor_id="nobody", limit=3, filter=wrong)
    assert caught.value.field == field
    assert problem in caught.value.message
    batch = shared.client.batch_recommend([towerbridge.recommend_request(visitor_id="nobody", limit=3, filter=wrong)])
    assert batch.results[0].error.field == f"requests[0].{field}"


def test_a_filter_four_deep_and_with_sixty_four_conditions_is_taken(shared: Served):
    assert len(shared.client.recommend(visitor_id="nobody", limit=3, filter=nested(4)).item_ids) == 3
    many = where(must=[exists("year")] * 64)
    assert len(shared.client.recommend(visitor_id="nobody", limit=3, filter=many).item_ids) == 3


def test_a_hundred_thousand_ids_can_be_allowed_or_denied(shared: Served):
    lots = [f"someone-elses-{n}" for n in range(99_960)]
    allowed = where(allow=[*lots, *ALL[5:15], *ALL[5:15], *ALL[5:15], *ALL[5:15]])
    for _ in range(2):
        assert set(shared.client.recommend(visitor_id="nobody", limit=N, filter=allowed).item_ids) == set(ALL[5:15])
    denied = where(deny=[*lots, *ALL[:40]])
    [result] = shared.client.search_vectors([np.ones(8)], limit=N, filter=denied).results
    assert set(result.item_ids) == set(ALL[40:])


def test_other_coroutines_run_while_long_lists_are_decoded_and_the_result_is_kept():
    decoder = FilterDecoder()
    long = where(allow=[f"item-{n}" for n in range(100_000)])
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def decode() -> None:
        watcher = asyncio.create_task(watch())
        first = await decoder.decode(long)
        assert turns >= 20
        assert first is not None and first.allow is not None and len(first.allow) == 100_000
        before = turns
        assert await decoder.decode(where(allow=[f"item-{n}" for n in range(100_000)])) is first
        assert turns == before
        for start in range(12):
            await decoder.decode(where(deny=[f"{start}-{n}" for n in range(100_000)]))
        assert await decoder.decode(long) is not first  # the oldest was let go
        assert await decoder.decode(where()) is None
        with pytest.raises(InvalidField):
            await decoder.decode(where(must=[v1.Condition()]))
        watcher.cancel()

    asyncio.run(decode())
