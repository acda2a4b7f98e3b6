"""How sure a figure is: people are drawn again, with replacement, and the figure is computed anew.

Every figure sees the same draws of the same people, so a difference of two models is paired: what is hard for one model
is mostly hard for the other, and the interval of the difference is far narrower than two intervals side by side suggest.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 1 << 22  # people in the draws that are in memory together

Floats = npt.NDArray[np.float64]


class Bootstrap:
    """Percentile intervals from resampled people (Efron and Tibshirani 1993, chapter 13); the seed fixes the draws."""

    def __init__(self, people: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.people, self.resamples, self.seed = people, resamples, seed

    def means(self, values: Floats, member: npt.NDArray[np.bool_] | None = None) -> Floats:
        """(R, M) float64: the mean of values (Q, M) in each draw, of all people or of those that `member` (Q,) marks.

        Draws are of all people in both cases, so the two can be subtracted; a draw without a member gives nan.
        """
        chosen = np.arange(self.people) if member is None else np.flatnonzero(member)
        parts = []
        for weights in self._draws():
            own = weights[:, chosen]
            sizes = own.sum(1, keepdims=True)
            parts.append(own @ values[chosen] / np.where(sizes > 0, sizes, np.nan))
        return np.concatenate(parts)

    def _draws(self) -> Iterator[Floats]:
        """(r, Q) float64 parts of R rows: how often each person is in a draw."""
        generator = np.random.default_rng(self.seed)
        size = max(1, AT_ONCE // max(self.people, 1))
        for begin in range(0, self.resamples, size):
            count = min(size, self.resamples - begin)
            drawn = generator.integers(0, self.people, (count, self.people))
            drawn += np.arange(count)[:, None] * self.people
            yield np.bincount(drawn.ravel(), minlength=count * self.people).reshape(count, self.people).astype(np.float64)


def interval(samples: Floats) -> Floats:
    """(R, M) figures of the draws -> (2, M): the bounds that leave 2.5 % of them below and above."""
    tail = (1 - LEVEL) / 2
    bounds: Floats = np.nanquantile(samples, [tail, 1 - tail], axis=0)
    return bounds
