"""The process that prepares a release: Python that works for seconds would hold the interpreter's lock against every answer."""

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from server.errors import InvalidField, Unavailable
from server.releases.preparing import Order, Progress

_NICENESS = 10  # answers come first
_LOOK_SECONDS = 0.1


class Stopped(Exception):
    """Nobody wants the release any more."""


def prepare_aside(order: Order, progress: Progress, stopping: threading.Event) -> None:
    """`prepare` in a process of its own, which ends with this call, whatever happens.

    Raises InvalidField for a bundle that is refused, Unavailable if the process dies, and Stopped once `stopping` is set.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(order, theirs), name="release-preparation", daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            if stopping.is_set():
                raise Stopped
            if not ours.poll(_LOOK_SECONDS):
                continue
            try:
                kind, *details = ours.recv()
            except EOFError:
                process.join()
                raise Unavailable(f"the process that prepared the release died ({process.exitcode}); load it again") from None
            match kind:
                case "progress":
                    progress(*details)
                case "refused":
                    raise InvalidField("bundle", details[0])
                case "failed":
                    raise RuntimeError(f"the release could not be prepared: {details[0]}")
                case _:
                    return
    finally:
        process.kill()
        process.join()
        ours.close()


def _work(order: Order, connection: Connection) -> None:
    """The process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # where it is not permitted, it competes with the answers
        os.nice(_NICENESS)
    import faiss
    import torch

    from index.bundle import BundleError
    from server.releases.preparing import prepare

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)

    def tell(*message: Any) -> None:
        try:
            connection.send(message)
        except OSError:  # the server has gone
            os._exit(1)

    try:
        prepare(order, lambda stage, done: tell("progress", stage, done))
        tell("done")
    except BundleError as error:
        tell("refused", str(error))
    except Exception as error:
        tell("failed", f"{type(error).__name__}: {error}")
