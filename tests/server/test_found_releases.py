"""What a review of releases found."""

import errno
import threading
from pathlib import Path

import grpc
import pytest
import towerbridge
from towerbridge import v1

from server.releases.preparing import Order, Progress, prepare
from server.releases.record import Recorded, read_record
from tests.server.about_people import refused
from tests.server.releasing import LIVE, LOADED, PREVIOUS, serving, states, wait_until, write_bundles
from tests.tiny import write_tiny_bundle


@pytest.fixture
def ids(tmp_path: Path) -> dict[str, str]:
    return write_bundles(tmp_path, "abc")


def test_what_was_promoted_under_an_older_configuration_stays_forgotten_when_that_comes_back(
    ids: dict[str, str], tmp_path: Path
):
    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    for configured in "ca":
        with serving(tmp_path / configured, tmp_path / "data") as served:
            assert states(served.client)[ids[configured]] == LIVE


def test_a_bundle_that_cannot_be_loaded_takes_no_other_releases_place(ids: dict[str, str], tmp_path: Path):
    write_tiny_bundle(tmp_path / "damaged", n_items=50, dim=8, seed=9)
    vectors = tmp_path / "damaged" / "item_vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"\xff")
    with serving(tmp_path / "a", tmp_path / "data", releases={"keep": 3}) as served:
        served.client.load_release("b")
        served.client.load_release("c")
        with pytest.raises(towerbridge.InvalidArgument):
            served.client.load_release("damaged")
        held = states(served.client)
        assert (held[ids["a"]], held[ids["b"]], held[ids["c"]]) == (LIVE, LOADED, LOADED)


def test_a_promotion_that_was_refused_is_not_in_the_record(
    ids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        with monkeypatch.context() as broken:
            broken.setattr("server.releases.record.sync_directory", full)
            with pytest.raises(towerbridge.Unavailable, match="mend the disk"):
                served.client.promote_release(ids["b"])
        assert states(served.client)[ids["a"]] == LIVE
        assert read_record(tmp_path / "data" / "default") is None
        served.client.promote_release(ids["b"])
        with monkeypatch.context() as broken:
            broken.setattr("server.releases.record.sync_directory", full)
            with pytest.raises(towerbridge.Unavailable):
                served.client.rollback_release()
    with serving(tmp_path / "a", tmp_path / "data") as served:
        assert states(served.client)[ids["b"]] == LIVE


def test_a_release_that_comes_back_and_one_that_is_asked_for_do_not_stop_the_start(ids: dict[str, str], tmp_path: Path):
    other = write_tiny_bundle(tmp_path / "d", n_items=50, dim=8, seed=9)
    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    with serving(tmp_path / "a", tmp_path / "data") as served:
        tenant = served.app.tenant
        wait_until(lambda: states(served.client).get(ids["a"]) == PREVIOUS)
        control, prepare, go_on = tenant.control, tenant.control.prepare, threading.Event()

        def held(order: Order, progress: Progress, stopping: threading.Event) -> None:
            go_on.wait(60)
            prepare(order, progress, stopping)

        control.prepare = held
        loading = control.load("c")
        control.bring_back(Recorded(release_id=ids["c"], bundle=str(tmp_path / "c")))  # joins the load
        control.bring_back(Recorded(release_id=other, bundle=str(tmp_path / "d")))  # is refused while that goes on
        assert control._coming_back is None
        go_on.set()
        assert loading.result(60).release_id == ids["c"]


def test_a_rollback_while_the_one_before_is_loaded_again_is_to_be_repeated(
    ids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    go_on = threading.Event()

    def held(order: Order, progress: Progress) -> None:
        go_on.wait(60)
        prepare(order, progress)

    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    monkeypatch.setattr("tests.server.releasing.prepare", held)
    with serving(tmp_path / "a", tmp_path / "data") as served:
        with refused(grpc.StatusCode.UNAVAILABLE, "which was live before, is being loaded; repeat the call"):
            served.client._releases.RollbackRelease(v1.RollbackReleaseRequest(), timeout=20)
        go_on.set()
        wait_until(lambda: states(served.client).get(ids["a"]) == PREVIOUS)
        assert served.client.rollback_release().release.release_id == ids["a"]


def test_vectors_of_a_release_that_is_live_again_take_in_what_happened_meanwhile(ids: dict[str, str], tmp_path: Path):
    people = [f"p{n}" for n in range(5)]
    with serving(tmp_path / "a", tmp_path / "data") as served:
        client, tenant = served.client, served.app.tenant
        client.record_events([towerbridge.event("view", "item-1", user_id=one) for one in people])
        for one in people:
            client.recommend(user_id=one, limit=1)
        client.load_release("b")
        client.promote_release(ids["b"])
        client.record_events([towerbridge.event("purchase", "item-2", user_id=one) for one in people])
        client.rollback_release()
        live = tenant.live

        def behind() -> list[int]:
            versions = {key: tenant.people.history(key).version for key in tenant.people.keys_in_memory()}
            stored = {key: live.user_vectors.get(key) for key in versions}
            return [key for key, vector in stored.items() if vector is None or vector.version != versions[key]]

        wait_until(lambda: not behind())


def test_with_several_releases_the_engine_comes_to_rest(ids: dict[str, str], tmp_path: Path):
    with serving(tmp_path / "a", tmp_path / "data") as served:
        for name in "bc":
            served.client.load_release(name)
        served.client.promote_release(ids["b"])
        served.client.rollback_release()
        tenant = served.app.tenant
        turns = 3 * 4 + 1  # each release's jobs once, and one more for where the round began

        def rest() -> bool:
            return not all(tenant.releases.upkeep() for _ in range(turns))

        wait_until(lambda: tenant._engine.call(rest).result())
