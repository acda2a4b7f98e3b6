"""User tower: a causal transformer over the vectors of the last items makes one unit vector for each user.

Attention knows order and time only through additive biases that depend on how many events and how much time lie
between two events. So a vector does not depend on padding or on where a long history was cut, and `forward` (what is
served) can compute the last block for the newest event alone: at batch 1 that is most of the work saved.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEVER = -1e9  # added to attention logits that must not count; finite, so that no row can become NaN


class TrainingDropout(nn.Dropout):
    """Dropout that leaves no operator behind when the tower is exported: at batch 1 every operator counts."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, *, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.mix = nn.Linear(dim, dim)
        self.norm_hidden = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, hidden)
        self.contract = nn.Linear(hidden, dim)
        self.dropout = TrainingDropout(dropout)

    def forward(self, events: Tensor, queries: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D) events, (B, Q, D) those of them to update, (B or 1, H, Q, L) bias -> (B, Q, D)."""
        batch, length, dim = events.shape
        count = queries.shape[1]
        width = dim // self.heads
        normed = self.norm_attention(events)
        asked = normed if queries is events else self.norm_attention(queries)
        query = self.query(asked).view(batch, count, self.heads, width).transpose(1, 2)
        pair = self.key_value(normed).view(batch, length, 2, self.heads, width).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ pair[0].transpose(2, 3) * width**-0.5 + bias, dim=-1)  # (B, H, Q, L)
        mixed = (self.dropout(weights) @ pair[1]).transpose(1, 2).reshape(batch, count, dim)
        queries = queries + self.dropout(self.mix(mixed))
        hidden = self.contract(self.dropout(F.silu(self.expand(self.norm_hidden(queries)))))
        updated: Tensor = queries + self.dropout(hidden)
        return updated


class UserTower(nn.Module):
    """History of item vectors, event types and ages -> user vector."""

    boundaries: Tensor

    def __init__(
        self,
        *,
        dim: int,
        history_length: int,
        event_types: int,
        time_features: bool,
        blocks: int,
        heads: int,
        hidden: int,
        dropout: float,
        time_buckets: int = 32,
    ) -> None:
        """`event_types` = number of known types, codes 1 … event_types; 0 is unknown."""
        super().__init__()
        self.scale = dim**0.5  # unit rows become rows of the scale that layer norm gives
        self.event_type = nn.Embedding(event_types + 1, dim, padding_idx=0)
        nn.init.normal_(self.event_type.weight, std=0.02)
        with torch.no_grad():
            self.event_type.weight[0] = 0.0
        self.distance = nn.Parameter(torch.zeros(blocks, heads, history_length))
        self.gap = nn.Parameter(torch.zeros(blocks, time_buckets, heads)) if time_features else None
        # Gaps fall into buckets [0, 1 s), [1, 2), [2, 4) … by comparison, never by a logarithm, whose last bit may
        # differ between batch sizes and throw a gap into another bucket.
        self.register_buffer("boundaries", 2.0 ** torch.arange(time_buckets - 1), persistent=False)
        self.dropout = TrainingDropout(dropout)
        self.blocks = nn.ModuleList(Block(dim=dim, heads=heads, hidden=hidden, dropout=dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        # A tower starts by answering with what is near the last items, not at random: where items have few events (three
        # each on RetailRocket, validation R@10 .074 instead of .039) that is most of what can be learnt.
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, history: Tensor, event_type: Tensor, seconds_before_newest: Tensor, length: Tensor) -> Tensor:
        """(B, L, D) f32, (B, L) i64, (B, L) f32, (B,) i64 -> (B, D) float32 unit rows.

        Oldest first, right-padded; 1 <= length <= L <= history_length. What the padding holds does not matter.
        """
        events = self._embed(history, event_type)
        if len(self.blocks) > 1:
            events = self._causal(events, seconds_before_newest, len(self.blocks) - 1)
        newest = length.clamp(min=1) - 1  # (B,) a row without events gives a vector too, never NaN
        query = events.gather(1, newest[:, None, None].expand(-1, 1, events.shape[2]))
        before = newest[:, None] - torch.arange(history.shape[1], device=history.device)  # (B, L) events before newest
        bias = self.distance[-1][:, before.clamp(min=0)].transpose(0, 1)  # (B, H, L)
        if self.gap is not None:
            bias = bias + self._gap_bias(seconds_before_newest, self.gap[-1])
        bias = torch.where((before >= 0)[:, None], bias, NEVER)
        return self._head(self.blocks[-1](events, query, bias[:, :, None])[:, 0])

    def all_positions(self, history: Tensor, event_type: Tensor, seconds_before_newest: Tensor) -> Tensor:
        """The same for every event as if it were the newest: -> (B, L, D) float32 unit rows. Used in training."""
        events = self._causal(self._embed(history, event_type), seconds_before_newest, len(self.blocks))
        return self._head(events)

    def _embed(self, history: Tensor, event_type: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(history * self.scale + self.event_type(event_type))
        return embedded

    def _causal(self, events: Tensor, seconds: Tensor, blocks: int) -> Tensor:
        """Runs the first `blocks` blocks over all events; each sees itself and what came before it."""
        position = torch.arange(events.shape[1], device=events.device)
        before = position[:, None] - position  # (L, L) how many events j lies before i
        for number in range(blocks):
            bias = self.distance[number][:, before.clamp(min=0)]  # (H, L, L)
            if self.gap is not None:
                gaps = (seconds[:, None] - seconds[:, :, None]).clamp(min=0)  # (B, L, L) seconds from j to i
                bias = bias + self._gap_bias(gaps, self.gap[number])
            bias = torch.where(before >= 0, bias, NEVER)
            events = self.blocks[number](events, events, bias)
        return events

    def _gap_bias(self, gaps: Tensor, table: Tensor) -> Tensor:
        """(B, …) seconds -> (B, H, …) attention bias by `table` (buckets, H)."""
        bucket = torch.bucketize(gaps, self.boundaries, right=True)
        return F.embedding(bucket, table).movedim(-1, 1)

    def _head(self, events: Tensor) -> Tensor:
        return F.normalize(self.out(self.norm(events)), dim=-1)
