"""`python -m server.journal export --items`: the catalogue that training is given."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import towerbridge

from server.errors import StartupError
from server.journal.item_export import export_items
from tests.server.conftest import Serve
from tests.server.erasing import directory
from training.cli import main as training


def test_the_catalogue_is_exported_as_it_is_now(serve: Serve, tmp_path: Path):
    served = serve()
    written = [
        towerbridge.item("new", text="blue hat", categories=["blue", "hats"], attributes={"price": 9.5, "sizes": ["s", "m"]}),
        towerbridge.item("item-1", text="said anew"),
        towerbridge.item("hidden", text="not to be had"),
    ]
    served.client.upsert_items(written)
    served.client.set_availability({"hidden": False})
    served.client.remove_items(["item-2"])
    count = export_items(directory(served), tmp_path / "items.parquet")
    items = {row["item_id"]: row for row in pq.read_table(tmp_path / "items.parquet").to_pylist()}
    assert count == len(items) == 51
    assert {name: items["new"][name] for name in ("text", "categories", "price", "sizes", "year")} == {
        "text": "blue hat",
        "categories": ["blue", "hats"],
        "price": 9.5,
        "sizes": ["s", "m"],
        "year": None,
    }
    assert (items["item-1"]["text"], items["item-1"]["categories"]) == ("said anew", [])
    assert items["item-3"]["year"] == 2003 and items["item-3"]["in_stock"] is True
    assert "hidden" in items and "item-2" not in items


def test_an_attribute_is_a_column_of_the_one_type_that_fits_all_its_values(serve: Serve, tmp_path: Path):
    served = serve()
    when = datetime(2026, 11, 26, 8, tzinfo=UTC)
    attributes: list[dict[str, object]] = [
        {"mixed": "a", "number": 1, "since": when, "popularity": 7.0},
        {"mixed": 2.5, "number": 1.5},
        {"mixed": ["x", "y"]},
    ]
    served.client.upsert_items([towerbridge.item(f"new-{n}", attributes=row) for n, row in enumerate(attributes)])  # type: ignore[arg-type]
    export_items(directory(served), tmp_path / "items.parquet")
    table = pq.read_table(tmp_path / "items.parquet")
    assert table.schema.field("number").type == pa.float64()
    assert table.schema.field("mixed").type == pa.string()
    assert table["mixed"].to_pylist()[-3:] == ["a", "2.5", '["x", "y"]']
    assert table["since"].to_pylist()[-3:] == [when, None, None]
    assert "popularity" not in table.column_names  # training counts its own


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.journal", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_training_imports_events_and_items_as_the_command_wrote_them(serve: Serve, tmp_path: Path):
    served = serve()
    served.client.upsert_items([towerbridge.item("new", text="green shoes")])
    served.client.record_events([towerbridge.event("view", item, user_id="ann") for item in ("new", "item-1")])
    served.client.set_consent(user_id="ann", personalisation=True, training=True, source="terms")
    events, items = tmp_path / "events.parquet", tmp_path / "items.parquet"
    done = run("--data", directory(served).parent, "--out", events, "--items", items)
    assert done.returncode == 0 and done.stdout.endswith(f"{items}: 51 items\n")
    out = tmp_path / "data"
    assert training(["import", "parquet", "--events", str(events), "--items", str(items), "--out", str(out)]) == 0
    imported = pq.read_table(out / "items.parquet")
    assert imported.num_rows == 51 and {"title", "year", "in_stock"} <= set(imported.column_names)
    assert pq.read_table(out / "events.parquet")["item_id"].to_pylist() == ["new", "item-1"]


def test_an_items_file_that_is_there_is_not_replaced_and_nothing_is_exported(serve: Serve, tmp_path: Path):
    served = serve()
    items = tmp_path / "items.parquet"
    items.write_bytes(b"mine")
    done = run("--data", directory(served).parent, "--out", tmp_path / "events.parquet", "--items", items)
    assert done.returncode == 2 and done.stderr == f"error: {items} exists; choose another --items\n"
    assert items.read_bytes() == b"mine" and not (tmp_path / "events.parquet").exists()
    with pytest.raises(StartupError, match="choose another --items"):
        export_items(directory(served), items)
