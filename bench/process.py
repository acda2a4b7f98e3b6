"""A server in a process of its own, as users run it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

_READY = "is ready on port "


class ServerError(Exception):
    """The server did not start, or did not stop cleanly."""


class ServerProcess:
    """`python -m server` on a free loopback port. `ready_line` is what it said when it was ready.

    log: a file that gets what it says on standard error; otherwise that goes where the caller's goes.
    """

    def __init__(self, bundle: Path, data: Path, *flags: str, log: Path | None = None) -> None:
        command = [sys.executable, "-m", "server", "--bundle", str(bundle), "--data", str(data), "--port", "0", *flags]
        with nullcontext() if log is None else log.open("ab") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.ready_line = self._process.stdout.readline().strip() if self._process.stdout else ""
        if _READY not in self.ready_line:
            self.kill()
            raise ServerError(f"the server did not start; its message is {'above' if log is None else f'in {log}'}")
        self.target = f"127.0.0.1:{int(self.ready_line.split(_READY)[1].split(':')[0])}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Asks the server to drain; raises ServerError if it does not leave with status 0."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError("the server did not stop within a minute and was killed") from None
        self._close()
        if status:
            raise ServerError(f"the server left with status {status}")

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), as a crash would."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def running_server(bundle: Path, data: Path, *flags: str, log: Path | None = None) -> Iterator[ServerProcess]:
    """A server that is drained at the end, and killed if the body fails."""
    server = ServerProcess(bundle, data, *flags, log=log)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    server.stop()
