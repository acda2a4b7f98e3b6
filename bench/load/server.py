"""The server that load is put on, asked before and after: who it is, how large its answers are, its recall, its own figures."""

import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import grpc
import numpy as np
from towerbridge import v1

from bench.load.channel import Reach
from bench.load.mix import KINDS, METHODS, InputError
from bench.load.requests import Requests

_DEADLINE_S = 20.0
_SAMPLES = 20
_RELEASE = "/towerbridge.v1.ReleaseService/GetRelease"
_LAG = re.compile(r"^towerbridge_event_visible_lag_seconds_bucket\{([^}]*)\} ([0-9.e+]+)", re.MULTILINE)
_BOUND = re.compile(r'le="([^"]+)"')


@dataclass(frozen=True)
class Seen:
    """What the server said of itself."""

    release_id: str
    item_count: int
    index_kind: str
    device: str
    dim: int


def look_at(reach: Reach) -> Seen:
    """Raises InputError if the target cannot be reached or does not let us in."""
    with reach.connect() as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_DEADLINE_S)
            reply = _call(channel, _RELEASE, v1.GetReleaseRequest().SerializeToString(), reach)
        except grpc.FutureTimeoutError:
            tls = "with TLS, and a certificate that --ca vouches for?" if reach.tls else "without TLS? If it has TLS, give --ca"
            raise InputError(f"{reach.target} cannot be reached; is the server running there, {tls}") from None
        except grpc.RpcError as error:
            raise InputError(f"{reach.target} refused GetRelease: {_said(error)}") from None
    found = v1.GetReleaseResponse.FromString(reply)
    return Seen(found.release_id, found.item_count, found.index_kind, found.device, found.dim)


def reply_sizes(reach: Reach, requests: Requests, kinds: Sequence[str]) -> dict[str, int]:
    """Mean bytes of some replies, by full method. Raises InputError if the server refuses one."""
    sizes = {}
    with reach.connect() as channel:
        for kind in kinds:
            found = []
            for number in range(_SAMPLES if kind != "events" else 1):
                request = requests.probe(number)[1] if kind == "events" else requests.ready(KINDS.index(kind), number)
                try:
                    reply = _call(channel, METHODS[kind], request, reach)
                except grpc.RpcError as error:
                    raise InputError(f"{reach.target} refused {kind}: {_said(error)}") from None
                if kind == "events":
                    _check_event(v1.RecordEventsResponse.FromString(reply))
                found.append(len(reply))
            sizes[METHODS[kind]] = round(sum(found) / len(found))
    return sizes


def recall(reach: Reach, user_ids: Sequence[str], limit: int, count: int, seed: int) -> tuple[float | None, int]:
    """Mean share of the true best items that answers hold, and of how many people; None if no answer could be compared.

    The same person is asked about twice, the second time with exact search; answers from popularity say nothing of the index.
    """
    chosen = random.Random(seed).sample(list(user_ids), min(count, len(user_ids)))
    shares = []
    with reach.connect() as channel:
        for user_id in chosen:
            try:
                found, truth = (_recommend(channel, reach, user_id, limit, exact=exact) for exact in (False, True))
            except grpc.RpcError:
                time.sleep(0.05)
                continue
            if truth.item_ids and not found.degraded and not truth.degraded:
                shares.append(len(set(found.item_ids) & set(truth.item_ids)) / len(truth.item_ids))
    return (float(np.mean(shares)) if shares else None), len(shares)


def lag_buckets(url: str) -> dict[float, float]:
    """Cumulative counts of the server's own freshness lag by upper bound in seconds. Raises InputError."""
    try:
        with urllib.request.urlopen(url, timeout=_DEADLINE_S) as reply:
            text = reply.read().decode()
    except HTTPException:
        raise InputError(f"the metrics at {url} cannot be read: no HTTP/1.1 there; give the port of the metrics") from None
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise InputError(f"the metrics at {url} cannot be read: {error}") from None
    counts: dict[float, float] = {}
    for labels, count in _LAG.findall(text):
        bound = _BOUND.search(labels)
        if bound is not None:
            counts[float(bound[1])] = counts.get(float(bound[1]), 0.0) + float(count)
    if not counts:
        raise InputError(f"the metrics at {url} have no towerbridge_event_visible_lag_seconds; give the server's metrics")
    return counts


def lag_between(before: dict[float, float], after: dict[float, float]) -> dict[str, float | None]:
    """p50 and p99 in ms: the upper bounds of the buckets that they lie in; None if nothing was observed."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in after}
    total = counts[max(counts)]
    found: dict[str, float | None] = {"p50": None, "p99": None}
    if total > 0:
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            bound = next(bound for bound in sorted(counts) if counts[bound] >= share * total)
            found[name] = round(bound * 1e3, 3) if np.isfinite(bound) else None
    return found


def _recommend(channel: grpc.Channel, reach: Reach, user_id: str, limit: int, *, exact: bool) -> v1.RecommendResponse:
    request = v1.RecommendRequest(subject=v1.Subject(user_id=user_id), limit=limit)
    request.search.exact = exact
    return v1.RecommendResponse.FromString(_call(channel, METHODS["recommend"], request.SerializeToString(), reach))


def _call(channel: grpc.Channel, method: str, request: bytes, reach: Reach) -> bytes:
    stub: Any = channel.unary_unary(method)
    reply: bytes = stub(request, timeout=_DEADLINE_S, metadata=reach.metadata)
    return reply


def _check_event(reply: v1.RecordEventsResponse) -> None:
    result = reply.results[0]
    if result.HasField("error"):
        raise InputError(f"the server does not keep events of the people in --ids: {result.error.message}")


def _said(error: grpc.RpcError) -> str:
    code, details = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
    return f"{code.name if code else 'an error'}: {' '.join((details or '').split())[:300]}"
