import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.slot_queue import SlotQueue

parts = st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=9)


@given(parts, st.lists(st.integers(1, 12), max_size=30))
def test_slots_come_out_in_the_order_in_which_they_went_in_whatever_the_sizes(parts: list[list[int]], sizes: list[int]):
    queue, expected = SlotQueue(), [slot for part in parts for slot in part]
    for part in parts:
        queue.append(np.array(part, dtype=np.int64))
    for size in sizes:
        assert len(queue) == len(expected)
        taken = queue.take(size).tolist()
        assert taken == queue.take(size).tolist() == expected[:size]
        queue.done(len(taken))
        expected = expected[size:]


def test_a_callers_array_may_change_afterwards():
    queue, slots = SlotQueue(), np.array([1, 2])
    queue.append(slots)
    slots[:] = 9
    assert queue.take(2).tolist() == [1, 2]
    queue.clear()
    assert not len(queue)
