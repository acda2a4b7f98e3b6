"""How long after its acknowledgement an event is in the answers: an event of a person who has no others, then Recommend."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
from towerbridge import v1

from bench.load.mix import KINDS
from bench.load.requests import Requests

_EVENTS, _RECOMMEND = KINDS.index("events"), KINDS.index("recommend")
_PATIENCE_S = 5.0


class Freshness:
    """Lags in seconds, from an event's acknowledgement to the first answer that shows it.

    `behind`: answers that did not show the event yet; each was asked for again. `failures`: probes that ended without a lag.
    """

    def __init__(self, call: Callable[[int, bytes], Any], requests: Requests) -> None:
        self._call = call
        self._requests = requests
        self.lags: list[float] = []
        self.behind = 0
        self.failures = 0

    async def probe(self, begin: float, end: float, rate: float) -> None:
        """Probes at even times from `begin` to `end`, of time.monotonic()."""
        for number in range(max(1, int((end - begin) * rate))):
            await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
            if time.monotonic() >= end:
                return
            try:
                await self._probe_once(number)
            except grpc.aio.AioRpcError:
                self.failures += 1

    async def _probe_once(self, number: int) -> None:
        user_id, request = self._requests.probe(number * 7919)
        revision = v1.RecordEventsResponse.FromString(await self._call(_EVENTS, request)).revision
        acknowledged = time.monotonic()
        while time.monotonic() < acknowledged + _PATIENCE_S:
            try:
                reply = await self._call(_RECOMMEND, self._requests.recommend_after(user_id, revision))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it says that the answer would lack the event
                    raise
                self.behind += 1
                continue
            lag_s = time.monotonic() - acknowledged
            if shows_everything(v1.RecommendResponse.FromString(reply)):
                self.lags.append(lag_s)
                return
            self.behind += 1
        self.failures += 1


def shows_everything(answer: v1.RecommendResponse) -> bool:
    """Whether the answer's vector includes every event that counts, the revision asked for being included anyway."""
    return answer.events_behind == 0 and v1.DegradedReason.DEGRADED_REASON_STALE_VECTOR not in answer.degraded
