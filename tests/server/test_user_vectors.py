"""Vectors in arrays against a plain dict: random puts, drops, a capacity, and what a scan sees."""

import threading
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.users import vectors as module
from server.users.audience import Found, Scan
from server.users.vectors import UserVector, UserVectors

DIM = 4
KEYS = st.one_of(st.integers(0, 12), st.integers(2**62, 2**62 + 3))
WRITES = st.lists(st.one_of(st.tuples(st.just("put"), KEYS), st.tuples(st.just("drop"), KEYS)), max_size=60)


def vector(seed: int) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return made / np.linalg.norm(made)


def stored(number: int) -> UserVector:
    return UserVector(vector(number), number, number + 1, number + 2, number + 3)


class Model:
    """What the arrays must hold."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: OrderedDict[int, int] = OrderedDict()

    def put(self, key: int, number: int) -> None:
        self.held.pop(key, None)
        if len(self.held) == self.capacity:
            self.held.popitem(last=False)
        self.held[key] = number


def write(vectors: UserVectors, model: Model, writes: list[tuple[str, int]], first: int = 0) -> None:
    for number, (what, key) in enumerate(writes, first):
        if what == "put":
            vectors.put(key, stored(number))
            model.put(key, number)
        else:
            vectors.drop([key])
            model.held.pop(key, None)


@settings(deadline=None)
@given(writes=WRITES, capacity=st.integers(1, 14))
def test_what_was_put_and_neither_dropped_nor_pushed_out_is_there(writes: list[tuple[str, int]], capacity: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_ROWS", 4)
        vectors, model = UserVectors(DIM, capacity), Model(capacity)
        write(vectors, model, writes)
        assert len(vectors) == len(model.held) <= capacity
        for key in {key for _, key in writes}:
            found, number = vectors.get(key), model.held.get(key)
            assert (found is None) == (number is None)
            if found is not None and number is not None:
                assert found[1:] == stored(number)[1:]
                assert (found.vector == vector(number)).all()
        assert len(vectors.some(100)) == len(model.held)


@settings(deadline=None)
@given(
    before=WRITES,
    meanwhile=st.lists(WRITES, max_size=4),
    capacity=st.integers(1, 14),
    min_score=st.sampled_from((None, 0.0, 0.5)),
    block=st.integers(1, 8),
)
def test_a_scan_finds_everyone_once_by_their_last_vector(
    before: list[tuple[str, int]],
    meanwhile: list[list[tuple[str, int]]],
    capacity: int,
    min_score: float | None,
    block: int,
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_ROWS", 4)
        vectors, model = UserVectors(DIM, capacity), Model(capacity)
        write(vectors, model, before)
        query, first = vector(999), len(before)
        scan = Scan(vectors, query, min_score, block=block)
        while not scan.step():
            if meanwhile:
                writes = meanwhile.pop()
                write(vectors, model, writes, first)
                first += len(writes)
        ranked = scan.ranked()
        kept = [key in vectors for key in ranked.keys.tolist()]
        found = Found(ranked.keys[kept], ranked.scores[kept])
        expected = {key: float(vector(number) @ query) for key, number in model.held.items()}
        expected = {key: score for key, score in expected.items() if min_score is None or score >= min_score}
        assert len(found.keys) == len(expected)
        assert dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)
        assert (np.diff(found.scores) <= 0).all()
        assert scan.compared == len(model.held)


def test_an_older_vector_does_not_replace_a_newer_one():
    vectors = UserVectors(DIM)
    vectors.put(1, stored(5))
    vectors.put(1, stored(4))
    found = vectors.get(1)
    assert found is not None
    assert found.version == 5


def test_nothing_of_a_dropped_vector_stays_in_memory():
    vectors = UserVectors(DIM)
    vectors.put(1, stored(5))
    vectors.drop([1])
    assert not vectors._chunks[0].vectors.any()


def test_readers_see_whole_vectors_of_the_right_person_while_rows_change_hands():
    vectors, dim, stop = UserVectors(64, capacity=3), 64, threading.Event()
    torn: list[tuple[int, UserVector]] = []

    def read() -> None:
        while not stop.is_set():
            for key in range(8):
                found = vectors.get(key)
                if found is not None and not (found.vector == key).all():
                    torn.append((key, found))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(30_000):
        key = number * 5 % 8
        vectors.put(key, UserVector(np.full(dim, key, dtype=np.float32), number, 0, 0, 0))
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn
