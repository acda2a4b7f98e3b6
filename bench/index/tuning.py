"""How hard each engine must search for the recall that was asked for, and what more or less recall costs."""

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from bench.index.data import Data
from bench.index.engines import Engine
from bench.index.latency import Lane, Timing, search_all, search_lane, time_in_turn
from bench.index.truth import Truth, recall

_COARSE = 4
_CURVE_END = 2.5  # times the effort that was chosen
_CURVE_REPEATS = 2
_CURVE_SECONDS = 0.3


def tune(engine: Engine, data: Data, truth: Truth, target: float) -> float:
    """Sets the first effort of the engine's ladder with a recall of at least the target, else the last; returns its recall.

    The ladder is climbed on the queries that are measured, so a peer searches as little as it may. Our own engine chooses by
    itself, on other queries.
    """
    efforts = engine.efforts
    if not efforts:
        return _recall(engine, data, truth)
    reached = 0.0
    place = 0
    for place in [*range(0, len(efforts), _COARSE), len(efforts) - 1]:
        reached = _recall_at(engine, efforts[place], data, truth)
        if reached >= target:
            break
    for finer in range(max(0, place - _COARSE + 1), place):
        finer_reached = _recall_at(engine, efforts[finer], data, truth)
        if finer_reached >= target:
            return finer_reached
    engine.set_effort(efforts[place])
    return reached


def curves(engines: Sequence[Engine], data: Data, truth: Truth, *, scale: float) -> Mapping[str, list[dict[str, float]]]:
    """Recall and p50 at batch 1 for efforts around the one that is set, by engine: all in turn."""
    points: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
    lanes: list[Lane] = []
    for engine in tqdm(engines, desc="curves", unit="engine", leave=False, disable=None):
        chosen = engine.effort
        for effort in _efforts(engine):
            point = {"effort": float(effort or 0), "recall": round(_recall_at(engine, effort, data, truth), 4)}
            points[engine.name].append(point)
            lanes.append(_lane(engine, effort, data))
        engine.set_effort(chosen)
    efforts = {engine.name: engine.effort for engine in engines}
    time_in_turn(lanes, Timing(_CURVE_REPEATS, _CURVE_SECONDS * scale), progress="curves, batch 1")
    for engine in engines:
        engine.set_effort(efforts[engine.name])
    for point, lane in zip([point for engine in engines for point in points[engine.name]], lanes, strict=True):
        point["p50_ms"] = round(lane.p50_ms, 4)
    return points


def _efforts(engine: Engine) -> list[float | None]:
    chosen = engine.effort
    efforts: list[float | None] = [one for one in engine.curve if chosen is None or one <= _CURVE_END * chosen]
    return efforts if chosen in efforts else [*efforts, chosen]


def _lane(engine: Engine, effort: float | None, data: Data) -> Lane:
    lane = search_lane(engine, data.queries, 1)
    lane.enter = lambda: engine.set_effort(effort)
    return lane


def _recall_at(engine: Engine, effort: float | None, data: Data, truth: Truth) -> float:
    engine.set_effort(effort)
    return _recall(engine, data, truth)


def _recall(engine: Engine, data: Data, truth: Truth) -> float:
    return recall(data.vectors, data.queries, search_all(engine, data.queries), truth)
