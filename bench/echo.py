"""A bare gRPC echo: what a call of the same size costs when nothing is done in it. asyncio and uvloop, as the server is."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import grpc
import uvloop

METHOD = "/towerbridge.bench.Echo/Call"


def echo_stub(channel: grpc.Channel) -> Callable[..., bytes]:
    """Calls the echo: bytes in, the echo's reply out."""
    return channel.unary_unary(METHOD)


async def serve(reply_bytes: int) -> None:
    """Answers any bytes with `reply_bytes` bytes on a free loopback port, which it prints, until standard input closes."""
    reply = bytes(reply_bytes)

    async def answer(request: bytes, context: Any) -> bytes:
        return reply

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
