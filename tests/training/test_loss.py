"""The chunked softmax cross-entropy equals the plain one."""

import pytest
import torch
from torch.nn import functional as F

from training.loss import full_softmax_loss


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
