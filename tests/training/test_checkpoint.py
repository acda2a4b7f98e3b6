"""A run that was cut off goes on to the very vectors of one that was not, and only where it is the same run."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from index.bundle import read_bundle
from tests.training.conftest import SMALL
from tests.training.test_trainer import QUIET, read_curves, small_config, small_start
from training.cli import main
from training.errors import ConfigError
from training.fitting.checkpoint import Checkpoint
from training.fitting.distributed import Ranks
from training.fitting.trainer import train

EVERY_STEP = 1e-9  # minutes


def command(data: Path, out: Path, *more: str) -> list[str]:
    settings = [*SMALL, "training.epochs=5", "training.positions=128", *more]
    settings.remove("--quiet")
    curves = ["--tensorboard", str(out.parent / "curves")]
    return ["fit", *curves, "--data", str(data), "--out", str(out), "--text-encoder", "none", "--threads", "1", *settings]


@pytest.fixture(scope="module")
def killed(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BUNDLE.checkpoint of a fit that was killed outright in the middle of its work."""
    out = tmp_path_factory.mktemp("killed") / "bundle"
    folder = out.parent / "bundle.checkpoint"
    more = f"training.checkpoint_minutes={EVERY_STEP}"
    line = [sys.executable, "-m", "tests.training.killed", "SIGKILL", "10", *command(planted, out, more)]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL and "epoch   1" in done.stderr
    assert (folder / "state.pt").is_file() and not out.exists()
    return folder


