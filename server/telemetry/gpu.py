"""Figures of NVIDIA GPUs, where there are any."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pynvml  # type: ignore[import-untyped]
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)


class GpuFigures(Collector):
    """Asks the driver at every scrape. Without a driver there are no figures, and it is no error.

    Every GPU that the driver shows is told, with what all processes do on it, whichever of them this server uses.
    """

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}  # by the driver's number
        self._opened = False
        with suppress(pynvml.NVMLError):  # no driver here
            pynvml.nvmlInit()
            self._opened = True
            for place in range(pynvml.nvmlDeviceGetCount()):
                self._handles[str(place)] = pynvml.nvmlDeviceGetHandleByIndex(place)

    def close(self) -> None:
        """Lets go of the driver."""
        self._handles = {}
        if self._opened:
            self._opened = False
            pynvml.nvmlShutdown()

    def collect(self) -> Iterator[Metric]:
        yield self._metric(
            "towerbridge_gpu_utilisation_ratio",
            "Part of the driver's last sampling period in which the GPU computed: 0 to 1.",
            lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        )
        yield self._metric(
            "towerbridge_gpu_memory_used_bytes",
            "The GPU's memory in use, by all processes.",
            lambda handle: _memory(handle).used,
        )
        yield self._metric("towerbridge_gpu_memory_total_bytes", "The GPU's memory.", lambda handle: _memory(handle).total)

    def _metric(self, name: str, text: str, read: Callable[[Any], float]) -> Metric:
        made = GaugeMetricFamily(name, text, labels=["gpu"])
        for number, handle in self._handles.items():
            try:
                made.add_metric([number], read(handle))
            except pynvml.NVMLError as error:  # such as utilisation of a GPU that is shared out
                _log.debug("GPU %s does not tell %s: %s", number, name, error)
        return made


def _memory(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(handle)
