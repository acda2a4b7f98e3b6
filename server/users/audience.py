"""Finding people by their vectors, a little at a time."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.users.vectors import Block, UserVectors

_BLOCK_ROWS = 16_384  # about half a millisecond


class Found(NamedTuple):
    """People and their cosines."""

    keys: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n,)


class Scan:
    """Compares a vector with everyone's, in steps between which vectors may be written and dropped.

    In the end everyone who has a vector was compared, once, by the vector that they had at the last step. Steps run on the
    engine's thread, `ranked` where it holds up nobody.
    """

    def __init__(
        self, vectors: UserVectors, query: NDArray[np.float32], min_score: float | None, *, block: int = _BLOCK_ROWS
    ) -> None:
        """query: (D,) float32, unit length. min_score: the least cosine; None: any."""
        self._vectors = vectors
        self._query = query
        self._min_score = min_score
        self._block = block
        self._started = vectors.tick
        self._next = 0  # row
        self._parts: list[Found] = []
        self._written = Found(np.zeros(0, np.int64), np.zeros(0, np.float32))  # since the start: their scores count
        self._rewritten = self._written.keys
        self.compared = 0  # people, once the scan is over

    def step(self) -> bool:
        """Looks at some people; True once everyone was looked at."""
        if self._next < self._vectors.rows():
            block = self._vectors.block(self._next, self._block)
            self._parts.append(self._scored(block))
            self._next = block.following
            return False
        late = self._vectors.written_since(self._started)
        self._rewritten, self._written = late.keys, self._scored(late)
        self.compared = len(self._vectors)
        return True

    def ranked(self) -> Found:
        """Everyone whose score is enough, nearest first, ties in any order; also who lost their vector meanwhile."""
        keys = np.concatenate([part.keys for part in self._parts] or [self._written.keys[:0]])
        scores = np.concatenate([part.scores for part in self._parts] or [self._written.scores[:0]])
        if len(self._rewritten):
            kept = ~np.isin(keys, self._rewritten)
            keys = np.concatenate([keys[kept], self._written.keys])
            scores = np.concatenate([scores[kept], self._written.scores])
        order = np.argsort(-scores, kind="stable")
        return Found(keys[order], scores[order])

    def _scored(self, block: Block) -> Found:
        scores = block.vectors @ self._query  # (n,) float32
        if self._min_score is None:
            return Found(block.keys.copy(), scores)
        enough = scores >= self._min_score
        return Found(block.keys[enough], scores[enough])
