"""The server: the edge, and the tenants behind it."""

from collections.abc import Callable
from contextlib import ExitStack

import psutil
import torch
from towerbridge.v1 import audience_pb2, event_pb2, item_pb2, recommendation_pb2, release_pb2, user_pb2

from server.api.calls import Calls, Served
from server.api.edge import Edge
from server.config import Config
from server.errors import StartupError
from server.garbage import freeze
from server.releases.warm_up import check_device
from server.security.exposure import check_exposure
from server.security.keys import ANYBODY, Caller, KeyRing
from server.security.tls import open_certificates
from server.telemetry.calls import CallFigures
from server.telemetry.endpoint import Metrics
from server.telemetry.stages import StagesOfTenants
from server.telemetry.traces import open_traces
from server.telemetry.upkeep import UpkeepFigures
from server.tenant import Tenant
from server.users.intake import now_us

_SERVICES = tuple(
    proto.DESCRIPTOR.services_by_name[name].full_name
    for proto, name in (
        (recommendation_pb2, "RecommendationService"),
        (event_pb2, "EventService"),
        (item_pb2, "ItemService"),
        (user_pb2, "UserService"),
        (release_pb2, "ReleaseService"),
        (audience_pb2, "AudienceService"),
    )
)


class App:
    """A loaded server. `start` serves, `stop` drains; between construction and `start` only health is answered.

    Raises StartupError, with one line that says what to do, if it cannot be loaded.
    """

    def __init__(self, config: Config, *, clock_us: Callable[[], int] = now_us) -> None:
        self._config = config
        check_device(config.engine.device)
        check_exposure(config.listen, config.security)
        _check_data(config)
        torch.set_num_threads(config.engine.threads)
        self.tenants: dict[str, Tenant] = {}
        self._figures = CallFigures()
        self._not_ready: str | None = "loading"
        self._metrics: Metrics | None = None
        with ExitStack() as opened:  # closed again if anything below fails
            self._certificates = open_certificates(config.security)
            self.metrics_port = self._serve_metrics(config, opened)
            self._edge = self._listen(config, opened)  # before anything is written or loaded: another server may be there
            self.port = self._edge.port
            for name, bundle in config.served.items():
                self.tenants[name] = Tenant(name, bundle, config, clock_us=clock_us, not_serving=self._not_serving)
                opened.callback(self.tenants[name].close)
            self._show_figures()
            self._opened = opened.pop_all()

    @property
    def tenant(self) -> Tenant:
        """The first tenant, which is the only one unless the configuration names others."""
        return next(iter(self.tenants.values()))

    def start(self) -> None:
        """Serves; health says SERVING, and the first request is as fast as any."""
        for tenant in self.tenants.values():
            tenant.start()
        freeze()
        for tenant in self.tenants.values():
            tenant.wake()  # before anybody can ask for another load
        self._not_ready = None
        self._edge.serve({name: Served(one.handlers, one.limits, one.audit) for name, one in self.tenants.items()})

    def stop(self) -> None:
        """Drains: takes no new calls, ends those in flight, then writes and closes everything."""
        self._not_ready = "draining"
        self._edge.stop()
        self._opened.close()

    def report(self) -> list[str]:
        """What was started, line by line: ports and who may connect, memory, and what each tenant has."""
        security = self._config.security
        tls = "no TLS"
        if self._certificates is not None:
            kind = "mTLS" if security.client_ca else "TLS"
            tls = f"{kind} with a certificate until {self._certificates.valid_until:%Y-%m-%d}"
        keys = f"keys of {security.keys_file}" if security.keys_file else "no keys needed"
        at = self._config.metrics.host
        metrics = f"metrics on {at}:{self.metrics_port}" if self.metrics_port is not None else "no metrics"
        memory, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
        return [
            f"listening on {self._config.listen.host}:{self.port}, {tls}, {keys}; {metrics}",
            f"{self._config.engine.device}, {self._config.engine.threads} threads a computation, "
            f"{memory / 1e6:,.0f} MB in use, {free / 1e6:,.0f} MB free on the machine",
            *(f"tenant {name}: {tenant.report()}" for name, tenant in self.tenants.items()),
        ]

    def describe(self) -> str:
        """One line for people."""
        metrics = f", metrics on port {self.metrics_port}" if self.metrics_port is not None else ""
        described = {name: tenant.describe() for name, tenant in self.tenants.items()}
        if len(described) == 1:
            return next(iter(described.values())) + metrics
        return "; ".join(f"{name}: {what}" for name, what in described.items()) + metrics

    def _listen(self, config: Config, opened: ExitStack) -> Edge:
        security = config.security
        keys = KeyRing(security.keys_file) if security.keys_file is not None else None
        anybody = Caller(next(iter(config.served)), ANYBODY.name, ANYBODY.roles, ANYBODY.key_id)
        traces = open_traces(config.traces)
        if traces is not None:
            opened.callback(traces.close)
        most = config.listen.max_message_bytes
        calls = Calls(keys, anybody, self._figures, traces, reflection=security.reflection, reply_bytes_max=most)
        credentials = self._certificates.credentials() if self._certificates is not None else None
        edge = Edge(config.listen, config.overload, credentials, calls, _SERVICES)
        opened.callback(edge.stop)
        return edge

    def _serve_metrics(self, config: Config, opened: ExitStack) -> int | None:
        """First of all, so that whoever probes the process knows that it lives while it loads."""
        if config.metrics.port is None:
            return None
        self._metrics = Metrics(self._figures, ready=lambda: self._not_ready)
        port = self._metrics.start(config.metrics.port, host=config.metrics.host)
        opened.callback(self._metrics.stop)
        return port

    def _show_figures(self) -> None:
        if self._metrics is not None:
            self._metrics.add(
                UpkeepFigures(
                    self._certificates, self._config.data, {name: tenant.folder for name, tenant in self.tenants.items()}
                ),
                StagesOfTenants({name: tenant.stages for name, tenant in self.tenants.items()}),
                *(collector for tenant in self.tenants.values() for collector in tenant.figures()),
            )

    def _not_serving(self) -> None:
        self._not_ready = "a part of the server has died; the log says which: restart it"
        self._edge.not_serving()


def _check_data(config: Config) -> None:
    """Raises StartupError if the data directory is a file's, or in a bundle, which could not be loaded again then."""
    for place in (config.data, *config.data.parents):
        if place.is_file():
            raise StartupError(f"the data directory {config.data} cannot be: {place} is a file; give another --data")
    for bundle in config.served.values():
        if config.data.resolve().is_relative_to(bundle.resolve()):
            raise StartupError(f"the data directory {config.data} lies inside the bundle {bundle}; give another --data")
