"""Whatever is done to releases, items and people, in any order, is what a plain model says."""

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import towerbridge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.bundle import Bundle, read_bundle
from tests.server.conftest import DAY_US, NOW_US, Served, offline_vector
from tests.server.releasing import LIVE, LOADED, PREVIOUS, serving, states, write_bundles
from tests.tiny import tiny_items

NAMES, KEEP, ITEMS = "abcd", 3, 12  # of the 50 items so many are changed, so that steps meet
number = st.integers(0, ITEMS - 1)
STEP = st.one_of(
    st.tuples(st.sampled_from(["load", "promote"]), st.sampled_from(NAMES)),
    st.tuples(st.just("rollback"), st.none()),
    st.tuples(st.sampled_from(["remove", "put", "add", "hide", "show", "record"]), number),
)


@dataclass
class Model:
    """What a server with bundle "a" holds."""

    live: str = "a"
    previous: str | None = None
    loaded: list[str] = field(default_factory=list)  # oldest first, the live one among them
    items: dict[str, bool] = field(default_factory=lambda: {f"item-{number}": True for number in range(50)})  # available?
    events: list[tuple[str, str, int]] = field(default_factory=list)

    def load(self, name: str) -> None:
        if name in self.loaded:
            return
        if len(self.loaded) == KEEP:
            self.loaded.remove(next(one for one in self.loaded if one not in (self.live, self.previous)))
        self.loaded.append(name)

    def states(self) -> dict[str, int]:
        return {name: LIVE if name == self.live else PREVIOUS if name == self.previous else LOADED for name in self.loaded}

    def found(self) -> set[str]:
        return {item_id for item_id, available in self.items.items() if available}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, Bundle]]:
    folder = tmp_path_factory.mktemp("bundles")
    ids = write_bundles(folder, NAMES)
    return folder, ids, {name: read_bundle(folder / name) for name in NAMES}


def change_releases(served: Served, model: Model, ids: dict[str, str], what: str, name: str | None) -> None:
    client = served.client
    match what, name:
        case "load", str():
            client.load_release(name)
            model.load(name)
        case "promote", str():
            if name not in model.loaded:
                with pytest.raises(towerbridge.NotFound):
                    client.promote_release(ids[name])
                return
            client.promote_release(ids[name])
            if name != model.live:
                model.live, model.previous = name, model.live
        case _:
            if model.previous is None:
                with pytest.raises(towerbridge.FailedPrecondition):
                    client.rollback_release()
                return
            client.rollback_release(expected_live_release_id=ids[model.live])
            model.live, model.previous = model.previous, model.live


def change_items(served: Served, model: Model, what: str, number: int) -> None:
    client, item_id = served.client, f"item-{number}"
    match what:
        case "remove":
            client.remove_items([item_id])
            model.items.pop(item_id, None)
        case "put" if item_id not in model.items:  # what the bundles say of it
            [row] = tiny_items(50).slice(number, 1).to_pylist()
            client.upsert_items([towerbridge.item(item_id, text=row["text"], categories=row["categories"])])
            model.items[item_id] = True
        case "add":
            client.upsert_items([towerbridge.item(f"new-{number}", categories=["red", "shoes"])])
            model.items.setdefault(f"new-{number}", True)
        case "hide" | "show" if item_id in model.items:
            client.set_availability({item_id: what == "show"})
            model.items[item_id] = what == "show"
        case "record" if item_id in model.items:
            at = NOW_US - DAY_US + len(model.events) * 1_000_000
            occurred = datetime.fromtimestamp(at / 1e6, UTC)
            client.record_events([towerbridge.event("view", item_id, user_id="ann", occurred_at=occurred)])
            model.events.append((item_id, "view", at))


def check(served: Served, model: Model, ids: dict[str, str], bundles: dict[str, Bundle]) -> None:
    client = served.client
    assert states(client) == {ids[name]: state for name, state in model.states().items()}
    found = client.search_vectors([[1.0] + [0.0] * 7], limit=1000)
    assert (found.release_id, set(found.results[0].item_ids)) == (ids[model.live], model.found())
    if not model.events:
        return
    bundle = bundles[model.live]
    scores = np.asarray(bundle.item_vectors) @ offline_vector(bundle, model.events)
    expected = [bundle.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    answer = client.recommend(user_id="ann", limit=1000)
    assert (answer.release_id, answer.events_behind, set(answer.item_ids)) == (ids[model.live], 0, model.found())
    known = set(bundle.item_ids)
    assert [one for one in answer.item_ids if one in known] == [one for one in expected if one in model.found()]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=5, max_size=30))
def test_releases_items_and_people_are_what_a_plain_model_says(
    world: tuple[Path, dict[str, str], dict[str, Bundle]], steps: list[tuple[str, str | int | None]]
):
    folder, ids, bundles = world
    model = Model(loaded=["a"])
    with tempfile.TemporaryDirectory() as data, serving(folder / "a", Path(data), releases={"keep": KEEP}) as served:
        for what, which in steps:
            if isinstance(which, int):
                change_items(served, model, what, which)
            else:
                change_releases(served, model, ids, what, which)
            check(served, model, ids, bundles)
