"""The figures of a call's stages, by what a server did."""

import towerbridge

from server.telemetry.histogram import Histogram
from tests.server.conftest import Serve


def count(histogram: Histogram) -> int:
    return sum(histogram.counts)


def test_every_stage_of_an_event_and_an_answer_is_observed(serve: Serve):
    served = serve(users={"refresh": False})
    stages = served.app.tenant.stages
    commits = count(stages.fsync)
    served.client.record_events([towerbridge.event("view", "item-1", visitor_id="u")])
    assert count(stages.fsync) > commits
    assert stages.fsync.total > 0.0
    served.client.recommend(visitor_id="u", limit=5)
    one = [count(histogram) for histogram in (stages.queue, stages.encode, stages.search, stages.batch_size, stages.rules)]
    assert one == [1, 1, 1, 1, 1]
    assert stages.batch_size.total == 1.0
    served.client.recommend(visitor_id="u", limit=5)  # the vector is there now
    assert (count(stages.search), count(stages.encode)) == (2, 1)
    served.client.recommend(visitor_id="nobody", limit=5)  # is not asked of the engine
    assert (count(stages.search), count(stages.rules)) == (2, 3)
