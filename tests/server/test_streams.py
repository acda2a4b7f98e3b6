"""StreamEvents: acknowledged in order once on disk, bounded, resumed without doubles."""

import towerbridge
from towerbridge import v1

from tests.server.conftest import Served


def test_every_event_of_a_stream_gets_its_result_in_order(shared: Served):
    events = [towerbridge.event("view", f"item-{n % 50}", user_id=f"streamer {n % 3}") for n in range(3_000)]
    results = list(shared.client.stream_events(events))
    assert {result.status for result in results} == {v1.EventStatus.EVENT_STATUS_ACCEPTED}
    positions = [int(result.revision.rpartition("-")[2], 16) for result in results]
    assert positions == sorted(positions)
    assert len(set(positions)) == len(events)
    assert sum(shared.client.get_user(user_id=f"streamer {n}").event_count for n in range(3)) == len(events)
