"""Releases are loaded beside the live one, made live and taken back, while the server serves."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import towerbridge
from towerbridge import v1

from index.bundle import read_bundle
from server.errors import StartupError
from server.release import main
from tests.server.conftest import DAY_US, NOW_US, Served, offline_vector
from tests.server.releasing import FAILED, LIVE, LOADED, LOADING, PREVIOUS, serving, states, wait_until, write_bundles
from tests.tiny import write_tiny_bundle

HISTORY = [("item-1", "view", NOW_US - DAY_US), ("item-7", "cart", NOW_US - DAY_US + 1_000_000)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("bundles")
    return folder, write_bundles(folder)


@pytest.fixture
def served(bundles: tuple[Path, dict[str, str]], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(bundles[0] / "a", tmp_path / "data", aside=getattr(request, "param", False)) as one:
        yield one


ASIDE = pytest.mark.parametrize("served", [True], indirect=True, ids=["aside"])


def record(served: Served, user_id: str, events: list[tuple[str, str, int]]) -> None:
    served.client.record_events(
        [
            towerbridge.event(kind, item, user_id=user_id, occurred_at=datetime.fromtimestamp(at / 1e6, UTC))
            for item, kind, at in events
        ]
    )


def expected(bundle: Path, events: list[tuple[str, str, int]], k: int, *, without: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """What a release recommends, computed offline."""
    read = read_bundle(bundle)
    scores = np.asarray(read.item_vectors) @ offline_vector(read, events)
    ranked = [read.item_ids[row] for row in np.argsort(-scores, kind="stable")]
    return [item_id for item_id in ranked if item_id not in without][:k]


@ASIDE
def test_a_loaded_release_answers_only_once_it_is_promoted_and_a_rollback_takes_it_back(
    served: Served, bundles: tuple[Path, dict[str, str]]
):
    folder, ids = bundles
    record(served, "ann", HISTORY)
    client = served.client
    loaded = client.load_release("b").release
    assert (loaded.release_id, loaded.state, loaded.progress) == (ids["b"], LOADED, 1.0)
    assert loaded.memory_bytes > 0 and loaded.index_kind == "exact" and loaded.HasField("loaded_at")
    assert client.get_release().release_id == ids["a"]
    assert list(client.recommend(user_id="ann", limit=10).item_ids) == expected(folder / "a", HISTORY, 10)
    promoted = client.promote_release(ids["b"])
    assert (promoted.release.release_id, promoted.release.state, promoted.previous_release_id) == (ids["b"], LIVE, ids["a"])
    assert states(client) == {ids["b"]: LIVE, ids["a"]: PREVIOUS}
    answer = client.recommend(user_id="ann", limit=10)
    assert (answer.release_id, list(answer.item_ids)) == (ids["b"], expected(folder / "b", HISTORY, 10))
    back = client.rollback_release(expected_live_release_id=ids["b"])
    assert (back.release.release_id, back.previous_release_id) == (ids["a"], ids["b"])
    answer = client.recommend(user_id="ann", limit=10)
    assert (answer.release_id, list(answer.item_ids)) == (ids["a"], expected(folder / "a", HISTORY, 10))


def test_active_peoples_vectors_are_there_before_the_release_goes_live(served: Served, bundles: tuple[Path, dict[str, str]]):
    for number in range(20):
        record(served, f"person-{number}", HISTORY)
    served.client.load_release("b")
    assert served.client.promote_release(bundles[1]["b"]).people_ready == 20
    assert len(served.app.tenant.live.user_vectors) == 20


def test_promoting_the_live_release_and_loading_a_held_one_do_nothing(served: Served, bundles: tuple[Path, dict[str, str]]):
    ids = bundles[1]
    first = served.client.load_release("b").release
    assert served.client.load_release(str(bundles[0] / "b")).release == first
    assert served.client.load_release("a").release.state == LIVE
    again = served.client.promote_release(ids["a"])
    assert (again.release.release_id, again.previous_release_id) == (ids["a"], "")


def test_no_answer_mixes_releases_however_often_the_live_one_changes(served: Served, bundles: tuple[Path, dict[str, str]]):
    """The same person has other items in other releases, so every answer can be compared with that of the release it names."""
    folder, ids = bundles
    client = served.client
    record(served, "ann", HISTORY)
    client.load_release("b")
    of_release = {ids[name]: expected(folder / name, HISTORY, 20) for name in "ab"}
    vector_of = {ids[name]: offline_vector(read_bundle(folder / name), HISTORY).tolist() for name in "ab"}
    stop, wrong, answers = threading.Event(), [], []

    def check(release_id: str, item_ids: Any) -> None:
        answers.append(release_id)
        if list(item_ids) != of_release[release_id][: len(item_ids)] or not item_ids:
            wrong.append((release_id, list(item_ids)))

    def ask(number: int) -> None:
        with towerbridge.Client(f"127.0.0.1:{served.app.port}", timeout_s=60) as mine:
            while not stop.is_set():
                answer = mine.recommend(user_id="ann", limit=20)
                check(answer.release_id, answer.item_ids)
                if number == 0:
                    batch = mine.batch_recommend([v1.RecommendRequest(subject=v1.Subject(user_id="ann"), limit=20)] * 3)
                    for result in batch.results:
                        check(result.response.release_id, result.response.item_ids)
                if number == 1:
                    for release_id, vector in vector_of.items():
                        try:
                            found = mine.search_vectors([vector] * 3, limit=20, release_id=release_id)
                        except towerbridge.FailedPrecondition:
                            continue  # the other one is live
                        assert found.release_id == release_id
                        for result in found.results:
                            check(found.release_id, result.item_ids)
                        try:
                            raw = mine.recommend(vector=vector, release_id=release_id, limit=20)
                            check(raw.release_id, raw.item_ids)
                        except towerbridge.FailedPrecondition:
                            continue

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    client.promote_release(ids["b"])
    for _ in range(40):
        client.rollback_release()
    stop.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(answers) > 200 and set(answers) == set(of_release)


def test_a_preferences_bonus_is_added_to_one_releases_scores_only(served: Served, bundles: tuple[Path, dict[str, str]]):
    ids = bundles[1]
    record(served, "bea", HISTORY)
    served.client.set_profile(user_id="bea", liked_categories=["red"])
    served.client.load_release("b")
    answers: dict[str, list[tuple[list[str], list[float]]]] = {}
    stop = threading.Event()

    def ask() -> None:
        with towerbridge.Client(f"127.0.0.1:{served.app.port}", timeout_s=60) as mine:
            while not stop.is_set():
                answer = mine.recommend(user_id="bea", limit=20)
                answers.setdefault(answer.release_id, []).append((list(answer.item_ids), list(answer.scores)))

    thread = threading.Thread(target=ask)
    thread.start()
    served.client.promote_release(ids["b"])
    for _ in range(40):
        served.client.rollback_release()
    stop.set()
    thread.join(60)
    for release_id, several in answers.items():
        assert all(items == several[0][0] for items, _ in several), release_id
        np.testing.assert_allclose([scores for _, scores in several], np.tile(several[0][1], (len(several), 1)), atol=1e-5)


@ASIDE
def test_items_changed_while_a_release_is_loaded_and_after_are_changed_in_all_releases(
    served: Served, bundles: tuple[Path, dict[str, str]]
):
    ids, client, tenant = bundles[1], served.client, served.app.tenant
    entered, go_on = threading.Event(), threading.Event()
    prepare = tenant.control.prepare

    def held(order: Any, progress: Any, stopping: threading.Event) -> None:
        prepare(order, progress, stopping)
        entered.set()
        assert go_on.wait(60)

    tenant.control.prepare = held
    loading = threading.Thread(target=client.load_release, args=("b",))
    loading.start()
    assert entered.wait(60)
    client.upsert_items([towerbridge.item("new", categories=["red", "shoes"]), towerbridge.item("item-3", categories=["blue"])])
    client.remove_items(["item-4"])
    client.set_availability({"item-5": False})
    go_on.set()
    loading.join(60)
    client.upsert_items([towerbridge.item("newer", categories=["green"])])
    client.remove_items(["item-6"])
    client.set_availability({"item-8": False})
    changed: dict[str, set[str]] = {}
    for release in ("a", "b", "a"):
        if client.get_release().release_id != ids[release]:
            client.promote_release(ids[release])
        vector = [1.0] + [0.0] * 7
        found = set(client.search_vectors([vector], limit=1000).results[0].item_ids)
        assert {"new", "newer", "item-3"} <= found and not found & {"item-4", "item-5", "item-6", "item-8"}
        changed[release] = found
        fresh = read_bundle(bundles[0] / release)
        own = client.find_similar_items("new", limit=1)
        assert own.release_id == ids[release] and len(own.item_ids) == 1 and fresh.release_id == ids[release]
    assert changed["a"] == changed["b"]


def test_events_recorded_while_a_release_is_loaded_count_in_it(served: Served, bundles: tuple[Path, dict[str, str]]):
    folder, ids = bundles
    record(served, "ann", HISTORY[:1])
    served.client.load_release("b")
    record(served, "ann", HISTORY[1:])
    served.client.promote_release(ids["b"])
    answer = served.client.recommend(user_id="ann", limit=10)
    assert (list(answer.item_ids), answer.events_behind) == (expected(folder / "b", HISTORY, 10), 0)


def test_popularity_is_that_of_the_release_that_the_answer_names(tmp_path: Path):
    write_tiny_bundle(tmp_path / "a", n_items=50, dim=8)
    write_tiny_bundle(tmp_path / "b", n_items=50, dim=8, seed=1, drop_items=[f"item-{n}" for n in range(10)])
    with serving(tmp_path / "a", tmp_path / "data") as served:
        before = served.client.recommend(user_id="nobody", limit=3)
        served.client.promote_release(served.client.load_release("b").release.release_id)
        after = served.client.recommend(user_id="nobody", limit=3)
    assert list(before.item_ids) == ["item-0", "item-1", "item-2"]
    assert before.release_id != after.release_id
    assert after.degraded == [v1.DegradedReason.DEGRADED_REASON_NO_HISTORY]


def test_what_was_promoted_is_live_again_after_a_restart_and_can_be_rolled_back(
    bundles: tuple[Path, dict[str, str]], tmp_path: Path
):
    folder, ids = bundles
    with serving(folder / "a", tmp_path / "data") as served:
        record(served, "ann", HISTORY)
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    with serving(folder / "a", tmp_path / "data") as served:
        assert served.client.get_release().release_id == ids["b"]
        assert list(served.client.recommend(user_id="ann", limit=10).item_ids) == expected(folder / "b", HISTORY, 10)
        wait_until(lambda: states(served.client).get(ids["a"]) == PREVIOUS)
        assert served.client.rollback_release().release.release_id == ids["a"]
    with serving(folder / "a", tmp_path / "data") as served:
        assert served.client.get_release().release_id == ids["a"]


def test_another_configured_bundle_wins_over_what_was_promoted(bundles: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, ids = bundles
    with serving(folder / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    with serving(folder / "c", tmp_path / "data") as served:
        assert served.client.get_release().release_id == ids["c"]


def test_a_promoted_bundle_that_is_gone_is_named_at_start(tmp_path: Path):
    ids = write_bundles(tmp_path, "ab")
    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.promote_release(ids["b"])
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    with (
        pytest.raises(StartupError, match=rf"{ids['b']}.*{tmp_path / 'b'}.*put it back.*releases\.json"),
        serving(tmp_path / "a", tmp_path / "data"),
    ):
        pass
    (tmp_path / "elsewhere").rename(tmp_path / "b")
    with serving(tmp_path / "a", tmp_path / "data") as served:
        assert served.client.get_release().release_id == ids["b"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/etc", "lies outside"),
        ("..", "lies outside"),
        ("../../etc", "lies outside"),
        ("nowhere", "nowhere"),
        ("a/../..", "lies"),
    ],
)
def test_only_bundles_below_trusted_folders_are_loaded(served: Served, path: str, says: str):
    with pytest.raises(towerbridge.InvalidArgument, match=says) as refused:
        served.client.load_release(path)
    assert refused.value.field == "bundle"


def test_a_link_out_of_the_trusted_folder_is_not_followed(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_bundles(tmp_path / "in", "a")
    write_bundles(tmp_path / "out", "ab")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "out" / "b")
    with (
        serving(tmp_path / "in" / "a", tmp_path / "data") as served,
        pytest.raises(towerbridge.InvalidArgument, match="lies outside"),
    ):
        served.client.load_release("b")


def _swap_user_tower(target: Path, source: Path, *, honest: bool) -> None:
    """Puts another bundle's user tower into a bundle; honest: the manifest still has the old hash."""
    shutil.copy(source / "user_tower.pt2", target / "user_tower.pt2")
    if not honest:
        content = (target / "user_tower.pt2").read_bytes()
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"]["user_tower.pt2"] = {
            **manifest["files"]["user_tower.pt2"],
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }
        (target / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("honest", [True, False], ids=["old hash", "new hash"])
def test_a_user_tower_with_the_index_of_another_bundle_cannot_be_loaded(tmp_path: Path, honest: bool):
    ids = write_bundles(tmp_path, "abc")
    _swap_user_tower(tmp_path / "b", tmp_path / "c", honest=honest)
    with serving(tmp_path / "a", tmp_path / "data", aside=True) as served:
        with pytest.raises(towerbridge.InvalidArgument, match=r"user_tower|golden") as refused:
            served.client.load_release("b")
        assert refused.value.field == "bundle"
        held = states(served.client)
        assert held.pop(ids["a"]) == LIVE
        assert list(held.values()) == [FAILED]
        assert served.client.load_release("c").release.state == LOADED
        assert FAILED not in states(served.client).values()


def test_a_release_for_which_there_is_no_memory_is_refused_with_figures(served: Served, bundles: tuple[Path, dict[str, str]]):
    served.app.tenant.control.available = lambda: 1_000_000
    with pytest.raises(towerbridge.ResourceExhausted, match="MiB") as refused:
        served.client.load_release("b")
    assert refused.value.retry_after_s is None
    served.app.tenant.control.available = lambda: 1 << 40
    assert served.client.load_release("b").release.state == LOADED


def test_an_unknown_release_and_an_unexpected_one_are_refused(served: Served, bundles: tuple[Path, dict[str, str]]):
    ids = bundles[1]
    with pytest.raises(towerbridge.NotFound, match="load its bundle first"):
        served.client.promote_release("0000")
    with pytest.raises(towerbridge.FailedPrecondition, match="no release was live before"):
        served.client.rollback_release()
    served.client.load_release("b")
    served.client.promote_release(ids["b"])
    with pytest.raises(towerbridge.FailedPrecondition, match="nothing was changed"):
        served.client.rollback_release(expected_live_release_id=ids["a"])
    assert served.client.get_release().release_id == ids["b"]


class Held:
    """A preparation that waits to be let go, or to be stopped."""

    def __init__(self, served: Served) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        control = served.app.tenant.control
        prepare = control.prepare

        def held(order: Any, progress: Any, stopping: threading.Event) -> None:
            self.entered.set()
            while not self.let_go.wait(0.01):
                progress("verifying", 0.1)  # raises if the server stops
            prepare(order, progress, stopping)

        control.prepare = held


def test_while_one_bundle_is_loaded_the_same_is_waited_for_and_another_refused(
    served: Served, bundles: tuple[Path, dict[str, str]]
):
    ids = bundles[1]
    held = Held(served)
    with pytest.raises(towerbridge.DeadlineExceeded):  # the load goes on
        served.client.load_release("b", timeout_s=1.5)
    assert held.entered.is_set()
    loading = next(one for one in served.client.list_releases().releases if one.release_id == ids["b"])
    assert (loading.state, loading.stage) == (LOADING, "verifying")
    with pytest.raises(towerbridge.FailedPrecondition, match=ids["b"]):
        served.client.load_release("c")
    with pytest.raises(towerbridge.NotFound, match="is being loaded"):
        served.client.promote_release(ids["b"])
    held.let_go.set()
    assert served.client.load_release("b").release.state == LOADED


def test_a_stop_ends_a_load_and_leaves_nothing_of_it(bundles: tuple[Path, dict[str, str]], tmp_path: Path):
    folder, _ = bundles
    with serving(folder / "a", tmp_path / "data") as served:
        held = Held(served)
        with pytest.raises(towerbridge.DeadlineExceeded):
            served.client.load_release("b", timeout_s=1.0)
        assert held.entered.is_set()
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert list((tmp_path / "data" / "default" / "releases").glob("*")) == []


def test_the_oldest_release_that_is_merely_loaded_makes_room(served: Served, bundles: tuple[Path, dict[str, str]]):
    folder, ids = bundles
    served.client.load_release("b")
    served.client.promote_release(ids["b"])
    served.client.load_release("c")
    write_tiny_bundle(folder / "d", n_items=50, dim=8, seed=9)
    fourth = served.client.load_release("d").release.release_id
    assert states(served.client) == {ids["b"]: LIVE, ids["a"]: PREVIOUS, fourth: LOADED}
    with pytest.raises(towerbridge.NotFound):
        served.client.promote_release(ids["c"])


def test_a_vector_of_one_release_is_refused_when_another_goes_live_before_its_turn(
    served: Served, bundles: tuple[Path, dict[str, str]]
):
    ids = bundles[1]
    served.client.load_release("b")
    tenant = served.app.tenant
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(60)

    tenant._engine.call(hold)
    assert reached.wait(60)
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(served.client.recommend(vector=[1.0] * 8, release_id=ids["a"], limit=3))
        except towerbridge.TowerbridgeError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: len(tenant._engine._queries) == 1)
    # The swap is a call of the engine's, and calls run before the queries of their batch.
    tenant._engine.call(lambda: tenant.releases.make_live(tenant.releases.find(ids["b"])))  # type: ignore[arg-type]
    go_on.set()
    asking.join(60)
    assert isinstance(outcome[0], towerbridge.FailedPrecondition)


