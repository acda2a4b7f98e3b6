"""How good the towers are after an epoch: the validation targets ranked among all items."""

from typing import Literal

import numpy as np
import torch

from training.data.interactions import IntArray
from training.data.split import Split
from training.evaluation.ranking import Questions, ask, rank
from training.fitting.distributed import Ranks
from training.towers.pair import TowerPair


def validate(
    pair: TowerPair,
    split: Split,
    *,
    history_length: int,
    most_users: int | Literal["auto"],
    seed: int,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Filtered metrics over the validation targets; empty without any.

    Of more than `most_users` users a sample, the same for the same seed. The processes share them; all get the result.
    """
    users = np.flatnonzero(split.validation >= 0)
    most = default_users(split.data.items) if most_users == "auto" else most_users
    if len(users) > most:
        users = np.sort(np.random.default_rng(seed).choice(users, most, replace=False))
    ranks = ranks or Ranks()
    mine = users[ranks.rank :: ranks.world]
    parts = ranks.gather((len(mine), _metrics(pair, split, mine, history_length, ranks.device) if len(mine) else {}))
    asked = [(count, metrics) for count, metrics in parts if count]
    if len(asked) == 1:
        return asked[0][1]
    names = asked[0][1] if asked else {}
    return {name: sum(count * metrics[name] for count, metrics in asked) / len(users) for name in names}


def default_users(items: int) -> int:
    """How many users are enough: ranking costs users times items, 17 ms of one core for each user at 10^6 items."""
    return min(25_000, max(1_000, 2_500_000_000 // items))


def _metrics(pair: TowerPair, split: Split, users: IntArray, length: int, device: torch.device) -> dict[str, float]:
    pair.eval()
    data, ends = split.data, split.validation[users]
    with torch.inference_mode():
        items = pair.item_vectors()  # (N, D)

        def score(part: Questions) -> torch.Tensor:
            batch = part.history.to(device)
            vectors = pair.user(items[batch.item], batch.kind, batch.seconds_before_newest, batch.length)
            scores: torch.Tensor = vectors @ items.T
            return scores.cpu()

        questions = ask(data, data.offsets[users], ends, data.item[ends], history_length=length)
        return rank(questions, score)["filtered"]
