"""The whole path through real processes: python -m server, killed and started again, and its own Python client."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import towerbridge
from towerbridge import v1

from bench.process import ServerProcess
from tests.tiny import write_tiny_bundle

Start = Callable[[Path], tuple[ServerProcess, towerbridge.Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[tuple[ServerProcess, towerbridge.Client]] = []

    def begin(bundle: Path) -> tuple[ServerProcess, towerbridge.Client]:
        server = ServerProcess(bundle, tmp_path / "data", "--log-level", "error")
        running.append((server, towerbridge.Client(server.target, timeout_s=20.0)))
        return running[-1]

    yield begin
    for server, client in running:
        client.close()
        server.kill()


def test_from_a_first_visit_to_a_newer_bundle(start: Start, tmp_path: Path):
    write_tiny_bundle(tmp_path / "first", text=True, seed=0)
    write_tiny_bundle(tmp_path / "second", text=True, seed=1)
    server, client = start(tmp_path / "first")

    # Nothing is kept of a visitor who has not consented.
    events = [towerbridge.event("view", item_id, visitor_id="ann") for item_id in ("item-10", "item-20", "item-30")]
    dropped = client.record_events(events[:1])
    assert [result.status for result in dropped.results] == [v1.EventStatus.EVENT_STATUS_DROPPED_NO_CONSENT]
    client.set_consent(visitor_id="ann", personalisation=True, source="a banner")

    # A visitor without history gets what is popular; one event changes the ranking.
    popular = client.recommend(visitor_id="ann", limit=50)
    assert list(popular.degraded) == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]
    acknowledged = client.record_events(events[:1])
    personal = client.recommend(visitor_id="ann", limit=50, min_revision=acknowledged.revision)
    assert list(personal.item_ids) != list(popular.item_ids)
    assert not personal.degraded and personal.events_behind == 0

    # The same event twice counts once.
    client.record_events(events[:1] * 3)
    client.record_events(events[1:])
    assert client.get_user(visitor_id="ann").event_count == 3

    # A new item with only text is found at once by a matching user: all of ann's items are red shoes.
    [item] = client.get_items(["item-10"]).items
    assert client.upsert_items([towerbridge.item("fresh", text=item.item.text)]).results[0].searchable
    found = client.recommend(visitor_id="ann", limit=51, exclude_seen=True)
    unlike = client.get_items(["item-14"]).items[0].item.text  # another colour
    assert unlike.split()[0] != item.item.text.split()[0]
    assert list(found.item_ids).index("fresh") < 15

    # An unavailable item and a removed one never appear.
    best = found.item_ids[0] if found.item_ids[0] != "fresh" else found.item_ids[1]
    client.set_availability({best: False})
    client.remove_items(["item-40"])
    for subject in ({"visitor_id": "ann"}, {"user_id": "nobody"}):
        shown = client.recommend(**subject, limit=100).item_ids  # type: ignore[arg-type]
        assert best not in shown and "item-40" not in shown

    # kill -9 and start again: nothing acknowledged is lost, nothing is doubled.
    before = client.recommend(visitor_id="ann", limit=100)
    server.kill()
    server, client = start(tmp_path / "first")
    after = client.recommend(visitor_id="ann", limit=100, min_revision=acknowledged.revision)
    assert list(after.item_ids) == list(before.item_ids)
    assert client.get_user(visitor_id="ann").event_count == 3
    statuses = {result.status for result in client.record_events(events).results}
    assert statuses == {v1.EventStatus.EVENT_STATUS_DUPLICATE}
    server.stop()

    # A newer bundle on the same data directory: other vectors, the same catalogue.
    server, client = start(tmp_path / "second")
    newer = client.recommend(visitor_id="ann", limit=100)
    assert newer.release_id != after.release_id
    assert not newer.degraded
    assert set(newer.item_ids) == set(after.item_ids)
    assert "fresh" in newer.item_ids and "item-40" not in newer.item_ids and best not in newer.item_ids
    server.stop()