def test_text_encoders_that_differ_each_read_the_texts_for_their_own_release(tmp_path: Path):
    ids = write_bundles(tmp_path, "ab", text=True)
    with serving(tmp_path / "a", tmp_path / "data") as served:
        served.client.load_release("b")
        served.client.upsert_items([towerbridge.item("fresh", text="red wool shoes", categories=["red"])])
        own: dict[str, str] = {}
        for name in "ab":
            if served.client.get_release().release_id != ids[name]:
                served.client.promote_release(ids[name])
            similar = served.client.find_similar_items("fresh", limit=50)
            assert similar.release_id == ids[name] and similar.scores[0] > 0
            own[name] = ",".join(similar.item_ids)
    assert own["a"] != own["b"]


def test_event_types_that_only_the_next_release_knows_count_once_it_is_live(tmp_path: Path):
    write_tiny_bundle(tmp_path / "a", n_items=50, dim=8)
    write_tiny_bundle(tmp_path / "b", n_items=50, dim=8, seed=1, event_types={"view": 1, "cart": 2, "share": 3})
    shared_event = [("item-9", "share", NOW_US - DAY_US + 2_000_000)]
    with serving(tmp_path / "a", tmp_path / "data") as served:
        record(served, "ann", HISTORY)
        [before] = served.client.record_events([towerbridge.event("share", "item-2", user_id="bob")]).results
        record(served, "ann", shared_event)
        unknown = v1.EventStatus.EVENT_STATUS_ACCEPTED_UNKNOWN_TYPE
        assert before.status == unknown
        release_id = served.client.load_release("b").release.release_id
        [still] = served.client.record_events([towerbridge.event("share", "item-3", user_id="bob")]).results
        assert still.status == unknown
        assert list(served.client.recommend(user_id="ann", limit=10).item_ids) == expected(tmp_path / "a", HISTORY, 10)
        served.client.promote_release(release_id)
        whole = HISTORY + shared_event
        assert list(served.client.recommend(user_id="ann", limit=10).item_ids) == expected(tmp_path / "b", whole, 10)
        [after] = served.client.record_events([towerbridge.event("share", "item-4", user_id="bob")]).results
        assert after.status == v1.EventStatus.EVENT_STATUS_ACCEPTED


