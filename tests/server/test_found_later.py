"""Found after the first mending; each test fails until its bug is mended."""

import os
import signal
import threading
import time
from pathlib import Path

from server.catalogue.text_worker import TextWorker
from server.errors import DeadlineExceeded
from tests.tiny import write_tiny_encoder

PATIENCE_S = 20.0


def test_long_texts_for_a_worker_that_hangs_hold_nobody_beyond_the_deadline(tmp_path: Path):
    """text_worker.py: send waits for ever once the pipe is full: 32 texts of 8 KiB, or several questions given up."""
    worker = TextWorker(write_tiny_encoder(tmp_path / "encoder"))
    worker.encode(["red hats"])
    pid = worker._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            worker.encode([f"{number} " + "red " * 2000 for number in range(32)], deadline=time.monotonic() + 0.2)
        except BaseException as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(1.5)
    hung = asking.is_alive()
    os.kill(pid, signal.SIGCONT)
    asking.join(PATIENCE_S)
    worker.close()
    assert not hung
    assert isinstance(ended[0], DeadlineExceeded)
