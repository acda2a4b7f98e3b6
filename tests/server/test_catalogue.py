"""The catalogue's ranking by popularity, attributes on their way through JSON, and the process that reads texts."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from towerbridge import v1

from index.bundle import load_text_encoder
from server.catalogue.attributes import from_bundle, from_wire, to_json, to_wire
from server.catalogue.catalogue import Catalogue, CatalogueItem, as_catalogue_item
from server.catalogue.popularity import Popularity
from server.catalogue.text_worker import TextWorker
from server.errors import DeadlineExceeded, Unavailable
from server.journal.items import ItemContent, StoredItem
from tests.tiny import write_tiny_encoder

NONE = np.zeros(0, dtype=np.int64)


def stored(ordinal: int, *, popularity: float = 0.0, available: bool = True, name: str = "") -> StoredItem:
    content = ItemContent(name or f"i{ordinal}")
    return StoredItem(ordinal, position=ordinal, removed_at=None, available=available, popularity=popularity, content=content)


def loaded(*popularities: float) -> Catalogue:
    """A catalogue of i1, i2, … with these popularities; ordinals count from 1, as SQLite gives them."""
    catalogue = Catalogue()
    items = [as_catalogue_item(stored(n, popularity=p)) for n, p in enumerate(popularities, 1)]
    catalogue.load(items, ["", *(item.item_id for item in items)], Popularity(np.array([0.0, *popularities])))
    return catalogue


def ordinals(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def test_the_most_popular_come_first_ties_in_order_with_their_share_of_all_events():
    assert loaded(1, 5, 3, 5, 0).popular(4, NONE) == (["i2", "i4", "i3", "i1"], [5 / 14, 5 / 14, 3 / 14, 1 / 14])


def test_there_are_never_more_than_asked_for_and_fewer_only_if_there_are_no_more():
    catalogue = loaded(1, 2, 3)
    assert [len(catalogue.popular(limit, NONE)[0]) for limit in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert Catalogue().popular(5, NONE) == ([], [])


def test_without_any_popularity_the_order_is_that_of_arrival_and_the_shares_are_zero():
    assert loaded(0, 0).popular(5, NONE) == (["i1", "i2"], [0.0, 0.0])


def test_excluded_unavailable_and_removed_items_are_left_out_of_the_popular():
    catalogue = loaded(5, 4, 3, 2, 1)
    catalogue.set_available("i2", False)
    catalogue.remove("i3", 9)
    assert catalogue.popular(5, ordinals(1, 1, 99))[0] == ["i4", "i5"]
    catalogue.set_available("i2", True)
    assert catalogue.popular(5, ordinals(1))[0] == ["i2", "i4", "i5"]
    assert [catalogue.is_permitted(name) for name in ("i1", "i2", "i3", "unknown")] == [True, True, False, False]


def test_newcomers_come_last_in_the_order_of_arrival_however_many_there_are():
    catalogue = loaded(1, 2)
    for ordinal in range(3, 5000):
        catalogue.put(stored(ordinal, available=ordinal != 4))
    assert catalogue.popular(4, NONE)[0] == ["i2", "i1", "i3", "i5"]
    everything = catalogue.popular(10_000, ordinals(3))[0]
    assert everything == ["i2", "i1", *(f"i{ordinal}" for ordinal in range(5, 5000))]
    assert catalogue.item_id(4999) == "i4999" and len(catalogue) == 4999


def test_an_edit_keeps_an_items_popularity_and_place():
    catalogue = loaded(1, 5)
    catalogue.put(stored(2))
    assert catalogue.popular(2, NONE)[0] == ["i2", "i1"]
    assert catalogue.popularity.of(2) == 5


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    popularities=st.lists(st.integers(0, 3), max_size=8),
    excluded=st.lists(st.integers(1, 10), max_size=4),
    closed=st.sets(st.integers(1, 8)),
    limit=st.integers(1, 9),
)
def test_popularity_against_a_plain_sort(popularities: list[int], excluded: list[int], closed: set[int], limit: int):
    catalogue = loaded(*popularities)
    for ordinal in closed:
        if ordinal <= len(popularities):
            catalogue.set_available(f"i{ordinal}", False)
    open_ = [n for n in range(1, len(popularities) + 1) if n not in closed and n not in excluded]
    expected = sorted(open_, key=lambda n: (-popularities[n - 1], n))[:limit]
    ids, shares = catalogue.popular(limit, ordinals(*excluded))
    assert ids == [f"i{n}" for n in expected]
    assert shares == [popularities[n - 1] / sum(popularities) if sum(popularities) else 0.0 for n in expected]


# Attributes

texts = st.text(st.characters(codec="utf-8"), max_size=20)
moments = st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC))
values = st.one_of(texts, st.floats(allow_nan=False, allow_infinity=False), st.booleans(), moments, st.lists(texts, max_size=3))


def wire(value: Any) -> v1.AttributeValue:
    """A value as a caller sends it."""
    message = v1.AttributeValue()
    match value:
        case bool():
            message.bool_value = value
        case str():
            message.string_value = value
        case float():
            message.number_value = value
        case datetime():
            message.timestamp_value.FromDatetime(value)
        case list():
            message.string_list_value.SetInParent()
            message.string_list_value.values.extend(value)
    return message


@settings(deadline=None, derandomize=True, max_examples=300)
@given(attributes=st.dictionaries(texts, values, max_size=4))
def test_what_a_caller_sends_comes_back_the_same_through_the_journals_json(attributes: dict[str, Any]):
    sent = {name: wire(value) for name, value in attributes.items()}
    kept = to_json({name: from_wire(message) for name, message in sent.items()})
    assert "\n" not in kept
    assert {name: to_wire(value) for name, value in json.loads(kept).items()} == sent


def test_equal_attributes_are_equal_text():
    assert to_json({"b": 1.0, "a": ["x"]}) == to_json({"a": ["x"], "b": 1.0}) == '{"a":["x"],"b":1.0}'


def test_a_value_that_cannot_be_kept_is_refused_with_the_reason():
    for message, says in (
        (v1.AttributeValue(), "has no value"),
        (v1.AttributeValue(number_value=float("nan")), "must be finite"),
        (v1.AttributeValue(number_value=float("-inf")), "must be finite"),
        (v1.AttributeValue(timestamp_value=Timestamp(seconds=10**15)), "is not a valid timestamp"),
        (v1.AttributeValue(timestamp_value=Timestamp(nanos=-1)), "is not a valid timestamp"),
    ):
        with pytest.raises(ValueError, match=says):
            from_wire(message)


def test_a_bundles_columns_lose_only_what_is_empty_or_not_finite():
    columns = {
        "title": "T",
        "year": 1999,
        "price": float("nan"),
        "gone": None,
        "tags": ["a"],
        "new": False,
        "at": datetime(2020, 1, 2),
    }
    kept = json.loads(to_json(from_bundle(columns)))
    assert kept == {"title": "T", "year": 1999, "tags": ["a"], "new": False, "at": {"timestamp": "2020-01-02T00:00:00.000000Z"}}
    assert to_wire(kept["at"]).timestamp_value.ToDatetime() == datetime(2020, 1, 2)


def test_asked_for_attributes_are_none_where_an_item_has_none():
    item = CatalogueItem(1, "i", "", '["c"]', '{"year":1999}', True)
    assert item.attribute_values(["year", "text", "categories", "title"]) == [1999, None, ["c"], None]
    assert item.attribute_values([]) == []


# The text worker


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("texts") / "encoder")


@pytest.fixture(scope="module")
def worker(encoder: Path) -> Iterator[TextWorker]:
    started = TextWorker(encoder)
    yield started
    started.close()


def test_texts_come_back_in_their_order_over_many_chunks(worker: TextWorker, encoder: Path):
    many = [f"{colour} {kind}" for colour in ("red", "green", "blue", "black", "white") for kind in ("hats", "shoes")] * 7
    expected = load_text_encoder(encoder).encode(many)
    found = worker.encode(many)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_deadline_that_has_passed_is_told_before_any_work(worker: TextWorker):
    with pytest.raises(DeadlineExceeded, match="fewer items"):
        worker.encode(["red hats"], deadline=time.monotonic() - 1)


def wait_until_asked(worker: TextWorker) -> None:
    """The one question so far has left the queue and lies in the pipe of the stopped process."""
    time.sleep(0.1)
    while worker._talker._work_queue.qsize():
        time.sleep(0.01)


def test_a_caller_behind_a_long_one_waits_no_longer_than_its_deadline(worker: TextWorker):
    pid = worker._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    first = threading.Thread(target=worker.encode, args=(["red hats"],))
    first.start()
    wait_until_asked(worker)
    try:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="could not be encoded in time"):
            worker.encode(["blue hats"], deadline=started + 0.1)
        assert time.monotonic() - started < 2.0
    finally:
        os.kill(pid, signal.SIGCONT)
        first.join(20)
    assert not first.is_alive()


def test_a_worker_that_dies_fails_its_caller_and_the_next_call_starts_it_again(
    worker: TextWorker, encoder: Path, caplog: pytest.LogCaptureFixture
):
    pid = worker._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that it dies with the question in its hands
    failures: list[Exception] = []

    def ask() -> None:
        try:
            worker.encode(["red hats"])
        except Exception as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until_asked(worker)
    os.kill(pid, signal.SIGKILL)
    asking.join(20)
    [failure] = failures
    assert isinstance(failure, Unavailable) and "repeat the call" in str(failure)
    worker._process.join(20)
    np.testing.assert_allclose(worker.encode(["red hats"]), load_text_encoder(encoder).encode(["red hats"]), atol=1e-6)
    assert "the text worker died" in caplog.text
