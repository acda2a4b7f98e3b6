"""A bare gRPC echo: what a call, or a message of a stream, of the same size costs when nothing is done with it.

asyncio and uvloop, as the server is.
"""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import grpc
import uvloop

METHOD = "/towerbridge.bench.Echo/Call"
STREAM = "/towerbridge.bench.Echo/Stream"


def echo_stub(channel: grpc.Channel) -> Callable[..., bytes]:
    """Calls the echo: bytes in, the echo's reply out."""
    return channel.unary_unary(METHOD)


async def serve(reply_bytes: int) -> None:
    """Answers any bytes, and every message of a stream, with `reply_bytes` bytes, until standard input closes.

    It listens on a free loopback port, which it prints.
    """
    reply = bytes(reply_bytes)

    async def answer(request: bytes, context: Any) -> bytes:
        return reply

    async def answer_each(requests: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(reply)

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            if handler_call_details.method == STREAM:
                return grpc.stream_stream_rpc_method_handler(answer_each)
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