def _command(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.release", *arguments, "--target", f"127.0.0.1:{served.app.port}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@ASIDE
def test_the_shell_loads_promotes_and_rolls_back(served: Served, bundles: tuple[Path, dict[str, str]]):
    ids = bundles[1]
    loaded = _command(served, "load", "b")
    assert (loaded.returncode, loaded.stdout) == (0, f"release {ids['b']} is loaded, from {bundles[0] / 'b'}\n")
    assert _command(served, "promote", ids["b"]).stdout == f"release {ids['b']} is live, after {ids['a']}\n"
    listed = json.loads(_command(served, "list", "--json").stdout)["releases"]
    assert [(one["release_id"], one["state"]) for one in listed] == [
        (ids["b"], "RELEASE_STATE_LIVE"),
        (ids["a"], "RELEASE_STATE_PREVIOUS"),
    ]
    table = _command(served, "list").stdout.splitlines()
    assert table[0].split() == ["release", "state", "index", "MB", "bundle"] and table[1].split()[:2] == [ids["b"], "live"]
    assert _command(served, "rollback", "--expected", ids["b"]).stdout == f"release {ids['a']} is live, after {ids['b']}\n"
    refused = _command(served, "rollback", "--expected", ids["b"])
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1) and "FAILED_PRECONDITION" in refused.stderr
    assert _command(served, "load").returncode == 2


def test_the_shell_says_that_a_copy_of_a_release_that_is_held_was_not_read(
    bundles: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in "ab":
        shutil.copytree(bundles[0] / name, tmp_path / name)
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    (tmp_path / "copy" / "item_vectors.safetensors").write_bytes(b"damaged")
    with serving(tmp_path / "a", tmp_path / "data") as served:
        said = []
        for bundle in ("b", "copy"):
            assert main(["load", bundle, "--target", f"127.0.0.1:{served.app.port}"]) == 0
            said.append(capsys.readouterr())
    assert said[0].out == said[1].out == f"release {bundles[1]['b']} is loaded, from {tmp_path / 'b'}\n"
    assert said[0].err == ""
    assert said[1].err == "it was held already: of copy nothing but the manifest was read or checked\n"
