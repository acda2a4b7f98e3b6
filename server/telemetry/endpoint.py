"""The port that Prometheus scrapes."""

import logging
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.errors import StartupError

_log = logging.getLogger(__name__)


class Metrics:
    """Serves what collectors report at http://host:port/metrics, in threads of its own and from a registry of its own.

    A collector is read anew at every scrape, by another thread than the one that owns what it reads: it may read only single
    values that are replaced whole.
    """

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Listens, and returns the port; 0 takes any free one. Raises StartupError if it cannot be had."""
        try:
            self._server = _Server(host, port, self._registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartupError(f"metrics.port: cannot listen on {host}:{port}: {reason}; give another port, or 0") from None
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


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each connection, all of which `server_close` waits for."""

    # Not http.server.HTTPServer, which asks the name service for the machine's name before it listens.
    allow_reuse_address = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
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

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="the figures are at /metrics")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:
            _log.error("the figures cannot be read", exc_info=True)
            self.send_error(500, explain="the figures cannot be read; the server's log says why")
            return
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)
