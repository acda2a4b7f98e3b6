"""Texts to embeddings, in a process of its own: a thousand titles would hold the engine for seconds."""

import logging
import multiprocessing
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.errors import DeadlineExceeded, Unavailable

_log = logging.getLogger(__name__)
_LATE = "the texts could not be encoded in time; give the call more time or fewer items"
_FAREWELL_SECONDS = 5.0
_CHUNK = 32  # texts encoded between two looks at the deadline


class TextWorker:
    """A process that holds the release's text encoder. It is started at once and loads while the server loads.

    One thread talks to it, so that callers wait no longer than they want to, whatever the process does. If it dies, the calls
    that wait fail with UNAVAILABLE, and the next call starts it again.
    """

    def __init__(self, encoder: Path) -> None:
        self._encoder = encoder
        self._talker = ThreadPoolExecutor(1, thread_name_prefix="text-worker")
        self._start()

    def encode(self, texts: list[str], *, deadline: float | None = None) -> NDArray[np.float32]:
        """Embeddings of the texts, in their order: (n, T) float32. `deadline` is in time.monotonic seconds.

        Raises DeadlineExceeded, or Unavailable if the worker died.
        """
        future = self._talker.submit(self._encode, texts, deadline)
        try:
            return future.result(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            future.cancel()
            raise DeadlineExceeded(_LATE) from None

    def close(self) -> None:
        """Ends the process: in good order after what it is doing, or by force after a few seconds."""
        self._talker.submit(self._connection.send, None)
        self._process.join(_FAREWELL_SECONDS)
        self._process.kill()
        self._process.join()
        self._talker.shutdown(cancel_futures=True)
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(str(self._encoder), theirs), name="text-worker", daemon=True)
        self._process.start()
        theirs.close()

    def _encode(self, texts: list[str], deadline: float | None) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(texts), _CHUNK):
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded(_LATE)
            parts.append(self._ask(texts[start : start + _CHUNK]))
        return np.concatenate(parts)

    def _ask(self, texts: list[str]) -> NDArray[np.float32]:
        if not self._process.is_alive():
            _log.error("the text worker died with exit code %s; starting it again", self._process.exitcode)
            self._connection.close()
            self._start()
        try:
            self._connection.send(texts)
            answer: NDArray[np.float32] | str = self._connection.recv()
        except (EOFError, OSError):
            raise Unavailable("the text encoder stopped; repeat the call") from None
        if isinstance(answer, str):
            raise RuntimeError(f"the text encoder failed: {answer}")
        return answer


def _serve(encoder: str, connection: Connection) -> None:
    """The worker's whole life: load, then answer until the other end closes or says None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle; the pipe's end ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from index.bundle.text import load_text_encoder

    disable_progress_bar()  # type: ignore[no-untyped-call]  # it would write over the server's log
    torch.set_num_threads(1)
    loaded = load_text_encoder(Path(encoder))
    while True:
        try:
            texts = connection.recv()
        except EOFError:
            return
        if texts is None:
            return
        try:
            connection.send(np.asarray(loaded.encode(texts), dtype=np.float32))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
