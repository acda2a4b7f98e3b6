"""Jobs that take turns."""

from collections.abc import Callable


class Turns:
    """Does a little of one job at each call, of each job in turn, so that none waits for another to run out of work.

    A job is a function that does a little, and returns False if it has nothing left to do for now. Jobs may be `Turns`, whose
    own jobs then take turns with the others: several that each went round at their own pace would never be idle together.
    """

    def __init__(self, *jobs: Callable[[], bool]) -> None:
        """jobs: at least one."""
        self._jobs: list[Callable[[], bool]] = [
            leaf for job in jobs for leaf in (job._jobs if isinstance(job, Turns) else (job,))
        ]
        self._next = 0
        self._done = 0  # jobs in a row that had nothing left

    def __call__(self) -> bool:
        """Calls the next job; False if all of them, one after the other, have nothing left."""
        job = self._jobs[self._next]
        self._next = (self._next + 1) % len(self._jobs)
        self._done = 0 if job() else self._done + 1
        if self._done < len(self._jobs):
            return True
        self._done = 0
        return False
