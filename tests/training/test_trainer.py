"""How training runs: sampled softmax, parts of a step, precision, device, curves."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from index.bundle import read_bundle
from tests.training.conftest import SMALL
from training.cli import main
from training.config import Config, TowerConfig, TrainingConfig, load_config
from training.data.catalogue import Catalogue
from training.data.dataset import read_dataset
from training.data.interactions import load_interactions
from training.data.split import Split, make_split
from training.data.windows import Batch
from training.errors import ConfigError
from training.fitting.distributed import choose_device
from training.fitting.optimiser import Optimiser
from training.fitting.reporting import Board
from training.fitting.step import is_sampled
from training.fitting.trainer import train
from training.fitting.validation import default_users, validate
from training.progress import Progress
from training.towers.negatives import NegativeSampler
from training.towers.pair import TowerPair

QUIET = Progress(quiet=True)


def small_config(*more: str) -> TrainingConfig:
    pairs = [word for word in SMALL if word.startswith("training.")]
    return load_config(None, [*pairs, "training.epochs=2", *more]).training


def small_start(planted: Path) -> tuple[TowerPair, Split]:
    """Small towers that have learnt nothing yet, always the same, without content; and the planted split."""
    dataset = read_dataset(planted)
    data = load_interactions(dataset.events, dataset.items["item_id"])
    split = make_split(data, Config().split)
    catalogue = Catalogue(np.zeros((data.items, 0), np.float32), np.zeros((data.items, 1), np.int64), {})
    torch.manual_seed(0)
    sizes = TowerConfig(dim=16, history_length=8, hidden=32)
    pair = TowerPair(catalogue, sizes, event_types=2, time_features=True, dropout=0.1, trained=split.counts() > 0)
    return pair, split


def fit(data: Path, out: Path, *more: str) -> int:
    return main(["fit", "--data", str(data), "--out", str(out), "--text-encoder", "none", *SMALL, *more])


def test_the_sampled_softmax_learns_the_planted_pattern_from_a_few_negatives(planted: Path) -> None:
    pair, split = small_start(planted)
    config = small_config("training.loss=sampled", "training.negatives=12", "training.epochs=15")
    history = train(pair, split.data, split, config, history_length=8, progress=QUIET)
    assert history.best["N@10"] > 0.7
    assert len(history.curve) == history.epochs


def test_a_sampled_step_moves_no_residual_but_those_of_its_own_items(planted: Path) -> None:
    pair, split = small_start(planted)
    before = pair.residual.detach().clone()
    few = Split(**{**vars(split), "train_end": split.data.offsets[:-1] + np.where(np.arange(200) < 4, 3, 0)})
    config = small_config("training.loss=sampled", "training.negatives=5", "training.epochs=1", "training.positions=1000")
    train(pair, few.data, few, config, history_length=8, progress=QUIET)
    moved = (pair.residual != before).any(1)
    trained = {int(item) for user in range(4) for item in split.data.item[split.data.offsets[user] :][:3]}
    assert trained <= set(moved.nonzero()[:, 0].tolist()) and int(moved.sum()) <= len(trained) + 5


def test_a_faster_rate_of_residuals_does_not_decay_them_faster(planted: Path) -> None:
    norms = []
    for rate in (1.0, 8.0):
        pair, _ = small_start(planted)
        optimiser = Optimiser(pair, small_config("training.weight_decay=0.5", f"training.residual_rate={rate}"), sparse=False)
        pair.residual.grad = torch.zeros_like(pair.residual)
        optimiser.step()
        norms.append(pair.residual.detach().norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) and norms[0] < small_start(planted)[0].residual.norm().item()


def test_only_a_large_catalogue_is_sampled_unless_asked_for() -> None:
    assert [is_sampled(TrainingConfig(), items) for items in (100_000, 100_001)] == [False, True]
    assert is_sampled(TrainingConfig(loss="sampled"), 10) and not is_sampled(TrainingConfig(loss="full"), 10**6)


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_a_step_computed_in_parts_is_the_same_step(planted: Path, loss: str) -> None:
    found = {}
    for parts in (1, 3):
        pair, split = small_start(planted)
        pair.user.dropout.p = pair.user.blocks[0].dropout.p = 0.0
        config = small_config(f"training.accumulate={parts}", "training.residual_dropout=0", f"training.loss={loss}")
        train(pair, split.data, split, config, history_length=8, progress=QUIET)
        found[parts] = pair.item_vectors()
    torch.testing.assert_close(found[3], found[1], atol=1e-4, rtol=0)


def test_a_bfloat16_run_learns_and_leaves_float32_weights_and_curves(planted: Path, tmp_path: Path) -> None:
    pair, split = small_start(planted)
    config = small_config("training.precision=bfloat16", "training.accumulate=2", "training.epochs=15")
    history = train(pair, split.data, split, config, history_length=8, progress=QUIET, tensorboard=tmp_path)
    assert history.best["N@10"] > 0.7
    assert {parameter.dtype for parameter in pair.parameters()} == {torch.float32}
    curves = read_curves(tmp_path)
    rare = {name: len(points) for name, points in curves.items() if not name.startswith("training/")}
    of_epochs = ["epoch/loss", "item tower/gate", *(f"validation/{name}" for name in history.best)]
    assert rare == dict.fromkeys(of_epochs, history.epochs)
    assert {name for name in curves if name not in rare} == {
        "training/loss",
        "training/learning rate",
        "training/positions a second",
    }
    assert max(curves["validation/N@10"]) == pytest.approx(history.best["N@10"])
    assert curves["epoch/loss"][-1] < curves["epoch/loss"][0] and curves["training/positions a second"][0] > 100


def test_the_loss_of_bfloat16_towers_is_that_of_float32_to_their_rounding() -> None:
    random = np.random.default_rng(0)
    text = random.standard_normal((30, 12)).astype(np.float32)
    torch.manual_seed(0)
    sizes = TowerConfig(dim=16, history_length=6, hidden=32)
    catalogue = Catalogue(text, np.zeros((30, 1), np.int64), {})
    pair = TowerPair(catalogue, sizes, event_types=1, time_features=True, dropout=0.0, trained=np.ones(30, np.bool_))
    item = torch.arange(24).reshape(4, 6)
    batch = Batch(item, torch.ones_like(item), torch.ones(4, 6), torch.full((4,), 6), item + 1)
    found = {}
    for low in (False, True):
        pair.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = pair.loss(batch, temperature=0.1, residual_dropout=0.0)
        torch.autograd.backward(loss)
        assert loss.dtype == torch.float32 and pair.residual.grad is not None and pair.residual.grad.dtype == torch.float32
        found[low] = loss.item()
    assert found[True] != found[False] and found[True] == pytest.approx(found[False], rel=0.02)


def test_curves_without_the_package_are_refused_before_anything_is_done(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert fit(planted, tmp_path / "bundle", "--tensorboard", str(tmp_path / "curves")) == 2
    assert "--tensorboard needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "curves").exists()


def read_curves(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [point.value for point in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_run_that_goes_on_at_once_is_read_after_the_one_before_it(tmp_path: Path) -> None:
    def write(steps: int, loss: float) -> None:
        board = Board(tmp_path, steps=steps)
        board.epoch(steps, {"loss": loss}, gate=0.5)
        board.close()

    write(1, 3.0)
    [before] = tmp_path.iterdir()
    second = before.name.split(".")[3]
    before.rename(tmp_path / f"events.out.tfevents.{second}.~.9.0")  # of a host whose name comes last
    write(2, 2.0)
    assert read_curves(tmp_path)["epoch/loss"] == [3.0, 2.0]


def test_validation_asks_a_seeded_sample_of_many_users(planted: Path) -> None:
    pair, split = small_start(planted)

    def of(most_users: Any, seed: int) -> dict[str, float]:
        return validate(pair, split, history_length=8, most_users=most_users, seed=seed)

    assert of(200, 0) == of(10**6, 1) == of("auto", 2)
    assert of(50, 0) == of(50, 0) != of(50, 1)
    assert of(50, 0)["R@10"] * 50 == pytest.approx(round(of(50, 0)["R@10"] * 50))


def test_a_larger_catalogue_is_validated_for_fewer_users() -> None:
    assert [default_users(items) for items in (12_000, 100_000, 10**6, 10**9)] == [25_000, 25_000, 2_500, 1_000]


def test_the_item_vectors_of_a_large_catalogue_are_computed_in_pieces_and_are_the_same() -> None:
    items = 3 * 65_536 + 5
    random = np.random.default_rng(0)
    codes = random.integers(0, 5, (items, 2))
    catalogue = Catalogue(np.zeros((items, 0), np.float32), codes, {f"category {code}": code for code in range(1, 5)})
    sizes = TowerConfig(dim=4, history_length=4, hidden=4)
    pair = TowerPair(catalogue, sizes, event_types=1, time_features=False, dropout=0.0, trained=np.ones(items, np.bool_))
    with torch.inference_mode():
        whole = pair.item(pair.text, pair.codes, pair.residuals())
        torch.testing.assert_close(pair.item_vectors(), whole)


def test_cuda_is_refused_where_there_is_none(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError):
        choose_device("cuda")
    assert fit(planted, tmp_path / "bundle", "--set", "training.device=cuda") == 2
    assert "training.device: cuda, but torch sees no CUDA device" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_training_with_what_to_do(planted: Path) -> None:
    pair, split = small_start(planted)
    with torch.no_grad():
        pair.residual[3] = torch.nan
    with pytest.raises(ConfigError, match=r"epoch 1: the loss is nan; lower training\.learning_rate"):
        train(pair, split.data, split, small_config(), history_length=8, progress=QUIET)


class ImpliedDevices(TorchFunctionMode):
    """Notes tensors that are made without saying where: with the towers on a GPU they would lie on the CPU."""

    MAKERS = (torch.zeros, torch.ones, torch.full, torch.arange, torch.rand, torch.randn, torch.randint, torch.tensor)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (*self.MAKERS, torch.empty) and (kwargs or {}).get("device") is None:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampled", [False, True])
def test_no_tensor_of_the_loss_is_made_on_an_implied_device(planted: Path, sampled: bool) -> None:
    pair = small_start(planted)[0]
    item = torch.arange(24).reshape(4, 6)
    batch = Batch(item, torch.ones_like(item), torch.ones(4, 6), torch.full((4,), 6), item + 1)
    target = (item + 1).flatten().numpy()
    sampler = NegativeSampler(target, np.arange(5) * 6, items=60, uniform=9, seed=0)
    candidates = sampler.draw(target, epoch=1, step=0) if sampled else None
    with ImpliedDevices() as spy:
        loss = pair.loss(batch, temperature=0.1, residual_dropout=0.1, candidates=candidates)
        torch.autograd.backward(loss)
        pair.user(pair.item_vectors()[item], batch.kind, batch.seconds_before_newest, batch.length)
        assert spy.found == []
        torch.zeros(1)
    assert spy.found == ["zeros"]


@pytest.mark.gpu
@pytest.mark.parametrize("more", [["training.loss=full"], ["training.loss=sampled", "training.precision=bfloat16"]])
def test_a_run_on_a_gpu_learns_and_its_bundle_serves_from_the_cpu(planted: Path, tmp_path: Path, more: list[str]) -> None:
    assert fit(planted, tmp_path / "bundle", "--set", "training.device=cuda", "training.negatives=20", *more) == 0
    assert read_bundle(tmp_path / "bundle").manifest.offline_metrics["validation/filtered/N@10"] > 0.8
