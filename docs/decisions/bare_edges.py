"""What does gRPC cost a call in Python, by who takes its events? Three echoes under the same load of bench.load.

Usage (from the checkout): python docs/decisions/bare_edges.py [--rate 1300] [--seconds 6] [--repeats 3] > bare_edges.json

"asyncio" and "threads" are gRPC's own servers, as bench.echo runs them; "one thread" is the server's, with nothing behind it.
Each is a process of its own, and runs in turn; the processor time is of the whole process, its gRPC threads too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from bench.hardware import hardware

REPLY_BYTES = 2001  # as Recommend of 100 items
RECOMMEND = "/towerbridge.v1.RecommendationService/Recommend"
_WARM_UP_SECONDS = 1.0
_ECHO = [sys.executable, "-m", "bench.echo", "0", "--method", f"{RECOMMEND}={REPLY_BYTES}"]
EDGES = {
    "asyncio": _ECHO,
    "threads": [*_ECHO, "--sync"],
    "one thread": [sys.executable, __file__, "--serve"],
}


def serve() -> None:
    """Echoes on the server's own edge, until standard input closes."""
    import threading

    from server.api.call_loop import CallLoop
    from server.api.context import Context, Handler
    from server.api.grpc_server import GrpcServer

    reply = bytes(REPLY_BYTES)

    async def answer(data: bytes, context: Context) -> bytes:
        return reply if context.method == RECOMMEND else b""

    loop = CallLoop()
    server = GrpcServer(loop, lambda context: Handler(answer), [("grpc.so_reuseport", 0)])
    print(server.add_port("127.0.0.1:0", None), flush=True)
    loop.call_soon(server.start)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    sys.stdin.read()


def measure(edge: str, rate: float, seconds: float, seed: int, folder: Path) -> dict[str, object]:
    """One run: latencies in milliseconds, microseconds of the echo's processor time a call."""
    ids, result = folder / "ids.json", folder / "result.json"
    ids.write_text(json.dumps({"user_ids": ["u1"], "item_ids": ["i1"], "event_types": ["view"]}), encoding="utf-8")
    with subprocess.Popen(EDGES[edge], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as echo:
        assert echo.stdout is not None
        port = int(echo.stdout.readline())
        process = psutil.Process(echo.pid)
        load = [sys.executable, "-m", "bench.load", "--target", f"127.0.0.1:{port}", "--ids", str(ids), "--recall-queries", "0"]
        load += ["--rate", str(rate), "--warm-up", str(_WARM_UP_SECONDS), "--duration", str(seconds), "--seed", str(seed)]
        load += ["--json", str(result), "--html", str(folder / "result.html")]
        before = process.cpu_times()
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
        after = process.cpu_times()
        echo.communicate()
    figures = json.loads(result.read_text(encoding="utf-8"))
    used = (after.user + after.system) - (before.user + before.system)
    calls = figures["achieved_rps"] * (seconds + _WARM_UP_SECONDS)
    return {
        "edge": edge,
        "calls_a_second": figures["achieved_rps"],
        "p50_ms": figures["latency_ms"]["p50"],
        "p99_ms": figures["latency_ms"]["p99"],
        "cpu_us_a_call": round(used / calls * 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1300.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="be the third echo")
    arguments = parser.parse_args()
    if arguments.serve:
        with suppress(KeyboardInterrupt):
            serve()
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for edge in EDGES:
                runs.append(measure(edge, arguments.rate, arguments.seconds, repeat, Path(folder)))
                print(runs[-1], file=sys.stderr)
    print(json.dumps({"hardware": hardware(), "reply_bytes": REPLY_BYTES, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
