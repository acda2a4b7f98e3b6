"""One process, or gRPC fronts that share a port and an engine process behind them? The same world and handlers behind both.

Usage (from the checkout): python docs/decisions/one_process_or_several.py WORLD [--seconds 15] [--repeats 3] > several.json
WORLD is a folder of bench.world. Nothing that is sent here is kept: each server works on a copy of its data.

"1 process" is the server itself. "N fronts" are N processes with one grpc.aio server each, on one port (SO_REUSEPORT), which
send each request's bytes over a Unix socket to the process of the engine, and its bytes back: frames of a length and a number,
many in flight on one connection. The engine's process does all the rest, without what the edge does around a handler, so the
comparison favours the fronts. The load is bench.load: Recommend for known people, with 8 connections, since the kernel
balances connections and not calls. Runs are interleaved.
"""

import argparse
import asyncio
import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from struct import Struct
from typing import Any

import grpc
import uvloop

from bench.hardware import hardware

LAYOUTS = {"1 process": 0, "1 front": 1, "2 fronts": 2}  # fronts; 0: none
RATES = (200, 500, 1000)
_HEAD = Struct("<IIH")  # length of what follows, number, length of the method's name


class Frames(asyncio.Protocol):
    """Frames out of a stream of bytes."""

    def __init__(self, on_frame: Callable[["Frames", int, str, bytes], None]) -> None:
        self._on_frame = on_frame
        self._buffer = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            length, number, name = _HEAD.unpack_from(self._buffer, start)
            body = start + _HEAD.size
            if len(self._buffer) - body < length:
                break
            method = self._buffer[body : body + name].decode()
            self._on_frame(self, number, method, bytes(self._buffer[body + name : body + length]))
            start = body + length
        del self._buffer[:start]

    def send(self, number: int, method: str, data: bytes) -> None:
        name = method.encode()
        self.transport.write(_HEAD.pack(len(name) + len(data), number, len(name)) + name + data)


class NoContext:
    """What the handlers ask of a call's context."""

    def time_remaining(self) -> float:
        return 10.0


async def serve_engine(app: Any, path: str, ready: Connection) -> None:
    """Answers frames with the tenant's own handlers."""
    handlers, tasks = app.tenant.handlers, set()

    async def answer(frames: Frames, number: int, method: str, data: bytes) -> None:
        handler = handlers[method]
        reply = await handler.unary_unary(handler.request_deserializer(data), NoContext())
        frames.send(number, "", reply if type(reply) is bytes else handler.response_serializer(reply))

    def on_frame(frames: Frames, number: int, method: str, data: bytes) -> None:
        task = asyncio.ensure_future(answer(frames, number, method, data))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await asyncio.get_running_loop().create_unix_server(lambda: Frames(on_frame), path)
    ready.send(0)
    await asyncio.to_thread(_wait_for_end, ready)


async def serve_front(path: str, port: int, ready: Connection) -> None:
    """Bytes in, bytes out."""
    waiting: dict[int, asyncio.Future[bytes]] = {}
    loop = asyncio.get_running_loop()

    def on_frame(frames: Frames, number: int, method: str, data: bytes) -> None:
        waiting.pop(number).set_result(data)

    _, frames = await loop.create_unix_connection(lambda: Frames(on_frame), path)
    numbers = iter(range(1 << 32))

    class Forward(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            method = details.method

            async def forward(data: bytes, context: Any) -> bytes:
                number = next(numbers)
                reply = waiting[number] = loop.create_future()
                frames.send(number, method, data)
                return await reply

            return grpc.unary_unary_rpc_method_handler(forward)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    server.add_generic_rpc_handlers((Forward(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    ready.send(port)
    await asyncio.to_thread(_wait_for_end, ready)
    await server.stop(0)


def run_engine(world: Path, path: str, ready: Connection) -> None:
    """The process of the engine, or, without a path, the server as it is."""
    from server.app import App
    from server.config import Config

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shutil.copytree(world / "data", data)
        if (world / "data.erasure-key").exists():
            shutil.copy(world / "data.erasure-key", Path(folder) / "data.erasure-key")
        app = App(Config(bundle=world / "bundle", data=data, listen={"port": 0}))  # type: ignore[arg-type]
        app.start()
        if path:
            uvloop.run(serve_engine(app, path, ready))
        else:
            ready.send(app.port)
            _wait_for_end(ready)
        app.stop()


def run_front(path: str, port: int, ready: Connection) -> None:
    uvloop.run(serve_front(path, port, ready))


def _wait_for_end(ready: Connection) -> None:
    try:
        ready.recv()
    except EOFError:
        return


class Started:
    """Processes that end with this one."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._processes: list[tuple[Any, Connection]] = []

    def __call__(self, target: Callable[..., None], *arguments: Any) -> int:
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=target, args=(*arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        self._processes.append((process, ours))
        return int(ours.recv())

    def stop(self) -> None:
        for process, ours in reversed(self._processes):
            ours.close()
            process.join(20)
            process.kill()


def start(layout: str, world: Path, folder: Path, started: Started) -> int:
    """The port of a layout."""
    fronts = LAYOUTS[layout]
    if not fronts:
        return started(run_engine, world, "")
    path = str(folder / f"{fronts}.sock")
    started(run_engine, world, path)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    for _ in range(fronts):
        started(run_front, path, port)
    return port


def measure(port: int, world: Path, rate: int, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """What bench.load says."""
    out = folder / "r.json"
    command = [sys.executable, "-m", "bench.load", "--target", f"127.0.0.1:{port}", "--ids", str(world), "--rate", str(rate)]
    command += ["--duration", str(seconds), "--warm-up", "3", "--connections", "8", "--processes", "1", "--seed", str(seed)]
    command += ["--recall-queries", "0", "--json", str(out), "--html", str(folder / "r.html")]
    subprocess.run(command, stdout=sys.stderr, check=False)
    found = json.loads(out.read_text(encoding="utf-8"))
    names = ("achieved_rps", "codes", "latency_ms", "send_lateness_ms", "valid")
    return {name: found[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", type=float, default=90, help="seconds for the servers to compile and to refresh vectors")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        started = Started()
        ports = {layout: start(layout, arguments.world, Path(folder), started) for layout in LAYOUTS}
        time.sleep(arguments.settle)
        for repeat in range(arguments.repeats):
            for rate in RATES:
                for layout, port in ports.items():
                    found = measure(port, arguments.world, rate, arguments.seconds, repeat, Path(folder))
                    runs.append({"layout": layout, "rate": rate, **found})
                    print(runs[-1], file=sys.stderr)
        started.stop()
    print(json.dumps({"hardware": hardware(), "grpcio": grpc.__version__, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
