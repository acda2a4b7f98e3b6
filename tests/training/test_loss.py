"""The chunked softmax cross-entropies equal the plain ones; the sampled one estimates the full one without bias."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import TowerConfig
from training.data.catalogue import Catalogue
from training.data.windows import Batch
from training.towers.loss import Weights, full_softmax_loss, sampled_softmax_loss
from training.towers.negatives import Candidates, NegativeSampler
from training.towers.pair import TowerPair


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
def test_chunked_cross_entropy_equals_the_plain_one_in_value_and_gradient(chunk: int | None, temperature: float) -> None:
    torch.manual_seed(0)
    raw = [torch.randn(50, 8, requires_grad=True), torch.randn(33, 8, requires_grad=True)]
    target = torch.randint(0, 33, (50,))
    users, items = (F.normalize(part, dim=1) for part in raw)
    plain = F.cross_entropy(users @ items.T / temperature, target)
    wanted = torch.autograd.grad(plain, raw)
    users, items = (F.normalize(part, dim=1) for part in raw)
    chunked = full_softmax_loss(users, items, target, temperature=temperature, chunk=chunk)
    found = torch.autograd.grad(chunked, raw)
    torch.testing.assert_close(chunked, plain, atol=1e-5, rtol=1e-5)
    for have, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


def test_opposite_vectors_at_the_lowest_temperature_stay_finite() -> None:
    users = torch.tensor([[1.0, 0.0]], requires_grad=True)
    items = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    loss = full_softmax_loss(users, items, torch.tensor([0]), temperature=0.03)
    loss.backward()
    assert loss.item() == pytest.approx(2 / 0.03)
    assert users.grad is not None and torch.isfinite(users.grad).all()


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_the_sampled_loss_equals_the_plain_weighted_one_in_value_and_gradient(chunk: int | None) -> None:
    torch.manual_seed(1)
    raw = [torch.randn(40, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)]
    weight = 1 + 50 * torch.rand(20)
    target = torch.randint(0, 20, (40,))
    certain = torch.cat([target[:, None], torch.randint(0, 20, (40, 3)), target[:, None]], 1)
    users, items = (F.normalize(part, dim=1) for part in raw)
    matrix = weight.repeat(40, 1).scatter(1, certain, 1.0)
    logits = users @ items.T / 0.05
    plain = (torch.logsumexp(logits + matrix.log(), 1) - logits.gather(1, target[:, None])[:, 0]).mean()
    wanted = torch.autograd.grad(plain, raw)
    users, items = (F.normalize(part, dim=1) for part in raw)
    loss = sampled_softmax_loss(users, items, target, Weights(weight, certain), temperature=0.05, chunk=chunk)
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    for have, want in zip(torch.autograd.grad(loss, raw), wanted, strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


ITEMS, PIECES, LENGTH = 40, 200, 4


def planted_targets() -> tuple[Tensor, Tensor]:
    """(PIECES, LENGTH) items and targets, popular items far more often than others; one piece of history for each user."""
    random = np.random.default_rng(5)
    popularity = 1 / np.arange(1, ITEMS + 1)
    drawn = [random.choice(ITEMS, LENGTH + 1, replace=False, p=popularity / popularity.sum()) for _ in range(PIECES)]
    return torch.tensor(np.array(drawn)[:, :-1]).contiguous(), torch.tensor(np.array(drawn)[:, 1:]).contiguous()


def batch_of(item: Tensor, target: Tensor) -> Batch:
    zeros = torch.zeros_like(item)
    return Batch(item, zeros, zeros.float(), torch.full((len(item),), LENGTH), target)


def small_pair(trained: np.ndarray | None = None) -> TowerPair:
    torch.manual_seed(0)
    catalogue = Catalogue(np.zeros((ITEMS, 0), np.float32), np.zeros((ITEMS, 1), np.int64), {})
    config = TowerConfig(dim=8, history_length=LENGTH, hidden=8)
    known = np.ones(ITEMS, dtype=np.bool_) if trained is None else trained
    return TowerPair(catalogue, config, event_types=1, time_features=False, dropout=0.0, trained=known).eval()


def sampler(target: Tensor, uniform: int, among: np.ndarray | None = None) -> NegativeSampler:
    offsets = np.arange(PIECES + 1) * LENGTH
    return NegativeSampler(target.flatten().numpy(), offsets, items=ITEMS, uniform=uniform, seed=0, among=among)


def gradients(pair: TowerPair, batch: Batch, candidates: Candidates | None) -> tuple[float, list[Tensor]]:
    pair.zero_grad()
    loss = pair.loss(batch, temperature=0.2, residual_dropout=0.0, candidates=candidates)
    torch.autograd.backward(loss)
    found = [torch.zeros_like(each) if each.grad is None else each.grad.to_dense() for each in pair.parameters()]
    return loss.item(), [grad.clone() for grad in found]


def test_a_sample_of_all_items_is_the_full_softmax() -> None:
    item, target = planted_targets()
    batch, pair = batch_of(item[:30], target[:30]), small_pair()
    candidates = sampler(target, ITEMS).draw(target[:30].flatten().numpy(), epoch=1, step=1)
    assert candidates.item.tolist() == list(range(ITEMS)) and set(candidates.weight.tolist()) == {1.0}
    full, sampled = gradients(pair, batch, None), gradients(pair, batch, candidates)
    assert sampled[0] == pytest.approx(full[0], rel=1e-6)
    for have, want in zip(sampled[1], full[1], strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


def test_no_target_is_compared_with_an_item_that_has_no_events() -> None:
    item, target = planted_targets()
    batch = batch_of(item[:30], target[:30])
    trained = np.zeros(ITEMS, dtype=np.bool_)
    trained[np.unique(torch.cat([item[:30], target[:30]]).numpy())] = True
    rows = np.flatnonzero(trained)
    assert 10 < len(rows) < ITEMS
    pair = small_pair(trained)
    with torch.no_grad():
        items = pair.item_vectors()
        users = pair.user.all_positions(items[item[:30]], batch.kind, batch.seconds_before_newest)
        expected = torch.nn.functional.cross_entropy(
            (users @ items[rows].T / 0.2).flatten(0, 1), torch.searchsorted(torch.from_numpy(rows), target[:30]).flatten()
        )
    candidates = sampler(target, ITEMS, rows).draw(target[:30].flatten().numpy(), epoch=1, step=1)
    assert candidates.item.tolist() == rows.tolist()
    full, sampled = gradients(pair, batch, None), gradients(pair, batch, candidates)
    assert full[0] == pytest.approx(float(expected), rel=1e-6) and sampled[0] == pytest.approx(full[0], rel=1e-6)
    for have, want in zip(sampled[1], full[1], strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


def test_over_many_steps_the_weights_of_an_item_s_presence_average_to_one() -> None:
    """What makes the sum over candidates an estimate without bias, seen from a piece that is not the item's own."""
    target = planted_targets()[1]
    draws, random = sampler(target, 5), np.random.default_rng(6)
    seen, steps = np.zeros(ITEMS), 4000
    asks = 0  # the piece that asks is in every step
    others = np.setdiff1d(np.arange(ITEMS), target[asks].numpy())
    for step in range(steps):
        pieces = np.append(asks, 1 + random.choice(PIECES - 1, 9, replace=False))
        candidates = draws.draw(target[pieces].flatten().numpy(), epoch=1, step=step)
        seen[candidates.item.numpy()] += candidates.weight.numpy()
    mean = seen / steps
    assert len(others) > 30 and np.abs(mean[others] - 1).mean() < 0.05
    assert abs(mean[others].mean() - 1) < 0.05


def test_the_mean_of_many_sampled_gradients_points_where_the_full_one_does() -> None:
    item, target = planted_targets()
    pair, random, draws = small_pair(), np.random.default_rng(7), sampler(target, 10)
    with torch.no_grad():
        pair.residual.mul_(torch.linspace(0.2, 1.0, ITEMS)[:, None])
    sums: dict[str, Tensor] = {}
    for step in range(150):
        pieces = random.choice(PIECES, 10, replace=False)
        batch = batch_of(item[pieces], target[pieces])
        candidates = draws.draw(target[pieces].flatten().numpy(), epoch=1, step=step)
        even = Candidates(candidates.item, torch.ones_like(candidates.weight))
        for name, given in (("full", None), ("corrected", candidates), ("uncorrected", even)):
            flat = torch.cat([grad.flatten() for grad in gradients(pair, batch, given)[1]])
            sums[name] = sums.get(name, torch.zeros_like(flat)) + flat
    away = {name: 1 - F.cosine_similarity(sums[name], sums["full"], dim=0).item() for name in ("corrected", "uncorrected")}
    assert away["corrected"] < 0.005 and away["corrected"] < away["uncorrected"] / 4
