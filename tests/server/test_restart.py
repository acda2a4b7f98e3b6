"""What a restart keeps, and what start refuses."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import apsw
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import towerbridge

from index.bundle import Bundle
from server.app import App
from server.config import Config
from server.errors import StartupError
from tests.server.conftest import Serve, offline_vector


def test_everything_acknowledged_is_there_after_a_restart(serve: Serve):
    served = serve()
    client = served.client
    client.record_events([towerbridge.event("view", f"item-{n}", user_id="returner") for n in (1, 2, 3)])
    repeated = towerbridge.event("view", "item-9", user_id="returner")
    client.record_events([repeated])
    client.record_events([towerbridge.event("view", "later", user_id="returner")])
    client.upsert_items([towerbridge.item("kept", categories=["red"], attributes={"title": "Kept"})])
    client.remove_items(["item-3", "item-40"])
    client.set_availability({"item-41": False})
    user, answer = client.get_user(user_id="returner"), client.recommend(user_id="returner", limit=60)
    revision = client.record_events([towerbridge.event("view", "x", user_id="other")]).revision
    serve.stop(served)  # type: ignore[attr-defined]

    client = serve().client
    again, same = client.get_user(user_id="returner"), client.recommend(user_id="returner", limit=60, min_revision=revision)
    assert list(again.item_ids) == list(user.item_ids)
    assert (again.event_count, again.waiting_event_count) == (4, 1)
    assert list(same.item_ids) == list(answer.item_ids)
    np.testing.assert_allclose(same.scores, answer.scores, atol=1e-6)
    assert client.get_items(["kept"]).items[0].item.attributes["title"].string_value == "Kept"
    assert client.record_events([repeated]).results[0].status == 2  # DUPLICATE
    client.upsert_items([towerbridge.item("later", categories=["blue"])])
    assert client.get_user(user_id="returner").event_count == 5


def test_events_on_a_removed_item_wait_across_a_restart_too(serve: Serve):
    served = serve()
    served.client.record_events([towerbridge.event("view", "item-5", user_id="a")])
    served.client.remove_items(["item-5"])
    served.client.record_events([towerbridge.event("view", "item-5", user_id="a")])
    before = served.client.get_user(user_id="a")
    serve.stop(served)  # type: ignore[attr-defined]
    after = serve().client.get_user(user_id="a")
    assert (before.event_count, before.waiting_event_count) == (1, 1)
    assert (after.event_count, after.waiting_event_count) == (1, 1)


def test_texts_are_encoded_once_and_their_embeddings_kept(serve: Serve, text_bundle_path: Path, tmp_path: Path):
    served = serve(bundle=text_bundle_path)
    served.client.upsert_items([towerbridge.item("wordy", text="black wool hats")])
    first = served.client.find_similar_items("wordy", limit=5)
    serve.stop(served)  # type: ignore[attr-defined]
    connection = apsw.Connection(str(tmp_path / "data" / "default" / "journal.sqlite"))
    [(embedding, sha256)] = connection.execute("SELECT text_embedding, encoder_sha256 FROM items WHERE item_id = 'wordy'")
    assert len(embedding) == 16 * 4 and len(sha256) == 64
    connection.execute("UPDATE items SET text_embedding = NULL, encoder_sha256 = NULL WHERE item_id = 'wordy'")
    connection.close()
    again = serve(bundle=text_bundle_path)  # as after a bundle with another text encoder: it must be encoded at start
    assert list(again.client.find_similar_items("wordy", limit=5).item_ids) == list(first.item_ids)


@pytest.fixture
def history_file(tmp_path: Path) -> Path:
    old = datetime(2019, 5, 1, tzinfo=UTC)
    rows = {
        "user_id": ["u1", "u1", "u1", "u2", "u2", ""],
        "item_id": ["item-1", "item-2", "item-2", "item-3", "item-4", "item-1"],
        "event_type": ["view", "view", "view", "purchase", "Bad Type", "view"],
        "occurred_at": [old] * 6,
    }
    path = tmp_path / "events.parquet"
    schema = pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("event_type", pa.string()),
            ("occurred_at", pa.timestamp("us", "UTC")),
        ]
    )
    pq.write_table(pa.table(rows, schema=schema), path)
    return path


def run_import(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.journal", "import", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_history_of_any_age_is_imported_once(serve: Serve, tmp_path: Path, history_file: Path, bundle: Bundle):
    data = tmp_path / "data"
    agreed = ("--consent", "personalisation", "--consent-source", "terms")
    first = run_import(history_file, "--data", data, *agreed)
    assert (first.returncode, first.stdout.splitlines()[0]) == (0, "4 events written, 0 known already, 2 refused")
    assert "user_id: must not be empty" in first.stdout
    second = run_import(history_file, "--data", data, *agreed)
    assert second.stdout.startswith("0 events written, 4 known already, 2 refused")
    client = serve().client
    assert list(client.get_user(user_id="u1").item_ids) == ["item-2", "item-2", "item-1"]
    client.recommend(user_id="u2", limit=1)
    np.testing.assert_allclose(
        client.get_user(user_id="u2").vector, offline_vector(bundle, [("item-3", "purchase", 0)]), atol=1e-5
    )


def test_import_refuses_a_directory_in_use_and_files_that_are_no_events(serve: Serve, tmp_path: Path, history_file: Path):
    serve()
    busy = run_import(history_file, "--data", tmp_path / "data")
    assert busy.returncode == 2
    assert busy.stderr.count("\n") == 1 and "in use by another process" in busy.stderr
    missing = run_import(tmp_path / "absent.parquet", "--data", tmp_path / "other")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    pq.write_table(pa.table({"user_id": ["a"]}), tmp_path / "wrong.parquet")
    wrong = run_import(tmp_path / "wrong.parquet", "--data", tmp_path / "other")
    assert wrong.returncode == 2 and "no column item_id" in wrong.stderr


def start(bundle: Path, data: Path, **sections: object) -> None:
    App(Config(bundle=bundle, data=data, **{"listen": {"port": 0}, "engine": {"compile": False}, **sections})).start()  # type: ignore[arg-type]


def test_a_second_server_on_the_same_directory_is_refused(serve: Serve, bundle_path: Path, tmp_path: Path):
    serve()
    with pytest.raises(StartupError, match="in use by another process"):
        start(bundle_path, tmp_path / "data")


def test_a_port_in_use_is_refused(serve: Serve, bundle_path: Path, tmp_path: Path):
    port = serve().app.port
    with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}"):
        start(bundle_path, tmp_path / "other", listen={"port": port})


def test_a_missing_bundle_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(StartupError, match="no bundle"):
        start(tmp_path / "no bundle", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_cuda_without_cuda_is_refused_with_what_to_install(bundle_path: Path, tmp_path: Path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(StartupError, match="gpu extra"):
        start(bundle_path, tmp_path / "data", engine={"device": "cuda"})


def test_a_newer_or_damaged_or_foreign_journal_is_refused(bundle_path: Path, tmp_path: Path):
    directory = tmp_path / "data" / "default"
    directory.mkdir(parents=True)
    path = directory / "journal.sqlite"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(StartupError, match="damaged or not a journal"):
        start(bundle_path, tmp_path / "data")
    path.unlink()
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE foreign_table (x)")
    connection.close()
    with pytest.raises(StartupError, match="not a journal"):
        start(bundle_path, tmp_path / "data")
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(StartupError, match="newer Towerbridge"):
        start(bundle_path, tmp_path / "data")


def test_a_text_encoder_of_another_size_is_refused_at_start(
    text_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Wider:
        """An encoder that gives more components than the manifest says."""

        def __init__(self, encoder: Path) -> None:
            self.closed = False

        def encode(self, texts: list[str], *, deadline: float | None = None) -> np.ndarray:
            return np.ones((len(texts), 17), dtype=np.float32)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("server.catalogue.text_workers.TextWorker", Wider)
    with pytest.raises(StartupError, match="gives 17 components, the manifest says 16"):
        start(text_bundle_path, tmp_path / "data")
