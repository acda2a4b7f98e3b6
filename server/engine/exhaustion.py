"""Failures that a computation may meet on a device: out of memory, which passes, and a broken device, which does not."""

import logging
import traceback

import torch

from index.gpu.graph import RECORDING
from server.errors import ResourceExhausted

_log = logging.getLogger(__name__)
_AT_MOST_IN_A_ROW = 3
_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "bad_alloc", "Failed to allocate")


class DeviceLost(Exception):
    """The engine cannot compute any more."""


class Exhaustion:
    """Decides what a failed computation means for the engine.

    One that ran out of memory is refused, its memory given back, and the engine goes on. After `_AT_MOST_IN_A_ROW` of them
    without an answered batch in between the engine ends: a server that refuses everything and says SERVING would keep its
    share of the traffic. It ends at once when the device reports an error of its own (an illegal access, a device that fell
    off the bus): CUDA answers nothing in this process after that.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def answered(self) -> None:
        """A batch was computed."""
        self._in_a_row = 0

    def refusal(self, error: Exception) -> Exception:
        """What callers are told of the error: the error itself, or, if memory ran out, that they may try again later.

        Raises DeviceLost if the engine has to end.
        """
        if not is_out_of_memory(error):
            if isinstance(error, torch.AcceleratorError):
                raise DeviceLost("the device has failed") from error
            return error
        self._in_a_row += 1
        _log.error("out of memory, %d in a row: %s", self._in_a_row, str(error).strip().partition("\n")[0])
        _give_back(error)
        if self._in_a_row >= _AT_MOST_IN_A_ROW:
            raise DeviceLost(f"{self._in_a_row} computations in a row ran out of memory") from None
        return ResourceExhausted("not enough memory to compute this now; repeat the call later, or with a smaller limit")


def is_out_of_memory(error: Exception) -> bool:
    """Torch on CUDA and cupy have classes of their own; torch on a CPU, FAISS and cuBLAS leave it to a RuntimeError's words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def _give_back(error: Exception) -> None:
    # The traceback's frames hold the tensors of the failed computation: nothing would be free before they are gone.
    traceback.clear_frames(error.__traceback__)
    with RECORDING:
        torch.cuda.empty_cache()  # nothing where CUDA was never used
