"""A bare gRPC echo: what a call of the same size costs when nothing is done in it."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

METHOD = "/towerbridge.bench.Echo/Call"


def echo_stub(channel: grpc.Channel) -> Callable[..., bytes]:
    """Calls the echo: bytes in, the echo's reply out."""
    return channel.unary_unary(METHOD)


def serve(reply_bytes: int) -> tuple[grpc.Server, int]:
    """Starts an echo on a free loopback port that answers any bytes with `reply_bytes` bytes; the server and its port."""
    reply = bytes(reply_bytes)

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: reply)

    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main() -> None:
    """`python -m bench.echo REPLY_BYTES` prints the port and serves until standard input closes."""
    server, port = serve(int(sys.argv[1]))
    print(port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.stop(0)), daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
