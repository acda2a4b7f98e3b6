"""python -m server: configuration -> build -> serve -> drain."""

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

# gRPC reads it when it is imported, and writes lines of its own beside ours: one for every handshake that anybody lets fail.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from server.errors import StartupError
from server.telemetry import logs

_log = logging.getLogger(__name__)
# For which a thread may keep the interpreter's lock while others wait for it. An answer takes it several times, and a load of
# another release works in Python for half a second: with Python's own 5 ms answers waited for a tenth of a second.
_TURN_SECONDS = 0.0005
_EPILOG = """\
Settings come from, later ones winning: defaults, --config FILE (YAML), environment variables TOWERBRIDGE__SECTION__KEY,
flags. server/config.example.yaml lists every key with its default, unit and meaning.

example:
  # once: what people did before, who agreed to it as your terms say
  python -m server.journal import data/events.parquet --data state --consent personalisation --consent-source terms
  python -m server --bundle bundle --data state
"""


def main() -> int:
    arguments = _parser().parse_args()
    os.umask(0o077)  # what it writes is about people: nobody else's account may read it
    sys.setswitchinterval(_TURN_SECONDS)
    from server.config_sources import load_config

    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _give_up)
    try:
        config = load_config(arguments.config, _flags(arguments))
        logs.setup(config.logs.format, arguments.log_level)
        from server.app import App  # torch takes seconds to import, which --help need not

        app = App(config)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    app.start()
    for line in app.report():
        _log.info(line)
    print(f"towerbridge is ready on port {app.port}: {app.describe()}", flush=True)
    stopping.wait()
    print("draining", flush=True)
    app.stop()
    return 0


def _give_up(*_: object) -> None:
    """Ends while the server loads: nothing was promised to anybody yet, and what is on disk can be read at any moment."""
    print("stopped while loading", file=sys.stderr, flush=True)
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve a bundle: events in, ranked candidates out, over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bundle", type=Path, metavar="DIR", help="the bundle to serve [TOWERBRIDGE__BUNDLE]")
    add("--data", type=Path, metavar="DIR", help="the directory of the journal, made at first start [TOWERBRIDGE__DATA]")
    add("--config", type=Path, metavar="FILE", help="settings in YAML")
    add("--host", help="address to listen on, 127.0.0.1 by default [TOWERBRIDGE__LISTEN__HOST]")
    add("--port", type=int, help="port, 50051 by default, 0 for any free one [TOWERBRIDGE__LISTEN__PORT]")
    add("--device", help="cpu (the default), cuda or cuda:N [TOWERBRIDGE__ENGINE__DEVICE]")
    add("--threads", type=int, help="CPU threads of one computation, 1 by default [TOWERBRIDGE__ENGINE__THREADS]")
    add("--index", help="auto (the default), exact, ivf, faiss-ivf or faiss-gpu [TOWERBRIDGE__INDEX__KIND]")
    add(
        "--metrics-port", type=int, help="port for Prometheus, none by default, 0 for any free one [TOWERBRIDGE__METRICS__PORT]"
    )
    add(
        "--consent",
        choices=("opt_in", "opt_out"),
        help="opt_in (the default): without a recorded yes nothing is kept or used; opt_out: consent is presumed "
        "[TOWERBRIDGE__CONSENT__PERSONALISATION, ..__TRAINING]",
    )
    add("--keys", type=Path, metavar="FILE", help="API keys, without which nobody is served [TOWERBRIDGE__SECURITY__KEYS_FILE]")
    add("--tls-certificate", type=Path, metavar="FILE", help="certificate chain, PEM [TOWERBRIDGE__SECURITY__TLS_CERTIFICATE]")
    add("--tls-key", type=Path, metavar="FILE", help="its private key, PEM [TOWERBRIDGE__SECURITY__TLS_KEY]")
    add(
        "--insecure",
        action="store_const",
        const=True,
        help="let other machines connect without TLS, or without a key or certificate [TOWERBRIDGE__SECURITY__INSECURE]",
    )
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="info by default")
    return parser


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, nested as the configuration is."""
    nested: dict[str, Any] = {
        "bundle": arguments.bundle,
        "data": arguments.data,
        "listen": {"host": arguments.host, "port": arguments.port},
        "engine": {"device": arguments.device, "threads": arguments.threads},
        "index": {"kind": arguments.index},
        "metrics": {"port": arguments.metrics_port},
        "security": {
            "keys_file": arguments.keys,
            "tls_certificate": arguments.tls_certificate,
            "tls_key": arguments.tls_key,
            "insecure": arguments.insecure,
        },
        "consent": {"personalisation": arguments.consent, "training": arguments.consent},
    }
    flags: dict[str, Any] = {}
    for section, value in nested.items():
        given = {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value
        if given:
            flags[section] = given
    return flags


if __name__ == "__main__":
    sys.exit(main())
