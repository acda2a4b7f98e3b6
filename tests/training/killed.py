"""`python -m tests.training.killed SIGNAL N …`: `python -m training …` that gets a signal after its Nth checkpoint.

By itself, since how far a process has come when another one kills it depends on what else the machine does.
"""

import os
import signal
import sys
from typing import Any

from training.cli import main
from training.fitting.checkpoint import Checkpoint


def kill_after(checkpoints: int, number: signal.Signals) -> None:
    """From now on this process gets the signal when it has written that many."""
    write, left = Checkpoint.write, iter(range(checkpoints - 1))

    def write_and_die(self: Checkpoint, state: dict[str, Any]) -> None:
        write(self, state)
        if next(left, None) is None:
            os.kill(os.getpid(), number)

    Checkpoint.write = write_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    kill_after(int(sys.argv[2]), signal.Signals[sys.argv[1]])
    sys.exit(main(sys.argv[3:]))
