"""Whether the service's answers are those of the offline replay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.freshness.policies import IntArray
from bench.freshness.ranking import CUTOFF
from bench.freshness.replay import Replayed
from bench.freshness.service import Answer
from index.bundle import Bundle
from training.progress import Progress

TOLERANCE = 1e-5
SAME_SHARE = 0.999
_AT_ONCE = 256


@dataclass
class Agreement:
    """Of the targets: how many were hits, or misses, both here and there; and how far the answers' scores lie apart."""

    compared: int = 0
    same: int = 0
    ties: int = 0  # differ, and the target's score is within TOLERANCE of the tenth best
    different: int = 0
    same_scores: int = 0  # answers whose scores are all within TOLERANCE of the offline ones, best first
    not_asked: int = 0  # more items were held back than a call may exclude by name
    largest_difference: float = 0.0  # of a score, over all answers; infinite if one has more or fewer items

    @property
    def passed(self) -> bool:
        return self.compared > 0 and self.different == 0 and self.same >= SAME_SHARE * self.compared

    def add(self, hits: tuple[bool, bool], own: float, best: list[float], scores: list[float]) -> None:
        """hits: of the service and offline. own: the target's score offline. best, scores: the tens of both, best first."""
        self.compared += 1
        if hits[0] == hits[1]:
            self.same += 1
        elif abs(own - best[-1]) <= TOLERANCE:
            self.ties += 1
        else:
            self.different += 1
        candidates = [score for score in best if score > -np.inf]
        alike = len(candidates) == len(scores)
        difference = max((abs(one - other) for one, other in zip(candidates, scores, strict=False)), default=0.0)
        difference = difference if alike else float("inf")
        self.same_scores += difference <= TOLERANCE
        self.largest_difference = max(self.largest_difference, difference)

    def as_json(self) -> dict[str, Any]:
        largest = self.largest_difference if np.isfinite(self.largest_difference) else None
        return vars(self) | {"largest_difference": largest, "passed": self.passed}


def compare(bundle: Bundle, replayed: Replayed, policy: str, answers: Sequence[Answer | None], progress: Progress) -> Agreement:
    """Scores every target's candidates again offline, beside the answer that the service gave, None where it was not asked."""
    agreement = Agreement()
    questions, hits = replayed.questions, replayed.ranks[policy] < CUTOFF
    popularity = bundle.items["popularity"].to_numpy()
    shares = torch.from_numpy((popularity / max(popularity.sum(), 1)).astype(np.float32))  # (N,)
    with torch.inference_mode(), progress.bar("compare", len(questions)) as bar:
        for begin in range(0, len(questions), _AT_ONCE):
            some = np.arange(begin, min(begin + _AT_ONCE, len(questions)))
            scores = _scores(bundle, replayed, policy, some, shares)
            best = torch.topk(scores, min(CUTOFF, scores.shape[1]), dim=1).values.tolist()
            for place, number in enumerate(some.tolist()):
                item, answer = int(questions.items[number]), answers[number]
                if answer is None:
                    agreement.not_asked += 1
                    continue
                found = item >= 0 and bundle.item_ids[item] in answer.item_ids
                own = float(scores[place, item]) if item >= 0 else -np.inf
                agreement.add((found, bool(hits[number])), own, best[place], answer.scores)
            bar.update(len(some))
    return agreement


def _scores(bundle: Bundle, replayed: Replayed, policy: str, some: IntArray, shares: torch.Tensor) -> torch.Tensor:
    """(B, N) float32: cosines, or popularity as a share of all events where there is no history; -inf where seen."""
    questions, has_vector = replayed.questions, replayed.has_vector[policy][some]
    scores = shares.repeat(len(some), 1)
    asked = some[has_vector]
    if len(asked):
        ends = replayed.ends[policy][asked]
        vectors = questions.histories.encode(bundle, questions.users[asked], ends, Progress(quiet=True))
        scores[torch.from_numpy(has_vector)] = torch.from_numpy(vectors @ bundle.item_vectors.T)
    owners, items = questions.seen(some)
    scores[torch.from_numpy(owners), torch.from_numpy(items)] = -torch.inf
    return scores
