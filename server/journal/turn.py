"""A turn on the thread that writes."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from server.journal.writer import JournalWriter, Transaction

T = TypeVar("T")


class _Turn(Generic[T]):
    rows = 1
    alone = True

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function

    def commit(self, transaction: Transaction) -> None:
        """Nothing is written."""

    def publish(self) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(self._function())
        except Exception as error:  # the caller's; the views that writes publish to are as they were
            done.set_exception(error)
        return done


def in_turn(journal: JournalWriter, function: Callable[[], T]) -> T:
    """Runs a function where writes are published: after all that were committed before, and before all others. Waits for it."""
    return journal.submit(_Turn(function)).result().result()
