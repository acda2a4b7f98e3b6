"""python -m bench.freshness: see `--help`. 0: done; 1: the service gave other answers; 2: what was asked for is wrong."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_DIFFERENT = 1
_REFUSED = 2
_EPILOG = """\
examples:
  python -m bench.freshness --data data/shop --bundle bundles/before --json freshness.json --plot freshness.png
  python -m bench.freshness --data data/shop --bundle bundles/before --json freshness.json --through-service event 1h --items

Events are cut at four fifths in time. Where there is no bundle at --bundle yet, one is trained on what was before the cut
and kept there; without --bundle it is not kept. docs/freshness.md says what is measured, and what the JSON holds.
"""
_STALE = ("event", "10s", "2min", "10min", "1h", "1d", "never")


def main(arguments: list[str] | None = None) -> int:
    """Replays, prints tables, writes JSON and picture."""
    parsed = _parser().parse_args(arguments)
    from index.bundle import BundleError
    from training.errors import TrainingError

    try:
        return _run(parsed)
    except (TrainingError, BundleError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
    except OSError as error:
        print(
            f"{error.filename or 'disk'}: {error.strerror or error}; look at path, permissions and free space", file=sys.stderr
        )
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
    return _REFUSED


def _run(parsed: argparse.Namespace) -> int:
    import torch

    from bench.freshness.measure import Settings, about, measure_items, measure_service, measure_users
    from bench.freshness.report import plot, tables
    from bench.freshness.timeline import read_timeline
    from training.dataset import read_dataset
    from training.progress import Progress

    for file in (parsed.json, parsed.plot):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)  # before the hours, not after them
    progress = Progress(parsed.quiet)
    torch.set_num_threads(parsed.threads)
    timeline = read_timeline(read_dataset(parsed.data))
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.freshness",
        description="Replays real events to measure what a fresh user vector, and a new item found soon, are worth.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DATA", help="what `python -m training import` wrote; with real times")
    add("--bundle", type=Path, metavar="BUNDLE", help="trained on the events before the cut; made if it is not there")
    add("--config", type=Path, help="settings of the training, as `python -m training fit` takes them")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="the same one by one: training.epochs=10")
    add(
        "--through-service",
        nargs="*",
        choices=_STALE,
        metavar="POLICY",
        help="also replay through a running server, and compare: event (the default), or others",
    )
    add("--items", action="store_true", help="also measure items that came up after the cut")
    add(
        "--lag",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="between an event and the moment that it can be used, 0 by default",
    )
    add("--seed", type=int, default=0, help="of the phases, the bootstrap and the training")
    add("--resamples", type=int, default=2000, help="of the bootstrap over users, 2,000 by default")
    add("--threads", type=int, default=1, help="CPU threads, 1 by default")
    add("--json", type=Path, required=True, metavar="FILE", help="gets the result")
    add("--plot", type=Path, metavar="FILE", help="gets a picture: .png, .svg or .pdf")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


if __name__ == "__main__":
    sys.exit(main())
