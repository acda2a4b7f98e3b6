"""How long a batch takes, for those who cannot wait so long."""

from collections import deque

_BATCHES = 8


class BatchTime:
    """A lower bound of the next batch's time, and the usual one of a query, by the last few batches. For whoever computes.

    The quickest of them counts: after one that was held up, by another process for example, nothing is refused that could be
    answered. What is refused is not measured, so each refusal makes the bound smaller, until something is computed again.
    """

    def __init__(self) -> None:
        self._of_a_query: deque[float] = deque([0.0], maxlen=_BATCHES)  # seconds

    def at_least(self, queries: int) -> float:
        """Seconds for so many queries."""
        return min(self._of_a_query) * queries

    def usual(self) -> float:
        """Seconds of a query: half of the last batches took less for each."""
        return sorted(self._of_a_query)[len(self._of_a_query) // 2]

    def took(self, seconds: float, queries: int) -> None:
        """A batch was computed."""
        self._of_a_query.append(seconds / queries)

    def refused(self) -> None:
        """A batch was refused whole."""
        self._of_a_query.append(min(self._of_a_query) / 2)