def test_a_killed_run_goes_on_to_the_very_vectors_of_one_that_was_not_interrupted(
    planted: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(killed, tmp_path / "bundle.checkpoint")
    shutil.copytree(killed.parent / "curves", tmp_path / "curves")
    assert main(command(planted, tmp_path / "bundle")) == 0  # how often it is saved is not what a run is
    assert "goes on from a checkpoint: epoch" in capsys.readouterr().err
    curve = read_curves(tmp_path / "curves")
    assert len(curve["epoch/loss"]) == read_bundle(tmp_path / "bundle").manifest.training["epochs"]
    assert main([*command(planted, tmp_path / "whole"), "--quiet"]) == 0
    vectors = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert "item_vectors.safetensors" in vectors and any("golden" in name for name in vectors)
    for name in vectors:
        assert (tmp_path / "bundle" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "curves", "whole"]


def test_an_interrupted_fit_says_from_where_it_goes_on(planted: Path, tmp_path: Path) -> None:
    settings = command(planted, tmp_path / "bundle", f"training.checkpoint_minutes={EVERY_STEP}")
    line = [sys.executable, "-m", "tests.training.killed", "SIGINT", "3", *settings]
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == f"interrupted; the same command goes on from {tmp_path / 'bundle.checkpoint'}"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.learning_rate=0.002", "training.learning_rate was 0.01 and is 0.002"),
        ("towers.heads=1", "towers.heads was 2 and is 1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(
    planted: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    shutil.copytree(killed, tmp_path / "bundle.checkpoint")
    assert main([*command(planted, tmp_path / "bundle", setting), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert words in error and "--restart" in error and error.count("\n") == 1
    assert (tmp_path / "bundle.checkpoint" / "state.pt").is_file() and not (tmp_path / "bundle").exists()


def test_a_checkpoint_of_the_same_items_in_another_order_is_refused(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without text and categories nothing but the ids tells them apart, and the events' file is the same."""
    for name, order in (("data", 1), ("other", -1)):
        shutil.copytree(planted, tmp_path / name)
        items = pq.read_table(tmp_path / name / "items.parquet")
        bare = {"text": [""] * len(items), "categories": [[]] * len(items)}
        for column, values in bare.items():
            place = items.schema.get_field_index(column)
            items = items.set_column(place, items.schema.field(column), pa.array(values, items.schema.field(column).type))
        pq.write_table(items.take(list(range(len(items)))[::order]), tmp_path / name / "items.parquet")
    more = f"training.checkpoint_minutes={EVERY_STEP}"
    line = [
        sys.executable,
        "-m",
        "tests.training.killed",
        "SIGKILL",
        "3",
        *command(tmp_path / "data", tmp_path / "bundle", more),
    ]
    assert subprocess.run(line, check=False, timeout=240).returncode == -signal.SIGKILL
    assert main([*command(tmp_path / "other", tmp_path / "bundle"), "--quiet"]) == 2
    assert "items_sha256 was" in capsys.readouterr().err


def test_restart_begins_anew_and_so_does_a_run_without_checkpoints_leave_none(
    planted: Path, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(killed, tmp_path / "bundle.checkpoint")
    more = ["training.epochs=1", "training.checkpoint_minutes=0", "--restart"]
    assert main(command(planted, tmp_path / "bundle", *more)) == 0
    said = capsys.readouterr().err
    assert "goes on" not in said and said.startswith("epoch   1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "curves"]


class Interrupted(Exception):
    pass


class Cut(Checkpoint):
    """One after whose `last` writing the run is cut off; each writing is after one step."""

    def __init__(self, folder: Path, last: int) -> None:
        super().__init__(folder, {"run": "small"}, minutes=EVERY_STEP, ranks=Ranks())
        self.left = last

    def write(self, state: dict[str, Any]) -> None:
        super().write(state)
        self.left -= 1
        if not self.left:
            raise Interrupted


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_wherever_a_run_is_cut_off_it_goes_on_alike(planted: Path, tmp_path: Path, loss: str) -> None:
    config = small_config(f"training.loss={loss}", "training.negatives=12", "training.epochs=3")
    pair, split = small_start(planted)
    torch.manual_seed(0)
    history = train(pair, split.data, split, config, history_length=8, progress=QUIET)
    whole = {name: value.clone() for name, value in pair.state_dict().items()}
    cuts = 0
    while True:  # cut off after each step in turn, going on each time in towers that know nothing
        pair, split = small_start(planted)
        torch.manual_seed(cuts)
        try:
            again = train(
                pair, split.data, split, config, history_length=8, progress=QUIET, checkpoint=Cut(tmp_path / "run", 1)
            )
        except Interrupted:
            cuts += 1
            continue
        break
    assert cuts >= 9
    assert again.best == history.best and again.epochs == history.epochs
    assert [row["loss"] for row in again.curve] == [row["loss"] for row in history.curve]
    for name, value in pair.state_dict().items():
        assert torch.equal(value, whole[name]), name


class Early(Checkpoint):
    """One that is cut off before the first writing of the second epoch: the first one is closed, and no checkpoint says so."""

    def write(self, state: dict[str, Any]) -> None:
        if state["place"]["epoch"] == 2:
            raise Interrupted
        super().write(state)


def test_an_epoch_that_is_closed_again_after_a_crash_is_in_the_curves_once(planted: Path, tmp_path: Path) -> None:
    config = small_config("training.epochs=2")
    for kind in (Early, Checkpoint):
        pair, split = small_start(planted)
        checkpoint = kind(tmp_path / "run", {}, minutes=EVERY_STEP, ranks=Ranks())
        try:
            train(
                pair,
                split.data,
                split,
                config,
                history_length=8,
                progress=QUIET,
                checkpoint=checkpoint,
                tensorboard=tmp_path / "curves",
            )
        except Interrupted:
            assert kind is Early
    assert len(read_curves(tmp_path / "curves")["epoch/loss"]) == 2


def test_a_checkpoint_of_other_data_processes_or_device_names_what_differs(tmp_path: Path) -> None:
    Checkpoint(tmp_path, {"events_sha256": "a", "deep": {"er": [1]}}, minutes=1, ranks=Ranks()).write({"x": 1})
    other = Checkpoint(
        tmp_path, {"events_sha256": "b", "deep": {"er": [2]}}, minutes=1, ranks=Ranks(0, 1, torch.device("meta"))
    )
    with pytest.raises(ConfigError) as caught:
        other.read()
    for words in ("device was cpu and is meta", "events_sha256 was a and is b", "deep.er was [1] and is [2]"):
        assert words in str(caught.value)


def test_a_damaged_checkpoint_is_named_and_a_torn_writing_leaves_the_one_before_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {}, minutes=1, ranks=Ranks())
    checkpoint.write({"x": torch.arange(3)})
    (tmp_path / "state.pt.new").write_bytes(b"torn")  # what a kill in the middle of writing leaves
    again = checkpoint.read()
    assert again is not None and again["x"].tolist() == [0, 1, 2]
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be read"):
        checkpoint.read()


def test_it_is_time_for_a_checkpoint_after_some_minutes_and_never_with_none(tmp_path: Path) -> None:
    assert not Checkpoint(tmp_path, {}, minutes=5, ranks=Ranks()).due()
    assert Checkpoint(tmp_path, {}, minutes=EVERY_STEP, ranks=Ranks()).due()
    assert not Checkpoint(tmp_path, {}, minutes=0, ranks=Ranks()).due()
