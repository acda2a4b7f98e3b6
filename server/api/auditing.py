"""Calls whose lines are in the audit log before they are worked on, and before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from server.api.context import Context, Inner
from server.api.method import Method, look_at_error
from server.api.status import status_of
from server.errors import ServiceError, Unavailable
from server.security.keys import Caller

_FINISH_SECONDS = 2.0


class Auditing:
    """On the event loop."""

    def __init__(self, caller: Callable[[Any], Caller]) -> None:
        """caller: whose call a context is."""
        self._caller = caller
        self._work: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """Waits a little for audited work that goes on although its caller has left, then ends it."""
        if self._work:
            _, late = await asyncio.wait(tuple(self._work), timeout=_FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def note(self, method: Method, caller: Caller, peer: str, code: grpc.StatusCode | None, request: Any) -> None:
        """Has a line of the audit log on disk. code: None before the call is worked on. Raises Unavailable if it cannot be."""
        if method.audit is None:
            return
        was = "nothing was done" if code is None else "the call was worked on"
        try:
            outcome = code.name if code is not None else "STARTED"
            await asyncio.wrap_future(
                method.audit.write(caller, method.name, peer, outcome, _details(request) if request else {})
            )
        except OSError as error:
            raise Unavailable(f"the audit log cannot be written: {error.strerror or error}; {was}") from error

    def audited(self, method: Method, inner: Inner, *, unary: bool) -> Inner:
        """The handler of a method that is audited. unary: it answers once; what streams do ends with their callers."""

        async def work(data: Any, context: Context) -> Any:
            caller, peer, request = self._caller(context), context.peer(), _request(method, data)
            await self.note(method, caller, peer, None, request)
            code = grpc.StatusCode.OK
            try:
                return await inner(data, context)
            except BaseException as error:
                code, message = status_of(method.name, error)
                if code is grpc.StatusCode.INTERNAL and message is not None:
                    raise ServiceError(message) from error  # it is logged, with whom it was about, which this task alone knows
                raise
            finally:
                await asyncio.shield(self.note(method, caller, peer, code, request))

        async def audited(data: Any, context: Context) -> Any:
            # In a task that goes on if the caller leaves: what was done is to be in the log, not that nobody waited for it.
            task = asyncio.ensure_future(work(data, context))
            self._work.add(task)
            task.add_done_callback(self._work.discard)
            task.add_done_callback(look_at_error)
            return await asyncio.shield(task)

        return audited if unary else work


def _details(request: Message, within: str = "") -> dict[str, str]:
    """The texts of a request by field, such as "person.user_id"."""
    found: dict[str, str] = {}
    for field, value in request.ListFields():
        if isinstance(value, Message):
            found |= _details(value, f"{within}{field.name}.")
        elif isinstance(value, str):
            found[f"{within}{field.name}"] = value
    return found


def _request(method: Method, data: Any) -> Any:
    """The message of a unary call; None if there is none, or it cannot be read."""
    try:
        return method.decode(data) if isinstance(data, bytes) else None
    except DecodeError:
        return None
