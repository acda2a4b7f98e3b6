"""A bare gRPC echo: what a call, or a message of a stream, of the same size costs when nothing is done with it.

python -m bench.echo BYTES [--sync] [--method NAME=BYTES ...]: answers any method with BYTES bytes, and those named with as many
as said, until standard input closes. It listens on a free loopback port, which it prints. asyncio and uvloop,
or, with --sync, a pool of threads: the two servers that gRPC has for Python.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop

METHOD = "/towerbridge.bench.Echo/Call"
STREAM = "/towerbridge.bench.Echo/Stream"
THREADS = 16
_OPTIONS = [("grpc.so_reuseport", 0)]


def echo_stub(channel: grpc.Channel) -> Callable[..., bytes]:
    """Calls the echo: bytes in, the echo's reply out."""
    return channel.unary_unary(METHOD)


async def serve(sizes: Mapping[str, int], other: int) -> None:
    """Answers a method of `sizes` with so many bytes, any other with `other`, and every message of a stream too."""
    streamed = bytes(other)

    async def answer_each(requests: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(streamed)

    stream: Any = grpc.stream_stream_rpc_method_handler(answer_each)
    handlers = {METHOD: _answers(other), **{name: _answers(size) for name, size in sizes.items()}}
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_Handlers(handlers | {STREAM: stream}, _answers(other)),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def serve_from_threads(sizes: Mapping[str, int], other: int) -> None:
    """The same, without streams, from a pool of threads."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=_OPTIONS)
    handlers = {name: _answers_from_a_thread(size) for name, size in sizes.items()}
    server.add_generic_rpc_handlers((_Handlers(handlers, _answers_from_a_thread(other)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


class _Handlers(grpc.GenericRpcHandler):
    """Handlers by full method, and one for all others. Without codecs: bytes go in and out."""

    def __init__(self, handlers: Mapping[str, Any], other: Any) -> None:
        self._handlers = handlers
        self._other = other

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method, self._other)


def _answers(size: int) -> Any:
    reply = bytes(size)

    async def answer(request: bytes, context: Any) -> bytes:
        return reply

    return grpc.unary_unary_rpc_method_handler(answer)


def _answers_from_a_thread(size: int) -> Any:
    reply = bytes(size)
    return grpc.unary_unary_rpc_method_handler(lambda request, context: reply)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.echo")
    parser.add_argument("bytes", type=int)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--method", action="append", default=[], metavar="NAME=BYTES")
    arguments = parser.parse_args()
    pairs = (pair.rpartition("=") for pair in arguments.method)
    sizes = {name: int(size) for name, _, size in pairs}
    if arguments.sync:
        serve_from_threads(sizes, arguments.bytes)
    else:
        uvloop.run(serve(sizes, arguments.bytes))


if __name__ == "__main__":
    main()
