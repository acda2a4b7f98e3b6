"""The user tower as native code: compiled once, checked, kept, and never the reason that a server does not answer."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import towerbridge

from index.bundle import Bundle, BundleError, check_user_tower, read_bundle
from server.app import App
from server.config import Config
from server.releases.compiled import CompiledTower
from tests.server.conftest import NOW_US, PRESUMED, Serve, Served, offline_vector
from tests.tiny import write_tiny_bundle

EVENTS = [("item-3", "view", NOW_US - 90_000_000), ("item-8", "purchase", NOW_US - 5_000_000), ("item-1", "cart", NOW_US)]
USED = "uses its compiled user tower"
pytestmark = [
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def first(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder that a first server has left, and how many bytes lay there at most while it compiled."""
    data = tmp_path_factory.mktemp("first")
    engine = {"compile": True}
    app = App(Config(bundle=bundle_path, data=data, listen={"port": 0}, engine=engine, consent=PRESUMED))  # type: ignore[arg-type]
    app.start()
    folder, most = data / "default" / "compiled", 0
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(app.tenant.towers.wait)
        while not done.done():
            most = max(most, stored(folder))
            time.sleep(0.1)
    app.stop()
    return folder, most


def stored(folder: Path) -> int:
    """Bytes below a folder in which files come and go."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(root, name).stat().st_size
    return total


@pytest.fixture(scope="module")
def compiled(first: tuple[Path, int]) -> Path:
    return first[0]


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it where the next server looks."""
    return shutil.copytree(compiled, tmp_path / "data" / "default" / "compiled")


def start(serve: Serve, *bundles: Path) -> Served:
    served = serve(engine={"compile": True}, releases={"bundles": bundles})
    served.app.tenant.towers.wait()
    return served


def tower(folder: Path) -> Path:
    [path] = folder.glob("*.pt2")
    return path


def check_answers(served: Served, bundle: Bundle) -> None:
    served.client.record_events(
        [
            towerbridge.event(kind, item_id, visitor_id="u", occurred_at=datetime.fromtimestamp(time_us / 1e6, tz=UTC))
            for item_id, kind, time_us in EVENTS
        ]
    )
    answer = served.client.recommend(visitor_id="u", limit=10)
    cosines = bundle.item_vectors @ offline_vector(bundle, EVENTS)
    np.testing.assert_allclose(answer.scores, np.sort(cosines)[::-1][:10], atol=1e-5)


def test_a_compiled_tower_is_kept_where_nobody_else_can_write_and_nothing_else_is_left(compiled: Path):
    assert compiled.stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in compiled.iterdir()) == [".pt2", ".sha256"]


def test_to_compile_takes_a_few_megabytes_of_the_data_directory(first: tuple[Path, int]):
    assert 0 < first[1] < 50_000_000  # precompiled headers of torch alone are 300 MB


def test_a_compiled_tower_gives_the_golden_vectors_and_its_server_the_same_answers(
    serve: Serve, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", "no-such-compiler")  # so what is there is used
    check_user_tower(bundle, CompiledTower(tower(folder)))
    with caplog.at_level("INFO", "server.releases.compiled"):
        check_answers(start(serve), bundle)
    assert [USED in line for line in caplog.messages] == [True]


def test_another_tower_does_not_pass_for_the_bundles(folder: Path, bundle: Bundle):
    class Other(CompiledTower):
        def forward(self, *inputs):
            return super().forward(*inputs).flip(1)

    with pytest.raises(BundleError, match="golden user rows differ"):
        check_user_tower(bundle, Other(tower(folder)))


def test_a_damaged_tower_is_deleted_and_the_exported_one_answers(
    serve: Serve, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    path = tower(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    check_answers(start(serve), bundle)
    assert any("is damaged" in line for line in caplog.messages)
    assert not path.exists()


def test_a_tower_that_others_could_have_written_is_not_run(
    serve: Serve, folder: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
):
    folder.chmod(0o777)
    check_answers(start(serve), bundle)
    assert any("others may write" in line for line in caplog.messages)
    assert not any(USED in line for line in caplog.messages)


def test_without_a_compiler_one_line_says_so_and_the_exported_tower_answers(
    serve: Serve, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_answers(start(serve), bundle)
    [line] = [line for line in caplog.messages if "exported user tower" in line]
    assert "no C++ compiler 'no-such-compiler'; install g++" in line


def test_a_compiler_that_fails_costs_one_line(
    serve: Serve, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", "false")
    check_answers(start(serve), bundle)
    [line] = [line for line in caplog.messages if "exported user tower" in line]
    assert "could not be compiled" in line


def test_a_server_that_stops_does_not_wait_for_the_compiler(serve: Serve):
    served = serve(engine={"compile": True})
    serve.stop(served)  # type: ignore[attr-defined]
    assert not list(served.app.tenant.folder.glob("compiled/*.pt2"))


def test_the_tower_of_a_release_that_is_loaded_is_compiled_before_it_can_be_promoted(
    serve: Serve, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    other = tmp_path / "other"
    release_id = write_tiny_bundle(other, n_items=50, dim=8, seed=7)
    served = start(serve, tmp_path)
    with caplog.at_level("INFO", "server.releases.compiled"):
        served.client.load_release(str(other), timeout_s=600.0)
    assert any(f"release {release_id} {USED}" in line for line in caplog.messages)
    assert len(list(folder.glob("*.pt2"))) == 2
    served.client.promote_release(release_id)
    check_answers(served, read_bundle(other))


def test_closing_ends_a_load_that_waits_for_the_compiler(serve: Serve, folder: Path, tmp_path: Path):
    other = tmp_path / "other"
    write_tiny_bundle(other, n_items=50, dim=8, seed=8)
    served = start(serve, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(served.client.load_release, str(other), timeout_s=600.0)
        while not list(folder.glob("compiling-*")):
            time.sleep(0.01)
        serve.stop(served)  # type: ignore[attr-defined]
        assert loading.exception(timeout=60.0) is not None
    assert not list(folder.glob("compiling-*"))
    assert len(list(folder.glob("*.pt2"))) == 1
