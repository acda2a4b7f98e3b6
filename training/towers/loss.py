"""Softmax cross-entropy over all items or over weighted candidates, in chunks of positions so that memory stays bounded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Of logits at once. On a CPU they stay in the cache: 64 MiB costs half as much time again. A GPU wants large products.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class Weights:
    """How much each candidate's exponential counts in a sampled softmax; see `sampled_softmax_loss`."""

    candidate: Tensor  # (C,) float32, 1 / probability of being among the candidates, >= 1
    certain: Tensor  # (P, S) int64, columns that are among a position's candidates with certainty; repeats are padding

    def apply(self, exponentials: Tensor, part: slice) -> None:
        """(chunk, C) in place, for the positions of `part`."""
        columns = self.certain[part]
        whole = exponentials.gather(1, columns)
        exponentials.mul_(self.candidate).scatter_(1, columns, whole)


class _Softmax(torch.autograd.Function):
    """Computes the gradients beside the loss, chunk by chunk, so that logits are never kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, target: Tensor, temperature: float, chunk: int, weights: Weights | None
    ) -> Tensor:
        count = users.shape[0]
        grad_users = torch.empty_like(users)  # (P, D) float32
        grad_items = torch.zeros_like(items)  # (N, D) float32
        total = torch.zeros((), dtype=torch.float64, device=users.device)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            scaled = users[part] / temperature
            logits = scaled @ items.T  # (chunk, N)
            wanted = target[part, None]
            target_logit = logits.gather(1, wanted)
            # Rows are unit vectors, so no logit is above 1 / temperature: no pass for the maximum is needed.
            shares = logits.sub_(1.0 / temperature).exp_()
            if weights is not None:
                weights.apply(shares, part)
            sums = shares.sum(1, keepdim=True)  # (chunk, 1)
            total += (sums.log() + 1.0 / temperature - target_logit).sum(dtype=torch.float64)
            shares.div_(sums).scatter_add_(1, wanted, torch.full_like(target_logit, -1.0))  # softmax - one-hot
            torch.mm(shares, items, out=grad_users[part])
            grad_items.addmm_(shares.T, scaled)
        grad_users.div_(temperature * count)
        grad_items.div_(count)
        ctx.save_for_backward(grad_users, grad_items)
        return (total / count).to(users.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_users, grad_items = ctx.saved_tensors
        return grad_users * grads[0], grad_items * grads[0], None, None, None, None


def full_softmax_loss(users: Tensor, items: Tensor, target: Tensor, *, temperature: float, chunk: int | None = None) -> Tensor:
    """Mean of -log softmax(users @ items.T / temperature)[target], exact.

    users (P, D) and items (N, D): float32 unit rows (it relies on that); target (P,) int64 item rows -> () float32.
    `temperature` >= 0.03, below which exponents of unit vectors leave float32. Equal to the plain computation to
    float32 rounding, value and gradient.
    """
    return _softmax(users, items, target, temperature, chunk, None)


def sampled_softmax_loss(
    users: Tensor, candidates: Tensor, target: Tensor, weights: Weights, *, temperature: float, chunk: int | None = None
) -> Tensor:
    """The same with the sum over all items estimated from candidates: mean of log sum_c w_c exp(s_c) - s_target.

    users (P, D), candidates (C, D): float32 unit rows, each item at most once; target (P,) int64 candidate rows ->
    () float32. w_c is 1 / P(c is a candidate | the position), so that the sum has the full sum as its expectation
    (Horvitz-Thompson): the logQ correction of negatives alone. The position's own target is a candidate with
    certainty and counts as it is (arXiv 2507.09331); so do the other columns in `weights.certain`, which must hold it.
    """
    return _softmax(users, candidates, target, temperature, chunk, weights)


def _softmax(
    users: Tensor, items: Tensor, target: Tensor, temperature: float, chunk: int | None, weights: Weights | None
) -> Tensor:
    if chunk is None:
        chunk = max(1, CHUNK_BYTES[users.device.type] // (4 * items.shape[0]))
    loss: Tensor = _Softmax.apply(users, items, target, temperature, chunk, weights)  # type: ignore[no-untyped-call]
    return loss
