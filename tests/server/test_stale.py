"""Read your events or be told: what happens when a vector cannot be made fresh within the deadline."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import towerbridge
from towerbridge import v1

from index.bundle import Bundle
from server.app import App
from server.config import Config
from tests.server.conftest import PRESUMED, Clock, Serve, Served, offline_vector

STALE = [v1.DegradedReason.DEGRADED_REASON_STALE_VECTOR]
EXPECTED_S = 5.0  # what the engine believes that an encode takes
TOO_SHORT_S = 2.0  # less than that even after some encodes that were quicker
LATER_US = 1_000_000


class SlowTower:
    """The real user tower, as slow as the test wants it."""

    def __init__(self, tower: Callable[..., torch.Tensor]) -> None:
        self._tower = tower
        self.seconds = 0.0
        self.runs = 0

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        time.sleep(self.seconds)
        return self._tower(*inputs)


class Slow:
    """A server whose engine believes that encoding takes longer than TOO_SHORT_S."""

    def __init__(self, served: Served) -> None:
        self.client, self.clock = served.client, served.clock
        self.tower = SlowTower(served.app.tenant.live._user_tower)
        served.app.tenant.live._user_tower = self.tower
        self._computer = served.app.tenant._engine._answer.__self__  # type: ignore[attr-defined]
        self.view("primer", "item-1")
        self.client.recommend(user_id="primer", limit=1)

    def view(self, user: str, *items: str) -> None:
        self.client.record_events([towerbridge.event("view", item, user_id=user) for item in items])

    def expect(self, seconds: float) -> None:
        self._computer._encode_seconds = seconds


@pytest.fixture(scope="module")
def slow_server(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    clock = Clock()
    config = Config(
        bundle=bundle_path,
        data=tmp_path_factory.mktemp("stale"),
        listen={"port": 0, "drain_seconds": 1.0},
        users={"refresh": False},  # only answers encode
        consent=PRESUMED,
    )
    app = App(config, clock_us=clock)
    app.start()
    served = Served(app, towerbridge.Client(f"127.0.0.1:{app.port}", timeout_s=20.0), clock)
    yield Slow(served)
    served.stop()


@pytest.fixture
def slow(slow_server: Slow) -> Slow:
    slow_server.expect(EXPECTED_S)
    return slow_server


@pytest.fixture
def behind(slow: Slow, request: pytest.FixtureRequest) -> str:
    """A user with a vector and two more events since."""
    user = f"behind {request.node.name}"[:200]
    slow.view(user, "item-4")
    slow.client.recommend(user_id=user, limit=1)
    slow.clock.now_us += LATER_US
    slow.view(user, "item-9", "item-13")
    return user


def computed_us(response: v1.RecommendResponse | v1.ScoreItemsResponse) -> int:
    when = response.vector_computed_at.ToDatetime(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return round(when.total_seconds() * 1e6)


def scores_by(bundle: Bundle, vector: np.ndarray, item_ids: list[str]) -> np.ndarray:
    return bundle.item_vectors[[bundle.item_ids.index(item_id) for item_id in item_ids]] @ vector


def test_a_vector_that_cannot_be_made_fresh_in_time_fails_the_call_before_it_is_tried(slow: Slow, behind: str):
    runs = slow.tower.runs
    with pytest.raises(towerbridge.DeadlineExceeded, match=r"could not be made fresh in time.*set allow_stale"):
        slow.client.recommend(user_id=behind, limit=3, timeout_s=TOO_SHORT_S)
    with pytest.raises(towerbridge.DeadlineExceeded, match="could not be made fresh in time"):
        slow.client.score_items(user_id=behind, item_ids=["item-1"], timeout_s=TOO_SHORT_S)
    assert slow.tower.runs == runs


def test_the_older_vector_is_used_and_said_to_be_stale_where_that_is_allowed(slow: Slow, behind: str, bundle: Bundle):
    answer = slow.client.recommend(user_id=behind, limit=5, allow_stale=True, timeout_s=TOO_SHORT_S)
    assert list(answer.degraded) == STALE
    assert answer.events_behind == 2
    assert computed_us(answer) == slow.clock.now_us - LATER_US
    older = offline_vector(bundle, [("item-4", "view", 0)])
    np.testing.assert_allclose(answer.scores, scores_by(bundle, older, list(answer.item_ids)), atol=1e-5)


def test_scores_come_from_the_older_vector_too(slow: Slow, behind: str, bundle: Bundle):
    answer = slow.client.score_items(user_id=behind, item_ids=["item-1", "item-2"], allow_stale=True, timeout_s=TOO_SHORT_S)
    assert (list(answer.degraded), answer.events_behind) == (STALE, 2)
    assert computed_us(answer) == slow.clock.now_us - LATER_US
    older = offline_vector(bundle, [("item-4", "view", 0)])
    np.testing.assert_allclose(answer.scores, scores_by(bundle, older, ["item-1", "item-2"]), atol=1e-5)


def test_seen_items_stay_out_of_a_stale_answer_even_if_the_vector_has_not_seen_them(slow: Slow, behind: str):
    answer = slow.client.recommend(user_id=behind, limit=50, allow_stale=True, exclude_seen=True, timeout_s=TOO_SHORT_S)
    assert list(answer.degraded) == STALE
    assert len(answer.item_ids) == 47
    assert not {"item-4", "item-9", "item-13"} & set(answer.item_ids)


def test_without_an_earlier_vector_the_popular_items_are_marked_stale(slow: Slow):
    nobody = slow.client.recommend(user_id="nobody", limit=5)
    slow.view("newcomer", "item-30", "item-31")
    answer = slow.client.recommend(user_id="newcomer", limit=5, allow_stale=True, timeout_s=TOO_SHORT_S)
    assert list(answer.degraded) == STALE
    assert (list(answer.item_ids), answer.events_behind) == (list(nobody.item_ids), 2)
    assert not answer.HasField("vector_computed_at")
    inline = slow.client.recommend(history=["item-30"], limit=5, allow_stale=True, timeout_s=TOO_SHORT_S)
    assert (list(inline.degraded), list(inline.item_ids), inline.events_behind) == (STALE, list(nobody.item_ids), 1)


def test_exclusions_hold_for_popular_items_that_stand_in_for_a_stale_vector(slow: Slow):
    slow.view("newcomer who saw", "item-0", "item-1")
    answer = slow.client.recommend(
        user_id="newcomer who saw",
        limit=50,
        allow_stale=True,
        exclude_seen=True,
        exclude_item_ids=["item-2"],
        timeout_s=TOO_SHORT_S,
    )
    assert list(answer.degraded) == STALE
    assert len(answer.item_ids) == 47 and not {"item-0", "item-1", "item-2"} & set(answer.item_ids)


def test_allow_stale_changes_nothing_where_there_is_time(slow: Slow, behind: str, bundle: Bundle):
    answer = slow.client.recommend(user_id=behind, limit=5, allow_stale=True)
    assert (list(answer.degraded), answer.events_behind) == ([], 0)
    assert computed_us(answer) == slow.clock.now_us
    fresh = offline_vector(bundle, [("item-4", "view", 0), ("item-9", "view", LATER_US), ("item-13", "view", LATER_US)])
    np.testing.assert_allclose(answer.scores, scores_by(bundle, fresh, list(answer.item_ids)), atol=1e-5)
    # Fresh now, so that even the short deadline is enough.
    again = slow.client.recommend(user_id=behind, limit=5, timeout_s=TOO_SHORT_S)
    assert list(again.item_ids) == list(answer.item_ids)


def test_a_fresh_vector_or_one_that_was_sent_needs_no_time_to_encode(slow: Slow):
    assert not slow.client.recommend(user_id="primer", limit=1, timeout_s=TOO_SHORT_S).degraded
    assert not slow.client.recommend(vector=[1.0] * 8, limit=1, timeout_s=TOO_SHORT_S).degraded
    [result] = slow.client.search_vectors([[1.0] * 8], limit=1, timeout_s=TOO_SHORT_S).results
    assert result.item_ids


def test_one_late_row_of_a_batch_fails_alone(slow: Slow, behind: str):
    late = v1.RecommendRequest(subject=v1.Subject(user_id=behind), limit=1)
    fresh = v1.RecommendRequest(subject=v1.Subject(user_id="primer"), limit=1)
    stale = v1.RecommendRequest(subject=v1.Subject(user_id=behind), limit=1, allow_stale=True)
    first, second, third = slow.client.batch_recommend([late, fresh, stale], timeout_s=TOO_SHORT_S).results
    assert (first.error.code, first.error.field) == (4, "requests[0]")
    assert not second.response.degraded
    assert list(third.response.degraded) == STALE


def test_an_answer_that_waits_in_vain_ends_at_its_deadline(serve: Serve):
    """The engine expects nothing slow yet, so it tries: the caller still gets its error in time."""
    served = serve(users={"refresh": False})
    tower = SlowTower(served.app.tenant.live._user_tower)
    served.app.tenant.live._user_tower = tower  # type: ignore[assignment]
    served.client.record_events([towerbridge.event("view", "item-1", user_id="a")])
    tower.seconds = 1.0
    started = time.monotonic()
    with pytest.raises(towerbridge.DeadlineExceeded):
        served.client.recommend(user_id="a", limit=1, timeout_s=0.2)
    assert time.monotonic() - started < 0.8
    assert not served.client.recommend(user_id="a", limit=1).degraded


def test_the_engine_learns_what_an_encode_takes(serve: Serve):
    served = serve(users={"refresh": False})
    tower = SlowTower(served.app.tenant.live._user_tower)
    served.app.tenant.live._user_tower = tower  # type: ignore[assignment]
    tower.seconds = 1.5
    served.client.recommend(history=["item-1"], limit=1)  # a fifth of it is expected from now on
    runs = tower.runs
    with pytest.raises(towerbridge.DeadlineExceeded, match="could not be made fresh in time"):
        served.client.recommend(history=["item-1"], limit=1, timeout_s=0.25)
    assert tower.runs == runs
