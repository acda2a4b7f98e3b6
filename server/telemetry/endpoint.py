"""The port that Prometheus scrapes and that orchestrators probe."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.errors import StartupError
from server.telemetry.gpu import GpuFigures
from server.telemetry.process import ProcessFigures

_log = logging.getLogger(__name__)


Ready = Callable[[], str | None]
"""Why the server is not ready, in one line; None if it is. Any thread may call it."""


class Metrics:
    """Serves http://host:port/metrics, /livez and /readyz, in threads of its own and from a registry of its own.

    The figures are those of the collectors, of the process, of its GPUs, and whether the server is ready. A metric that several
    collectors have, one for each tenant, is one with all of their samples. A collector is read anew at every scrape, by another
    thread than the one that owns what it reads: it may read only single values that are replaced whole.
    """

    def __init__(self, *collectors: Collector, ready: Ready = lambda: None) -> None:
        self._ready = ready
        self._collectors = _Merged([_Readiness(ready), *collectors])
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def add(self, *collectors: Collector) -> None:
        """More figures, also while it serves."""
        self._collectors.parts = [*self._collectors.parts, *collectors]

    def start(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Listens, and returns the port; 0 takes any free one. Raises StartupError if it cannot be had."""
        registry = CollectorRegistry()
        registry.register(self._collectors)
        try:
            self._server = _Server(host, port, registry, self._ready)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartupError(f"metrics.port: cannot listen on {host}:{port}: {reason}; give another port, or 0") from None
        self._process, self._gpus = ProcessFigures(), GpuFigures()
        self._collectors.own = [self._process, self._gpus]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True)
        self._thread.start()
        bound: int = self._server.server_address[1]
        return bound

    def stop(self) -> None:
        """Closes the port and what is connected to it, and waits for the threads to end."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.disconnect()
        self._server.server_close()
        self._server = self._thread = None
        self._process.close()
        self._gpus.close()


class _Merged(Collector):
    """What several collectors tell, each metric once."""

    def __init__(self, parts: list[Collector]) -> None:
        self.parts = parts
        self.own: list[Collector] = []

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for part in (*self.parts, *self.own):
            for metric in part.collect():
                metrics.setdefault(metric.name, metric)
                if metrics[metric.name] is not metric:
                    metrics[metric.name].samples.extend(metric.samples)
        yield from metrics.values()


class _Readiness(Collector):
    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("towerbridge_ready", "1 while calls are answered, else 0.", float(self._ready() is None))


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each connection, all of which `server_close` waits for."""

    # Not http.server.HTTPServer, which asks the name service for the machine's name before it listens.
    allow_reuse_address = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ready: Ready) -> None:
        self.registry = registry
        self.ready = ready
        self._connections: set[socket.socket] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def disconnect(self) -> None:
        """Ends what waits for clients that say nothing."""
        for connection in tuple(self._connections):
            with suppress(OSError):  # it has just ended
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a scrape failed", exc_info=True)  # its client has left


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; HTTP/1.0, so that the connection ends with it."""

    server: _Server
    timeout = 10.0  # seconds for a client to send its request

    def do_HEAD(self) -> None:  # some load balancers probe with it
        self.do_GET()

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._figures()
            case "/livez":
                self._say(200, "alive")
            case "/readyz":
                reason = self.server.ready()
                self._say(200 if reason is None else 503, reason or "ready")
            case _:
                self.send_error(404, explain="there are /metrics, /livez and /readyz")

    def _figures(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:
            _log.error("the figures cannot be read", exc_info=True)
            self.send_error(500, explain="the figures cannot be read; the server's log says why")
            return
        self._send(200, content_type, body)

    def _say(self, code: int, line: str) -> None:
        self._send(code, "text/plain; charset=utf-8", f"{line}\n".encode())

    def _send(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)
