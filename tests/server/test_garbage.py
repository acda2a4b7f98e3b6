"""Garbage in circles is collected although what was loaded is never visited."""

import subprocess
import sys

import pytest

# In a process of its own: what it freezes stays frozen.
_SCRIPT = """
import gc, weakref
from server.garbage import freeze

class Circle:
    def __init__(self):
        self.itself = self

loaded = [[] for _ in range(400_000)]
freeze(young={young})
assert gc.get_freeze_count() > 400_000
alive = weakref.WeakSet()
for _ in range(20):
    kept = [Circle() for _ in range(2_000)]  # survives the young generations, as what waits for a reply does
    alive.update(kept)
    gc.collect(1)
    del kept
    burst = [[] for _ in range(40_000)]
    del burst
print(len(alive))
"""


@pytest.mark.parametrize("young", [True, False])
def test_circles_do_not_pile_up_in_proportion_to_what_was_loaded(young: bool):
    done = subprocess.run([sys.executable, "-c", _SCRIPT.format(young=young)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "40,000 were made and left"
