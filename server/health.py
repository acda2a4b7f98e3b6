"""python -m server.health: asks a server whether it serves, for probes; exit status 0 means yes, 1 no."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

_EPILOG = """\
examples:
  python -m server.health
  python -m server.health --service towerbridge.v1.RecommendationService
  python -m server.health --ca /etc/towerbridge/server.pem --server-name recommendations.example.com
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what the server says of itself. Health needs no API key, so neither does this."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.certificate is None) != (given.key is None):
        parser.error("--certificate and --key go together")
    if given.ca is None and (given.certificate is not None or given.server_name is not None):
        parser.error("--certificate, --key and --server-name are for TLS, which needs --ca")
    try:
        credentials = _credentials(given)
    except OSError as error:
        parser.error(f"cannot read {error.filename}: {error.strerror}")
    try:
        status = _ask(given, credentials)
    except grpc.RpcError as error:
        said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
        print(f"{given.target} does not answer: {said}{about_tls(said, given.ca)}", file=sys.stderr)
        return 1
    serving = status == health_pb2.HealthCheckResponse.SERVING
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(status), file=sys.stdout if serving else sys.stderr)
    return 0 if serving else 1


def about_tls(said: str, ca: Path | None) -> str:
    """What to look at if a connection could not be made, after what gRPC said; empty for what a server said itself."""
    if "failed to connect" not in said:
        return ""
    if ca is None:
        return "; is the server there? If it has TLS, give --ca"
    return f"; is the server there, with TLS, {ca} its certificate's root, and the name it is called by in the certificate?"


def _ask(given: argparse.Namespace, credentials: grpc.ChannelCredentials | None) -> int:
    # The probe is for this server, whatever proxy is set for calls elsewhere.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if given.server_name is not None:
        options.append(("grpc.ssl_target_name_override", given.server_name))
    if credentials is None:
        channel = grpc.insecure_channel(given.target, options=options)
    else:
        channel = grpc.secure_channel(given.target, credentials, options=options)
    with channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return int(check(health_pb2.HealthCheckRequest(service=given.service), timeout=given.timeout).status)


def _credentials(given: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if given.ca is None:
        return None
    certificate, key = (None if path is None else path.read_bytes() for path in (given.certificate, given.key))
    return grpc.ssl_channel_credentials(given.ca.read_bytes(), key, certificate)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server.health",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", default="127.0.0.1:50051", metavar="HOST:PORT", help="the server (127.0.0.1:50051)")
    add("--service", default="", help="one service by its full name; by default the server as a whole")
    add("--timeout", type=float, default=3.0, metavar="SECONDS", help="how long to wait for the answer (3)")
    add("--ca", type=Path, metavar="FILE", help="use TLS, and trust these roots or this very certificate, PEM")
    add("--server-name", metavar="NAME", help="the name in the server's certificate, if it is not that of --target")
    add("--certificate", type=Path, metavar="FILE", help="the probe's own certificate, where the server asks for one, PEM")
    add("--key", type=Path, metavar="FILE", help="its private key, PEM")
    return parser


if __name__ == "__main__":
    sys.exit(main())
