"""Exact softmax cross-entropy over all items, in chunks of positions so that memory stays bounded."""

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20  # of logits at once: they stay in the cache; 64 MiB costs half as much time again


class _FullSoftmax(torch.autograd.Function):
    """Computes the gradients beside the loss, chunk by chunk, so that logits are never kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, target: Tensor, temperature: float, chunk: int) -> Tensor:
        count = users.shape[0]
        grad_users = torch.empty_like(users)  # (P, D) float32
        grad_items = torch.zeros_like(items)  # (N, D) float32
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            scaled = users[part] / temperature
            logits = scaled @ items.T  # (chunk, N)
            wanted = target[part, None]
            own = logits.gather(1, wanted)
            # Rows are unit vectors, so no logit is above 1 / temperature: no pass for the maximum is needed.
            weights = logits.sub_(1.0 / temperature).exp_()
            sums = weights.sum(1, keepdim=True)  # (chunk, 1)
            total += (sums.log() + 1.0 / temperature - own).sum(dtype=torch.float64)
            weights.div_(sums).scatter_add_(1, wanted, torch.full_like(own, -1.0))  # softmax - one-hot
            torch.mm(weights, items, out=grad_users[part])
            grad_items.addmm_(weights.T, scaled)
        grad_users.div_(temperature * count)
        grad_items.div_(count)
        ctx.save_for_backward(grad_users, grad_items)
        return (total / count).to(users.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_users, grad_items = ctx.saved_tensors
        return grad_users * grads[0], grad_items * grads[0], None, None, None


def full_softmax_loss(users: Tensor, items: Tensor, target: Tensor, *, temperature: float, chunk: int | None = None) -> Tensor:
    """Mean of -log softmax(users @ items.T / temperature)[target], exact.

    users (P, D) and items (N, D): float32 unit rows (it relies on that); target (P,) int64 item rows -> () float32.
    `temperature` >= 0.03, below which exponents of unit vectors leave float32. Equal to the plain computation to
    float32 rounding, value and gradient.
    """
    if chunk is None:
        chunk = max(1, CHUNK_BYTES // (4 * items.shape[0]))
    loss: Tensor = _FullSoftmax.apply(users, items, target, temperature, chunk)  # type: ignore[no-untyped-call]
    return loss
