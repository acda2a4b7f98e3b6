"""The one path of every call: is the server ready -> who calls -> may they -> is there room -> the guard and the handler."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from server.api.auditing import Auditing
from server.api.context import Context, Handler
from server.api.guard import Guard
from server.api.method import Method
from server.api.refusals import Refusal
from server.errors import ServiceError, Unavailable
from server.overload.limits import Limits
from server.security.audit import AuditLog
from server.security.keys import Caller, KeyRing
from server.security.roles import AUDITED, ROLE_OF, Role
from server.telemetry.calls import CallFigures, CallRow, Reason, kind_of

if TYPE_CHECKING:
    from server.telemetry.otlp import Traces  # which needs OpenTelemetry

_LOADING = Refusal(grpc.StatusCode.UNAVAILABLE, "the server is loading; repeat the call in a moment")
_DRAINING = Refusal(grpc.StatusCode.UNAVAILABLE, "the server is draining; repeat the call on another one")
_NO_KEY = Refusal(
    grpc.StatusCode.UNAUTHENTICATED, "this server needs an API key: send metadata `authorization: Bearer KEY` with a valid one"
)
_FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once; repeat the call later", pushback_ms=200)
_UNKNOWN = Refusal(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method")
_TENANT_GONE = Refusal(grpc.StatusCode.PERMISSION_DENIED, "this server does not serve the tenant of this key")


class _KeyRevoked(ServiceError):
    code = _NO_KEY.code


class Served(NamedTuple):
    """What a tenant answers with."""

    handlers: Mapping[str, Any]  # by full method name
    limits: Limits
    audit: AuditLog | None


class _Ready(NamedTuple):
    """A method of a tenant, and what answers its calls."""

    method: Method
    handler: Handler


class Calls:
    """Says what answers each call, or why it is refused without reading its message."""

    def __init__(
        self,
        keys: KeyRing | None,
        anybody: Caller,
        figures: CallFigures,
        traces: Traces | None,
        *,
        reflection: bool,
        reply_bytes_max: int,
    ) -> None:
        """keys: None if nobody needs one; every call is `anybody`'s then. reflection: whether it is offered."""
        self._reply_bytes_max = reply_bytes_max
        self._keys = keys
        self._anybody = anybody
        self._figures = figures
        self._traces = traces
        self._reflection = reflection
        self._open: dict[str, _Ready] = {}  # what anybody may call at any time
        self._shared: dict[str, Any] = {}  # handlers that are the same for every tenant
        self._tenants: dict[str, dict[str, _Ready]] = {}
        self._refused: dict[tuple[str, str], CallRow] = {}
        self._gate: Refusal | None = _LOADING
        self._auditing = Auditing(self._caller)
        self._guard = Guard(self._auditing, _DRAINING, _FULL)

    def offer(self, handlers: Mapping[str, Any], limits: Limits) -> None:
        """Methods of the server itself: health, which is answered from now on, and reflection. limits: of health."""
        for name, handler in handlers.items():
            if ROLE_OF.get(name) is Role.OPEN:
                self._open[name] = self._ready(name, handler, Role.OPEN, "", limits, None)
            elif self._reflection:
                self._shared[name] = handler

    def serve(self, tenants: Mapping[str, Served]) -> None:
        """From now on calls are answered. To be called on the event loop."""
        for tenant, served in tenants.items():
            self._tenants[tenant] = {
                name: self._ready(name, handler, ROLE_OF[name], tenant, served.limits, served.audit)
                for name, handler in {**served.handlers, **self._shared}.items()
                if name in ROLE_OF  # default-deny; a test holds that every method is there
            }
        self._gate = None

    def drain(self) -> None:
        """Takes no more calls and no more requests of streams. To be called on the event loop."""
        self._gate = _DRAINING
        self._guard.drain()

    def end_watches(self) -> None:
        """Ends the calls that only watch health, when they have been told. To be called on the event loop."""
        self._guard.end_watches()

    def service(self, context: Context) -> Handler | Refusal:
        """The handler of a call that has come, by method and key, with a place for it."""
        name = context.method
        ready = self._open.get(name)
        if ready is not None:
            return self._let_in(ready, context)
        if self._gate is not None:
            return self._refuse(name, "", self._gate, "draining" if self._gate is _DRAINING else None)
        caller = self._anybody
        if self._keys is not None:
            found = self._keys.caller(context.invocation_metadata())
            if found is None:
                return self._refuse(name, "", _NO_KEY)
            caller = found
        methods = self._tenants.get(caller.tenant)
        if methods is None:
            return self._refuse(name, "", _TENANT_GONE)
        ready = methods.get(name)
        if ready is None:
            return _UNKNOWN
        if ready.method.role not in caller.roles:
            return self._deny(ready, caller)
        return self._let_in(ready, context)

    async def finish(self) -> None:
        """Waits for what goes on although its caller has left."""
        await self._auditing.finish()

    def _ready(self, name: str, handler: Any, role: Role, tenant: str, limits: Limits, audit: AuditLog | None) -> _Ready:
        stream = bool(handler.request_streaming or handler.response_streaming)
        method = Method(
            name=name,
            tenant=tenant,
            role=role,
            limit=limits.of(role, stream=stream),
            figures=self._figures,
            row=self._figures.row(tenant, name, kind_of(name)),
            audit=audit if name in AUDITED else None,
            traces=self._traces if role is not Role.OPEN else None,
            decode=handler.request_deserializer or bytes,
            encode=handler.response_serializer,
            reply_bytes_max=self._reply_bytes_max,
        )
        return _Ready(method, self._guard.guarded(method, handler))

    def _let_in(self, ready: _Ready, context: Context) -> Handler | Refusal:
        """The handler, if there is room for one more call."""
        method = ready.method
        if method.limit.is_full:
            return self._refuse(method.name, method.tenant, _FULL, "limit")
        context.place = method.limit.let_in()
        return ready.handler

    def _deny(self, ready: _Ready, caller: Caller) -> Handler | Refusal:
        role = ready.method.role.value
        refusal = Refusal(grpc.StatusCode.PERMISSION_DENIED, f"{ready.method.name} needs a key with the role {role}")
        ready.method.row.refused(refusal.code)
        if ready.method.audit is None:
            return refusal

        async def deny(_: object, context: Context) -> None:
            with suppress(Unavailable):  # which the audit log has logged; the call is refused either way
                await self._auditing.note(ready.method, caller, context.peer(), refusal.code, None)
            context.end(refusal.code, refusal.message)

        return Handler(deny, takes_message=False)

    def _refuse(self, name: str, tenant: str, refusal: Refusal, shed: Reason | None = None) -> Refusal:
        role = ROLE_OF.get(name)
        if role is not None:  # else anybody could have figures of any name kept
            row = self._refused.get((tenant, name))
            if row is None:
                row = self._refused[tenant, name] = self._figures.row(tenant, name, kind_of(name))
            row.refused(refusal.code)
            if shed is not None:
                self._figures.shed(tenant, role.value, shed)
        return refusal

    def _caller(self, context: Context) -> Caller:
        """Whose call is about to be worked on. Raises _KeyRevoked: a message may come long after its headers."""
        found = self._keys.caller(context.invocation_metadata()) if self._keys is not None else self._anybody
        if found is None:
            raise _KeyRevoked(_NO_KEY.message)
        return found
