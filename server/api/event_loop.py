"""The event loop that runs gRPC's calls."""

from __future__ import annotations  # the type of a file descriptor is in stubs only

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVarTuple

import uvloop

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_MANY = 4096  # bytes
Ts = TypeVarTuple("Ts")


class EventLoop(uvloop.Loop):
    """uvloop's, which takes a socket's wake-ups together.

    gRPC writes a byte for each of a call's four events, and reads one when the loop wakes, though it then looks at all events
    that are due. So the loop wakes again and again for nothing; and where several come per turn of the loop the bytes pile up,
    until they fill the socket, 278 of them, and gRPC's own thread waits to write one more. From then on the loop gets one
    event a turn, and calls wait within gRPC until their deadlines although nothing here is full.
    """

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        """Calls back once for all that has come; of a socket that must be wake-ups, as of gRPC's, the only one here."""
        if not isinstance(fd, socket.socket):
            super().add_reader(fd, callback, *args)
            return

        read = bytearray(_MANY)

        def woken(*args: *Ts) -> None:
            with suppress(BlockingIOError):  # another loop in this process has read it
                waiting = fd.recv_into(read, 0, socket.MSG_PEEK)
                if waiting > 1:  # before the events are looked at: what comes from now on wakes the loop again
                    fd.recv_into(read, waiting - 1)
            callback(*args)

        super().add_reader(fd, woken, *args)
