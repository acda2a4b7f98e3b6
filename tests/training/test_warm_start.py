"""`fit --warm-start`: it begins where a bundle ended, learns what is new, and says how far it went."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from index.bundle import Bundle, read_bundle
from tests.tiny import write_tiny_bundle
from tests.training.conftest import SMALL, planted_events, write_csv
from tests.training.newer import FASTER, NEW_RING, newer_events, newer_items
from tests.training.test_split import interactions
from training.cli import main
from training.config import SplitConfig, TowerConfig
from training.data.catalogue import Catalogue
from training.data.dataset import Dataset, read_dataset
from training.data.interactions import next_new_item
from training.data.split import make_split
from training.data.windows import training_steps
from training.evaluation.exam import set_exam
from training.evaluation.models import Towers
from training.evaluation.ranking import ask, rank
from training.incremental.anchor import drop_anchor
from training.incremental.replay import replayed, taught_before, untaught
from training.incremental.warm_start import newest_event
from training.progress import Progress
from training.refresh.gate import with_new_items
from training.towers.pair import TowerPair


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted data and what came after it, imported."""
    folder = tmp_path_factory.mktemp("newer")
    events = write_csv(folder / "events.csv", planted_events() + newer_events())
    items = write_csv(folder / "items.csv", newer_items())
    assert main(["import", "csv", "--events", str(events), "--items", str(items), "--out", str(folder / "data")]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def warm(newer: Path, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that began where `fitted` ended."""
    out = tmp_path_factory.mktemp("warm") / "bundle"
    assert start(newer, out, fitted, *FASTER) == 0
    return out


def start(data: Path, out: Path, bundle: Path, *settings: str, flags: tuple[str, ...] = ()) -> int:
    changed = ["--set", *settings] if settings else []
    return main(["fit", "--data", str(data), "--out", str(out), "--warm-start", str(bundle), "--quiet", *changed, *flags])


def ndcg(data: Path, bundle: Bundle) -> dict[str, float]:
    """Test N@10 over targets of the old rings and of the new one; new items as a server places them."""
    dataset = read_dataset(data)
    bundle = with_new_items(bundle, dataset, Progress(quiet=True))
    exam = set_exam(dataset, bundle, SplitConfig())
    new = np.array([bundle.item_ids[row].startswith(f"item-{NEW_RING}") for row in exam.test.target])
    found = {}
    for name, chosen in (("old", ~new), ("new", new)):
        test = (exam.test.starts[chosen], exam.test.ends[chosen], exam.test.target[chosen])
        with torch.inference_mode():
            found[name] = rank(ask(exam.data, *test, history_length=8), Towers(bundle))["filtered"]["N@10"]
    return found


def known(old: Bundle, new: Bundle) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Cosines of the old bundle's items in both."""
    row = {item_id: place for place, item_id in enumerate(new.item_ids)}
    again = new.item_vectors[[row[item_id] for item_id in old.item_ids]]
    cosines: np.ndarray[tuple[int], np.dtype[np.float64]] = (old.item_vectors * again).sum(1, dtype=np.float64)
    return cosines


def test_it_learns_what_is_new_in_few_epochs_and_keeps_what_it_knew(
    newer: Path, fitted: Path, warm: Path, tmp_path: Path
) -> None:
    cold = tmp_path / "cold"
    few = [value.replace("training.epochs=15", "training.epochs=4") for value in SMALL]
    assert main(["fit", "--data", str(newer), "--out", str(cold), "--text-encoder", "none", *few]) == 0
    before, after, afresh = (ndcg(newer, read_bundle(path)) for path in (fitted, warm, cold))
    assert after["new"] > before["new"] + 0.3  # behaviour was learnt, not only content
    assert after["new"] > afresh["new"] + 0.2 and after["old"] > afresh["old"] + 0.1  # four epochs from nothing
    assert after["old"] > 0.9 * before["old"]
    assert known(read_bundle(fitted), read_bundle(warm)).mean() > 0.9


def test_the_manifest_says_where_it_began_and_how_far_it_went(fitted: Path, warm: Path) -> None:
    old, new = read_bundle(fitted), read_bundle(warm)
    told = new.manifest.training
    assert told["warm_start"]["release_id"] == old.release_id
    assert told["warm_start"]["new_since"] == old.manifest.training["taught_until"]
    assert told["epochs"] == 4
    assert told["warm_start"]["taught_test_users"] == 0  # each one's last item
    drift = told["drift"]
    assert (drift["items"]["known"], drift["items"]["new"], drift["items"]["gone"]) == (60, 10, 0)
    assert drift["items"]["mean"] == pytest.approx(known(old, new).mean(), abs=1e-5)
    assert drift["users"]["sampled"] == 200  # those with an event that the old bundle can read
    assert 0.5 < drift["users"]["top10_overlap"] <= 1.0


def test_a_moment_before_the_bundle_s_own_split_is_refused_by_its_own_name(
    planted: Path, newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_time = [*SMALL, "--set", "split.kind=temporal", "training.epochs=1"]
    assert main(["fit", "--data", str(planted), "--out", str(tmp_path / "a"), "--text-encoder", "none", *by_time]) == 0
    for moment in ("2024-03-01T00:00:00Z", "2024-03-01T02:00:00+02:00", "2024-03-01T00:00", "2024-03-01"):  # UTC without a zone
        assert start(newer, tmp_path / "b", tmp_path / "a", flags=("--new-since", moment)) == 2
        error = capsys.readouterr().err
        assert error.startswith("--new-since 2024-03-01T00:00:00+00:00: ") and "give a later time" in error
        assert error.count("\n") == 1


def test_evaluate_warns_where_the_beginning_was_taught_what_is_asked(
    newer: Path, warm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["evaluate", "--data", str(newer), "--threads", "1", "--bundle"]
    assert main([*line, str(warm)]) == 0
    assert "which was taught" not in capsys.readouterr().err
    shutil.copytree(warm, tmp_path / "leaky")
    manifest = tmp_path / "leaky" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"taught_test_users": 0', '"taught_test_users": 12'))
    assert main([*line, str(tmp_path / "leaky")]) == 0
    assert "which was taught 12 of the test targets" in capsys.readouterr().err


def test_known_categories_and_event_types_keep_their_codes(fitted: Path, warm: Path) -> None:
    old, new = read_bundle(fitted), read_bundle(warm)
    assert new.categories == {**old.categories, "ring-new": len(old.categories) + 1}
    assert new.manifest.event_types == {**old.manifest.event_types, "purchase": 3}


def test_before_it_learns_anything_its_vectors_are_the_bundle_s(fitted: Path, tmp_path: Path) -> None:
    rows = [row for row in planted_events() if not str(row["item"]).startswith("item-0")] + newer_events()
    events, items = write_csv(tmp_path / "e.csv", rows), write_csv(tmp_path / "i.csv", newer_items())
    data, out = tmp_path / "data", tmp_path / "still"
    assert main(["import", "csv", "--events", str(events), "--items", str(items), "--out", str(data)]) == 0
    assert start(data, out, fitted, "warm_start.learning_rate=1e-12", "warm_start.new_item_rate=7", "warm_start.epochs=1") == 0
    old, new = read_bundle(fitted), read_bundle(out)
    np.testing.assert_allclose(known(old, new), 1.0, atol=1e-5)  # those without events too: they keep what they learnt
    assert new.item_residuals is not None
    np.testing.assert_allclose(new.item_residuals[-10:], 0.0, atol=1e-6)  # new items
    assert new.manifest.training["drift"]["users"]["p1"] == pytest.approx(1.0, abs=1e-5)
    served = with_new_items(old, read_dataset(data), Progress(quiet=True))
    assert (served.item_vectors[-10:] * new.item_vectors[-10:]).sum(1).min() > 0.9  # placed as the live release places them


@pytest.mark.parametrize(
    ("settings", "flags", "said"),
    [
        (("towers.dim=32",), (), "towers.dim: 32, but the towers in"),
        (("towers.blocks=2",), (), "towers.blocks: 2, but the towers in"),
        ((), ("--text-encoder", "minilm"), "but {fitted} was trained with no text encoder"),
        (("split.kind=all",), (), "split.kind: all, but {fitted} was trained with leave-one-out"),
        (("split.seed=3",), (), "split.seed: 3, but"),
        (("training.epochs=1",), (), "training.epochs: a warm start has its own; set warm_start.epochs"),
        (("training.residual_rate=2",), (), "set warm_start.new_item_rate"),
        ((), ("--new-since", "yesterday"), "write a day or a time, such as 2026-11-26"),
        ((), ("--new-since", "2030-01-01T00:00:00Z"), "nothing to learn that"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused_in_one_line(
    settings: tuple[str, ...],
    flags: tuple[str, ...],
    said: str,
    newer: Path,
    fitted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert start(newer, tmp_path / "b", fitted, *settings, flags=flags) == 2
    error = capsys.readouterr().err
    assert said.format(fitted=fitted) in error and error.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_towers_that_training_did_not_write_are_refused(
    newer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    assert start(newer, tmp_path / "b", tmp_path / "tiny") == 2
    assert "does not say up to when it was trained" in capsys.readouterr().err
    flags = (
        "--text-encoder",
        "none",
        "--new-since",
        "2024-01-01T00:00:00Z",
        "--set",
        "towers.dim=8",
        "towers.history_length=10",
    )
    assert start(newer, tmp_path / "b", tmp_path / "tiny", flags=flags) == 2
    assert "its towers are built otherwise" in capsys.readouterr().err
    assert main(["fit", "--data", str(newer), "--out", str(tmp_path / "b"), "--new-since", "2024-01-01T00:00:00Z"]) == 2
    assert "only with --warm-start" in capsys.readouterr().err


def test_what_a_bundle_held_out_is_new_to_the_next_one() -> None:
    data = interactions([1, 2, 3, 4, 5, 6], [7, 8])
    taught_end = taught_before(data, 4_000_000, SplitConfig())  # five events of the first user; the last two were held out
    assert taught_end.tolist() == [3, 8]
    assert taught_before(data, -1, SplitConfig()).tolist() == [0, 6]
    everything = SplitConfig(kind="all", validation_users=0.0)
    assert taught_before(data, 4_000_000, everything).tolist() == [5, 8]


def test_what_a_bundle_was_taught_does_not_test_the_next_one() -> None:
    data = interactions([1, 2, 3], [1, 2, 3, 4])  # the first one had two items at second 1, both of which were trained on
    split = make_split(data, SplitConfig())
    assert split.validation.tolist() == [1, 5]
    kept = untaught(split, taught_before(data, 1_000_000, SplitConfig()))
    assert kept.validation.tolist() == [-1, 5] and kept.test.tolist() == split.test.tolist() == [2, 6]
    assert kept.train_end.tolist() == split.train_end.tolist()


def test_the_replayed_people_are_a_seeded_share_and_others_each_time() -> None:
    data = interactions(*[[1, 2]] * 2000)
    first, again, next_night = (replayed(data, since, share=0.2, seed=0) for since in (10**12, 10**12, 2 * 10**12))
    assert first.shape == (2000,)
    assert 0.17 < first.mean() < 0.23 and (first == again).all() and (first != next_night).any()
    assert replayed(data, 0, share=1.0, seed=0).all() and not replayed(data, 0, share=0.0, seed=0).any()


def test_only_chosen_events_become_targets_and_no_window_is_without_one() -> None:
    data = interactions(list(range(40)), [7, 8, 9], items=40)
    chosen = np.arange(43) == 35
    split = make_split(data, SplitConfig(kind="all", validation_users=0.0))
    target = next_new_item(data, split.train_end, chosen)
    assert np.flatnonzero(target >= 0).tolist() == [34] and target[34] == 35
    steps = training_steps(data, split.train_end, target, length=8, positions=64, generator=np.random.default_rng(0))
    [(starts, ends)] = steps
    assert len(starts) == 1 and starts[0] <= 34 < ends[0]


def test_an_anchor_pulls_items_back_to_where_they_were() -> None:
    torch.manual_seed(0)
    catalogue = Catalogue(np.zeros((6, 0), np.float32), np.zeros((6, 1), np.int64), {})
    sizes = TowerConfig(dim=8, history_length=4, heads=2, hidden=8)
    pair = TowerPair(catalogue, sizes, event_types=1, time_features=False, dropout=0.0, trained=np.ones(6, np.bool_))
    anchor = drop_anchor(pair, np.array([0, 1, 2]), 2.0)
    assert anchor is not None and anchor(pair).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        pair.residual.add_(torch.randn(6, 8))
    pulled = anchor(pair)
    cosine = (pair.item_vectors()[:3] * anchor.vectors).sum(1)
    assert pulled.item() == pytest.approx(2.0 * (1 - cosine).mean().item(), abs=1e-6) and pulled.item() > 0.1
    torch.autograd.backward(pulled)
    assert pair.residual.grad is not None
    moved = pair.residual.grad.to_dense().norm(dim=1) > 0
    assert moved.tolist() == [True] * 3 + [False] * 3
    assert drop_anchor(pair, np.array([0]), 0.0) is None


def test_an_event_from_a_clock_that_is_ahead_does_not_make_the_next_ones_old(newer: Path, tmp_path: Path) -> None:
    dataset: Dataset = read_dataset(newer)
    assert newest_event(dataset) == json.loads((newer / "dataset.json").read_text())["last_event"]
    ahead: dict[str, object] = {"user": "late", "item": "item-0-0", "event": "view", "time": "2099-01-01T00:00:00Z"}
    events, items = (write_csv(tmp_path / "e.csv", [*newer_events(), ahead]), write_csv(tmp_path / "i.csv", newer_items()))
    assert main(["import", "csv", "--events", str(events), "--items", str(items), "--out", str(tmp_path / "data")]) == 0
    told = read_dataset(tmp_path / "data")
    assert newest_event(told) == max(str(row["time"]) for row in newer_events())
    found = {"count": 1, "examples": [{"user_id": "late", "occurred_at": "2099-01-01T00:00:00+00:00"}]}
    assert told.info["notes"]["events later than the import"] == found
    assert newest_event(replace(dataset, info=dataset.info | {"times": "ordinal"})) is None


def test_where_all_events_are_later_than_the_import_a_bundle_is_taught_up_to_the_present(newer: Path) -> None:
    dataset: Dataset = read_dataset(newer)
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    told = newest_event(replace(dataset, info=dataset.info | {"last_past_event": None, "last_event": ahead}))
    assert told is not None and datetime.fromisoformat(told) <= datetime.now(UTC)
