"""A server on a GPU answers as one on a CPU does. Skipped without one (`make gpu-check`)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import towerbridge

from index.gpu.graph import GraphedTower
from tests.server.conftest import Served
from tests.server.releasing import serving
from tests.tiny import write_tiny_bundle

pytestmark = pytest.mark.gpu
ITEMS = 20_000  # more tiles than a search looks into
PEOPLE = [f"person-{number}" for number in range(20)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate("ab"):
        write_tiny_bundle(folder / name, n_items=ITEMS, dim=16, seed=seed)
    return {name: folder / name for name in "ab"}


def act(served: Served) -> None:
    """The same events for everybody's history, of 1 to 20 events."""
    for number, person in enumerate(PEOPLE):
        items = np.random.default_rng(number).choice(ITEMS, number + 1, replace=False)
        served.client.record_events([towerbridge.event("view", f"item-{item}", user_id=person) for item in items])


def answers(served: Served) -> list[tuple[dict[str, float], str]]:
    """What everybody gets: scores by item id, and the release."""
    found = []
    for person in PEOPLE:
        answer = served.client.recommend(user_id=person, limit=50, exclude_seen=True)
        assert not answer.degraded
        found.append((dict(zip(answer.item_ids, answer.scores, strict=True)), answer.release_id))
    return found


def agree(one: list[tuple[dict[str, float], str]], other: list[tuple[dict[str, float], str]]) -> None:
    for (mine, my_release), (theirs, their_release) in zip(one, other, strict=True):
        assert my_release == their_release
        assert len(mine) == len(theirs) == 50
        assert len(set(mine) ^ set(theirs)) <= 4  # neighbours at the end whose scores differ by rounding
        np.testing.assert_allclose(sorted(mine.values()), sorted(theirs.values()), atol=1e-4)


def is_by_graphs_and_tiles(served: Served) -> bool:
    live = served.app.tenant.live
    return isinstance(live._user_tower, GraphedTower) and live.index.oracle._tiles is not None


def test_events_changes_and_releases_give_what_they_give_on_a_cpu(bundles: dict[str, Path], tmp_path: Path):
    heard: dict[str, list[list[tuple[dict[str, float], str]]]] = {}
    for device in ("cpu", "cuda"):
        with serving(bundles["a"], tmp_path / device, engine={"device": device}, index={"kind": "exact"}) as served:
            assert is_by_graphs_and_tiles(served) == (device == "cuda")
            act(served)
            heard[device] = [answers(served)]
            best = next(iter(heard[device][0][0][0]))
            served.client.set_availability({best: False})
            heard[device].append(answers(served))
            assert best not in heard[device][1][0][0]
            with ThreadPoolExecutor(1) as beside:  # answers go on while graphs are recorded and the scan is compiled
                loading = beside.submit(served.client.load_release, "b")
                while not loading.done():
                    agree(answers(served), heard[device][1])
            served.client.promote_release(loading.result().release.release_id)
            assert is_by_graphs_and_tiles(served) == (device == "cuda")
            heard[device].append(answers(served))
            served.client.rollback_release()
            heard[device].append(answers(served))
            assert served.app.tenant.live.index.violations == 0
    for on_cpu, on_gpu in zip(heard["cpu"], heard["cuda"], strict=True):
        agree(on_gpu, on_cpu)
