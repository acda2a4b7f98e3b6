"""Figures of what happens inside a call: how long each stage takes."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.telemetry.histogram import Histogram, family

_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class StageFigures:
    """One tenant's stages; seconds, but for batch_size. Each histogram is written by one thread at a time, named here."""

    __slots__ = ("batch_size", "encode", "fsync", "queue", "rules", "search")

    def __init__(self) -> None:
        self.queue = Histogram(_SECONDS)  # of a query, from its arrival to its batch's begin; whoever computes for the engine
        self.encode = Histogram(_SECONDS)  # of a batch that encoded anybody; the same
        self.search = Histogram(_SECONDS)  # of a batch; the same
        self.batch_size = Histogram(_QUERIES)  # queries of a batch; the same
        self.rules = Histogram(_SECONDS)  # of an answer, from the engine's result to ranked ids; the event loop's thread
        self.fsync = Histogram(_SECONDS)  # of a group, COMMIT alone; the journal's writer


_METRICS: tuple[tuple[str, str, Callable[[StageFigures], Histogram]], ...] = (
    ("towerbridge_queue_seconds", "Of a query: how long it waited for the engine.", lambda stages: stages.queue),
    (
        "towerbridge_encode_seconds",
        "Of a batch: computing user vectors. Batches that needed none are not in it.",
        lambda stages: stages.encode,
    ),
    ("towerbridge_search_seconds", "Of a batch: searching and scoring.", lambda stages: stages.search),
    (
        "towerbridge_rules_seconds",
        "Of an answer: checking it against the catalogue again, and ranking it.",
        lambda stages: stages.rules,
    ),
    ("towerbridge_batch_size", "Queries that were computed together.", lambda stages: stages.batch_size),
    ("towerbridge_journal_fsync_seconds", "Of a group of writes: until it was on disk.", lambda stages: stages.fsync),
)


class StagesOfTenants(Collector):
    """Reads the stages of every tenant, by name."""

    def __init__(self, tenants: Mapping[str, StageFigures]) -> None:
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        for name, text, histogram in _METRICS:
            yield family(name, text, ["tenant"], (([tenant], histogram(stages)) for tenant, stages in self._tenants.items()))
