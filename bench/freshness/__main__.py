"""python -m bench.freshness: see `--help`. 0: done; 1: the service gave other answers; 2: what was asked for is wrong."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.freshness.errors import ReplayError
from bench.freshness.options import parse
from training.errors import ConfigError, TrainingError

_DIFFERENT = 1
_REFUSED = 2


def main(arguments: list[str] | None = None) -> int:
    """Replays, prints tables, writes JSON and picture."""
    try:
        parsed = parse(arguments)
    except ConfigError as error:
        return _refuse(str(error))
    from index.bundle import BundleError  # torch takes seconds, which --help need not wait for

    try:
        return _run(parsed)
    except (TrainingError, BundleError, ReplayError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename or 'disk'}: {error.strerror or error}; look at path, permissions and free space")
    except KeyboardInterrupt:
        return _refuse("interrupted; nothing was written")


def _refuse(message: str) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return _REFUSED


def _run(parsed: argparse.Namespace) -> int:
    import torch

    from bench.freshness.measure import Settings, about, measure_items, measure_service, measure_users
    from bench.freshness.report import plot, tables
    from bench.freshness.timeline import read_timeline
    from training.data.dataset import read_dataset
    from training.progress import Progress

    progress = Progress(parsed.quiet)
    torch.set_num_threads(parsed.threads)
    timeline = read_timeline(read_dataset(parsed.data))
    if parsed.through_service is not None:
        from bench.freshness.service import check_histories

        check_histories(timeline)  # before the minutes, not after them
    bundle = _bundle(parsed, timeline, progress)
    settings = Settings(parsed.seed, parsed.lag, parsed.resamples)
    result: dict[str, Any] = about(timeline, bundle, settings)
    users, replayed = measure_users(timeline, bundle, settings, progress)
    result |= users
    if parsed.items:
        result["items"] = measure_items(timeline, bundle, settings, progress)
    if parsed.through_service is not None:
        policies = parsed.through_service or ["event"]
        result["through_service"] = measure_service(timeline, bundle, replayed, policies, settings, progress)
    print(tables(result))
    for file in (parsed.json, parsed.plot):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    parsed.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if parsed.plot is not None:
        plot(result, parsed.plot)
    return 0 if result.get("through_service", {}).get("passed", True) else _DIFFERENT


def _bundle(parsed: argparse.Namespace, timeline: Any, progress: Any) -> Any:
    """The bundle as it is, or trained first."""
    import tempfile

    from bench.freshness.before import train_before, was_trained_before
    from index.bundle import read_bundle
    from training.config import load_config

    if parsed.bundle is not None and parsed.bundle.exists():
        bundle = read_bundle(parsed.bundle)
        if not was_trained_before(timeline, bundle):
            progress.say("warning: the bundle was not trained on just the events before the cut; it may have seen the targets")
        return bundle
    overrides = [f"training.threads={parsed.threads}", f"training.seed={parsed.seed}", *parsed.set]
    config = load_config(parsed.config, ["split.kind=all", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        out = parsed.bundle if parsed.bundle is not None else Path(folder) / "bundle"
        train_before(timeline, out, config, progress)
        return read_bundle(out)


if __name__ == "__main__":
    sys.exit(main())
