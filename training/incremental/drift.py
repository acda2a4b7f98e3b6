"""How far a warm start moved what its bundle knew: items' vectors, users' vectors, and the first ten answers.

Vectors of two releases are never mixed in service, so drift breaks nothing by itself. It tells an update from a new model:
little drift means that answers change where something was learnt, and not because everything turned.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from index.bundle import Bundle
from training.data.interactions import BoolArray, IntArray, Interactions, selected
from training.data.windows import Batch, gather
from training.towers.pair import TowerPair

USERS, FIRST, CLOSE = 1000, 10, 0.9
MOST_SCORES = 1 << 25  # float32 at once: 128 MiB


def measure_drift(
    bundle: Bundle, pair: TowerPair, data: Interactions, rows: IntArray, learnt: BoolArray, *, seed: int
) -> dict[str, Any]:
    """Bundle against `pair`; `rows` (N,) int64 are the pair's items' rows in the bundle, -1 = not in it.

    Known items are those that the bundle learnt from events, as `learnt` (N,) bool says; what it had by its content alone is
    as new to training as what it did not have.

    {"items": {"known", "new", "gone", "mean", "p1", "p50", "below_0.9"},
     "users": {"sampled", "mean", "p1", "p50", "below_0.9", "top10_overlap"}}: cosines of old and new vectors, the share of
    them below .9, and the share of the ten nearest known items that stayed among the ten nearest. Users are a seeded
    sample; their histories are the last events whose item and type the bundle has.
    """
    known = np.flatnonzero(learnt)
    with torch.inference_mode():
        new_items = pair.item_vectors().numpy()[known]  # (K, D) float32
    old_items = bundle.item_vectors[rows[known]]  # (K, D) float32
    counts = {"known": len(known), "new": len(rows) - len(known), "gone": len(bundle.item_vectors) - int((rows >= 0).sum())}
    items = {**counts, **_cosines(old_items, new_items)}
    readable = _readable_part(data, rows, len(bundle.manifest.event_types))
    return {"items": items, "users": _users(bundle, pair, readable, rows, known, seed)}


def drift_lines(drift: dict[str, Any]) -> list[str]:
    """The printed form."""
    items, users = drift["items"], drift["users"]
    lines = [f"items: {items['known']:,} known, {items['new']:,} new, {items['gone']:,} gone"]
    for name, part, count in (("known items", items, items["known"]), ("users", users, users["sampled"])):
        if count:
            lines.append(
                f"drift of {count:,} {name}: cosine mean {part['mean']:.3f}  median {part['p50']:.3f}  "
                f"1st percentile {part['p1']:.3f}  below .9 {part['below_0.9']:.1%}"
            )
    if users["sampled"]:
        lines.append(f"of a user's ten nearest items {users['top10_overlap']:.1%} stayed")
    return lines


def _users(bundle: Bundle, pair: TowerPair, data: Interactions, rows: IntArray, known: IntArray, seed: int) -> dict[str, Any]:
    able = np.flatnonzero(np.diff(data.offsets))
    chosen = np.sort(np.random.default_rng(seed).permutation(able)[:USERS])
    if not len(chosen) or not len(known):
        return {"sampled": 0}
    with torch.inference_mode():
        new_items = pair.item_vectors()  # (N, D) float32
    old_items = np.zeros(tuple(new_items.shape), dtype=np.float32)  # (N, D) float32
    old_items[rows >= 0] = bundle.item_vectors[rows[rows >= 0]]
    old, new, overlaps = [], [], []
    size = max(1, MOST_SCORES // max(1, len(known)))
    for start in range(0, len(chosen), size):
        before, after = _vectors(bundle, pair, data, chosen[start : start + size], old_items, new_items)
        old.append(before)
        new.append(after)
        overlaps.append(_overlap(before @ old_items[known].T, after @ new_items.numpy()[known].T))
    cosines = _cosines(np.concatenate(old), np.concatenate(new))
    return {"sampled": len(chosen), **cosines, "top10_overlap": float(np.concatenate(overlaps).mean())}


def _vectors(
    bundle: Bundle,
    pair: TowerPair,
    data: Interactions,
    users: IntArray,
    old_items: npt.NDArray[np.float32],
    new_items: torch.Tensor,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(B, D) float32 twice: the users' vectors as the bundle and as the pair make them of the same events."""
    ends = data.offsets[users + 1]
    batch = gather(data, np.maximum(data.offsets[users], ends - (bundle.manifest.history_length or 1)), ends)
    seconds = batch.seconds_before_newest if bundle.manifest.time_features else torch.zeros(batch.item.shape)
    history = old_items[batch.item.numpy()] * _real(batch)[..., None].numpy()
    before = bundle.encode_users(history, batch.kind.numpy(), seconds.numpy(), batch.length.numpy())
    pair.eval()
    with torch.inference_mode():
        after = pair.user(new_items[batch.item], batch.kind, seconds, batch.length).numpy()
    return before, after


def _readable_part(data: Interactions, rows: IntArray, event_types: int) -> Interactions:
    """The same users with the events that the bundle can read: known items and types, whose codes are the lowest."""
    known = np.append(rows, -1) >= 0  # an event of an unknown item has row -1, the appended one
    return selected(data, lambda part: known[data.item[part]] & (data.kind[part] <= event_types))


def _real(batch: Batch) -> torch.Tensor:
    return torch.arange(batch.item.shape[1]) < batch.length[:, None]


def _overlap(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(B, K) scores twice -> (B,) float64: share of each row's FIRST best (all if there are fewer) that are so in both."""
    first = min(FIRST, before.shape[1])
    best = [torch.from_numpy(scores).topk(first, dim=1).indices for scores in (before, after)]
    both = (best[0][:, :, None] == best[1][:, None, :]).any(2)
    return both.double().mean(1).numpy()


def _cosines(old: npt.NDArray[np.float32], new: npt.NDArray[np.float32]) -> dict[str, float]:
    """Figures over rows of unit vectors; empty without any."""
    if not len(old):
        return {}
    cosine = (old * new).sum(1, dtype=np.float64)
    figures = {
        "mean": np.mean(cosine),
        "p1": np.quantile(cosine, 0.01),
        "p50": np.median(cosine),
        "below_0.9": np.mean(cosine < CLOSE),
    }
    return {name: float(value) for name, value in figures.items()}
