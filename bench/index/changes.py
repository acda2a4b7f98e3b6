"""Items that are added, replaced and removed, and how fast that goes."""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.index.data import Data
from bench.index.engines import Engine, Labels
from bench.index.latency import Timing

BATCH = 256
_BATCHES_MAX = 64
_TURN = 0.3  # length of what is added to an item's vector to make another's, so that new items lie where items lie
_REPEATS_MAX = 3


class Changes:
    """Upserts to make: half of each batch gives a known item another vector, half is new. `undo` takes back what was noted."""

    def __init__(self, vectors: NDArray[np.float32], seed: int) -> None:
        self._vectors = vectors
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(vectors))
        self._next = 0
        self._new = len(vectors)
        self.replaced: list[int] = []
        self.added: list[int] = []

    def take(self, count: int) -> tuple[Labels, NDArray[np.float32]]:
        """The next upserts: (n,) int64 labels, each once, and (n, D) float32 unit rows; n < count if there are few items."""
        known = min(count // 2, len(self._order))
        places = np.arange(self._next, self._next + known) % len(self._order)
        self._next += known
        new = np.arange(self._new, self._new + count - count // 2)
        self._new += len(new)
        labels = np.concatenate([self._order[places], new])
        bases = self._vectors[self._random.integers(len(self._vectors), size=len(labels))]
        turns = self._random.standard_normal(bases.shape, dtype=np.float32) * np.float32(_TURN / np.sqrt(bases.shape[1]))
        rows = bases + turns
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return labels, rows

    def note(self, labels: Labels) -> None:
        """Remembers that these upserts were made."""
        known = labels < len(self._vectors)
        self.replaced += labels[known].tolist()
        self.added += labels[~known].tolist()

    def undo(self, engine: Engine) -> None:
        """Brings the engine back to the items that it was built with."""
        settle(engine)
        replaced = np.unique(np.array(self.replaced, dtype=np.int64))
        for part in _parts(np.array(self.added, dtype=np.int64)):
            engine.remove(part)
            settle(engine)
        for part in _parts(replaced):
            engine.upsert(part, self._vectors[part])
            settle(engine)
        self.replaced.clear()
        self.added.clear()


def settle(engine: Engine) -> None:
    """Settles everything."""
    while engine.settle():
        pass


def change_rates(engines: Sequence[Engine], data: Data, timing: Timing, *, seed: int) -> Mapping[str, tuple[float, float]]:
    """Upserts and removes per second by engine, in batches of 256, each settled to its end; for those that take changes."""
    engines = [engine for engine in engines if engine.changes]
    rates: dict[str, list[tuple[float, float]]] = {engine.name: [] for engine in engines}
    for repeat in tqdm(
        range(min(timing.repeats, _REPEATS_MAX)), desc="upserts, removes", unit="repeat", leave=False, disable=None
    ):
        for engine in engines if repeat == 0 else [engine for engine in engines if not engine.slow_changes]:
            changes = Changes(data.vectors, seed + repeat)
            upserts = _upserts_per_s(engine, changes, timing.seconds)
            rates[engine.name].append((upserts, _removes_per_s(engine, changes, timing.seconds)))
            changes.undo(engine)
    medians = {name: np.median(own, axis=0).round(1).tolist() for name, own in rates.items()}
    return {name: (upserts, removes) for name, (upserts, removes) in medians.items()}


def _upserts_per_s(engine: Engine, changes: Changes, seconds: float) -> float:
    done, spent = 0, 0.0
    for _ in range(_BATCHES_MAX):
        labels, rows = changes.take(BATCH)
        started = time.perf_counter()
        engine.upsert(labels, rows)
        settle(engine)
        spent += time.perf_counter() - started
        done += len(labels)
        changes.note(labels)
        if spent > seconds:
            break
    return done / spent


def _removes_per_s(engine: Engine, changes: Changes, seconds: float) -> float:
    """Removes new and known items by turns; what is left of them is for `Changes.undo`."""
    done, spent = 0, 0.0
    known = list(dict.fromkeys(changes.replaced))
    count = min(len(known), len(changes.added))
    removable = np.array([known[:count], changes.added[:count]], dtype=np.int64).T.ravel()
    for part in _parts(removable):
        started = time.perf_counter()
        engine.remove(part)
        settle(engine)
        spent += time.perf_counter() - started
        done += len(part)
        if spent > seconds:
            break
    gone = set(removable[:done].tolist())
    changes.added = [label for label in changes.added if label not in gone]
    return done / spent


def _parts(labels: Labels) -> Iterator[Labels]:
    for start in range(0, len(labels), BATCH):
        yield labels[start : start + BATCH]
