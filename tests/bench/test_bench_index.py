"""`python -m bench.index`: what it writes, what its generator draws, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.index.__main__ import main
from bench.index.engines import Engine
from bench.index.generator import generate
from bench.index.options import PEERS as PEER_NAMES
from bench.index.peers import PEERS, is_installed
from bench.index.truth import complete, find_truth, recall

ROOT = Path(__file__).parents[2]
NUMBER = (int, float)
OURS = ["towerbridge-exact", "towerbridge-ivf", "towerbridge-faiss-ivf"]


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.index", *map(str, arguments)]
    quick = ["--repeats", "1", "--seconds", "0.01", "--queries-count", "50"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    return subprocess.run([*command, *quick], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_tiny_run_measures_everything_that_the_results_promise(tmp_path: Path):
    peers = [name for name in PEER_NAMES if is_installed(name)]
    out = tmp_path / "results.json"
    done = run(
        "--items", 2000, "--dim", 16, "--k", 10, "--recall", 0.9, "--peers", ",".join(peers), "--streaming",
        "--under-writes", "0,1000", "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    assert {"cpu", "cores", "python"} <= results["hardware"].keys()
    assert [engine["engine"] for engine in results["engines"]] == [*OURS, *peers]
    for engine in results["engines"]:
        check_engine(engine)
    exact = results["engines"][0]
    assert exact["recall"] == 1.0
    assert [row["recall"] for row in exact["filters"]] == [1.0] * 5
    assert results["violations"] == 0
    assert results["topk"]["topk_speedup_from_memory"] > 0
    assert results["settings"]["calibration_and_measured_queries_are_disjoint"]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "towerbridge-ivf" in done.stdout
    check_streaming(results["streaming"], peers)


def check_engine(engine: dict) -> None:
    name = engine["engine"]
    ours = name.startswith("towerbridge")
    assert 0 < engine["recall"] <= 1
    assert engine["build_s"] >= 0
    assert engine["memory_mb"] >= 0
    assert engine["batch"].keys() == {"1", "16", "64"}
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in engine["batch"].values())
    if name in ("faiss-hnsw", "faiss-flat"):
        assert engine["upserts_per_s"] is engine["removes_per_s"] is engine["under_writes"] is None
    else:
        assert engine["upserts_per_s"] > 0
        assert engine["removes_per_s"] > 0
        assert [row["rate"] for row in engine["under_writes"]] == [0, 1000]
        assert all(
            isinstance(row[key], NUMBER) for row in engine["under_writes"] for key in ("upserts_per_s", "p50_ms", "p99_ms")
        )
    if ours:
        assert all(row["missed"] == 0 for row in engine["under_writes"])
        assert engine["under_writes"][1]["probed"] > 0
    if engine["filters"] is not None:
        assert [row["pass"] for row in engine["filters"]] == [0.5, 0.1, 0.03, 0.01, 0.001]
        assert all(row.keys() >= {"p50_ms", "p99_ms", "recall", "complete"} for row in engine["filters"])
        assert not ours or all(row["complete"] is True for row in engine["filters"])


def check_streaming(streaming: list[dict], peers: list[str]) -> None:
    changing = [name for name in peers if PEERS[name].changes]
    assert [row["engine"] for row in streaming] == [*OURS, *changing]
    for row in streaming:
        assert row["checkpoints"][-1]["operations"] == 2 * 1000 + 250
        assert all(point["live"] == 1000 and point["stale"] == 0 for point in row["checkpoints"])
    assert all(point["recall"] == 1.0 for point in streaming[0]["checkpoints"])


def test_vectors_and_queries_come_from_files(tmp_path: Path):
    vectors, queries = tmp_path / "vectors.npy", tmp_path / "queries.safetensors"
    np.save(vectors, 3 * unit_rows(600, 8, 1))
    save_file({"queries": unit_rows(40, 8, 2), "other": np.zeros(3, dtype=np.float32)}, queries)
    out = tmp_path / "results.json"
    done = run("--vectors", vectors, "--queries", queries, "--k", 5, "--under-writes", "0", "--json", out)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    settings = results["settings"]
    assert (settings["items"], settings["dim"]) == (600, 8)
    assert (settings["measured_queries"], settings["calibration_queries"]) == (20, 20)
    assert settings["source"] == "vectors.npy and queries.safetensors"
    assert results["engines"][0]["recall"] == 1.0


def test_the_generator_draws_the_same_unit_rows_for_the_same_seed():
    first, again, other = generate(3000, 24, 50, seed=5), generate(3000, 24, 50, seed=5), generate(3000, 24, 50, seed=6)
    np.testing.assert_array_equal(first.vectors, again.vectors)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert not np.array_equal(first.vectors, other.vectors)
    assert (first.vectors.shape, first.vectors.dtype, first.queries.shape) == ((3000, 24), np.float32, (50, 24))
    for rows in first:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_generated_queries_are_no_rows_and_do_not_depend_on_the_number_of_items():
    few, many = generate(1000, 16, 50), generate(4000, 16, 50)
    np.testing.assert_array_equal(few.queries, many.queries)
    assert (many.vectors @ many.queries.T).max() < 0.999


def test_recall_counts_ties_and_no_label_twice():
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    queries = np.array([[1, 0]], dtype=np.float32)
    truth = find_truth(vectors, queries, 1)
    assert recall(vectors, queries, np.array([[0]]), truth) == recall(vectors, queries, np.array([[1]]), truth) == 1.0
    truth = find_truth(vectors, queries, 2)
    assert recall(vectors, queries, np.array([[0, 0]]), truth) == 0.5
    assert recall(vectors, queries, np.array([[0, -1]]), truth) == 0.5
    assert recall(vectors, queries, np.array([[0, 2]]), truth) == 0.5


def test_an_answer_is_complete_if_it_has_all_that_it_can_have_and_nothing_else():
    vectors = unit_rows(4, 3, 1)
    truth = find_truth(vectors, vectors[:1], 3, np.array([True, True, False, False]))
    assert complete(np.array([[1, 0, -1]]), truth)
    assert not complete(np.array([[1, -1, -1]]), truth)
    assert not complete(np.array([[1, 2, -1]]), truth)
    assert not complete(np.array([[1, 1, -1]]), truth)


def test_the_peers_that_can_be_named_are_those_that_there_are():
    assert tuple(PEERS) == PEER_NAMES
    assert all(issubclass(peer, Engine) and peer.name == name for name, peer in PEERS.items())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--peers", "annoy"], "unknown peer 'annoy'"),
        (["--items", "50", "--k", "51"], "more than the 50 items"),
        (["--items", "50", "--k", "30", "--streaming"], "half of the 50 items"),
        (["--items", "0"], "0 is not 1 or more"),
        (["--items", "many"], "invalid"),
        (["--k", "2049"], "not 1 to 2048"),
        (["--recall", "93"], "at most 1"),
        (["--under-writes", "-1"], "negative"),
        (["--vectors", "{vectors}"], "go together"),
        (["--vectors", "{missing}", "--queries", "{queries}"], "cannot be read"),
        (["--vectors", "{text}", "--queries", "{queries}"], "cannot be read"),
        (["--vectors", "{bad_tensors}", "--queries", "{queries}"], "cannot be read"),
        (["--vectors", "{tensors}", "--queries", "{queries}"], "one must be named 'vectors'"),
        (["--vectors", "{csv}", "--queries", "{queries}"], "neither .npy nor .safetensors"),
        (["--vectors", "{flat}", "--queries", "{queries}"], "a matrix of floats"),
        (["--vectors", "{integers}", "--queries", "{queries}"], "a matrix of floats"),
        (["--vectors", "{zero}", "--queries", "{queries}"], "row 3 of"),
        (["--vectors", "{nan}", "--queries", "{queries}"], "row 3 of"),
        (["--vectors", "{wide}", "--queries", "{queries}"], "same model"),
        (["--vectors", "{vectors}", "--queries", "{queries}", "--dim", "9"], "--dim is 9"),
        (["--vectors", "{vectors}", "--queries", "{queries}", "--items", "61"], "has 60 rows"),
        (["--vectors", "{vectors}", "--queries", "{queries}", "--k", "61"], "more than the 60 items"),
        (["--json", "{missing}/x.json"], "does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: list[str], expected: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    filled = [argument.format(**files) for argument in arguments]
    assert main(["--json", str(tmp_path / "out.json"), *filled]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not printed.out
    assert not (tmp_path / "out.json").exists()


def test_a_peer_that_is_not_installed_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "hnswlib", None)  # what an import of a missing module comes to
    assert main(["--peers", "hnswlib", "--json", str(tmp_path / "out.json")]) == 2
    assert "pip install hnswlib" in capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    names = ("vectors", "queries", "wide", "zero", "nan", "flat", "integers", "text")
    paths = {name: tmp_path / f"{name}.npy" for name in names}
    rows = unit_rows(60, 8, 1)
    np.save(paths["vectors"], rows)
    np.save(paths["queries"], unit_rows(10, 8, 2))
    np.save(paths["wide"], unit_rows(60, 9, 3))
    for name, value in (("zero", 0.0), ("nan", np.nan)):
        spoiled = rows.copy()
        spoiled[3] = value
        np.save(paths[name], spoiled)
    np.save(paths["flat"], rows[0])
    np.save(paths["integers"], np.ones((60, 8), dtype=np.int64))
    paths["text"].write_text("1,2,3\n", encoding="utf-8")
    paths |= {name: tmp_path / f"{name}.safetensors" for name in ("tensors", "bad_tensors")}
    save_file({"a": rows, "b": rows}, paths["tensors"])
    paths["bad_tensors"].write_bytes(b"\0" * 20)
    paths |= {"csv": tmp_path / "rows.csv", "missing": tmp_path / "missing.npy"}
    return paths
