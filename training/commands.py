"""The commands that need torch: parsed arguments -> one call -> what is printed."""

import argparse
import json

import torch

from index.bundle import check_bundle, write_card
from index.bundle.manifest import read_manifest
from training.config import load_config
from training.errors import ConfigError
from training.evaluation.card import card
from training.evaluation.evaluate import Wanted, evaluate
from training.evaluation.page import write_page
from training.evaluation.tables import table
from training.fitting.distributed import Ranks, join
from training.fitting.fit import Fitted, Running, fit
from training.incremental.drift import drift_lines
from training.incremental.warm_start import read_start, settings_of
from training.progress import Progress


def run_fit(parsed: argparse.Namespace) -> None:
    """Trains and prints where the bundle is and how good validation was."""
    with join() as ranks:
        done = _fitted(parsed, ranks)
    if not ranks.first:
        return
    print(f"{parsed.out}: release {done.release_id}")
    if done.history.best:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in done.history.best.items())
        print(f"validation, filtered, epoch {done.history.best_epoch} of {done.history.epochs}: {metrics}")
    if done.drift is not None:
        print("\n".join(drift_lines(done.drift)))


def _fitted(parsed: argparse.Namespace, ranks: Ranks) -> Fitted:
    overrides = list(parsed.set)
    for flag, key in (("text_encoder", "text.encoder"), ("seed", "training.seed"), ("threads", "training.threads")):
        value = getattr(parsed, flag)
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")
    if parsed.new_since is not None and parsed.warm_start is None:
        raise ConfigError("--new-since: only with --warm-start BUNDLE, which it is about")
    start = None if parsed.warm_start is None else read_start(parsed.warm_start, parsed.new_since)
    config = load_config(parsed.config, overrides, inherited=None if start is None else settings_of(start.bundle))
    _use_threads(config.training.threads)
    running = Running(ranks.on(config.training.device), parsed.tensorboard, parsed.restart)
    progress = Progress(parsed.quiet or not ranks.first)
    return fit(parsed.data, parsed.out, config, progress, start, running=running)


def run_evaluate(parsed: argparse.Namespace) -> None:
    """Prints the tables, and writes the JSON, the page and the model card where asked."""
    _use_threads(2 if parsed.threads is None else parsed.threads)
    wanted = Wanted(parsed.split, parsed.profiles, parsed.groups, parsed.cold)
    result = evaluate(parsed.data, parsed.bundle, Progress(parsed.quiet), wanted)
    print(table(result))
    if parsed.json is not None:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if parsed.html is not None:
        write_page(parsed.html, result)
    if parsed.card:
        write_card(parsed.bundle, card(*read_manifest(parsed.bundle), result))


def run_check(parsed: argparse.Namespace) -> None:
    """Prints the report of a good bundle; a bad one raises BundleError."""
    print(check_bundle(parsed.bundle))


def run_onnx(parsed: argparse.Namespace) -> None:
    """Writes the user tower as ONNX and prints where it is."""
    from training.export.onnx import export_onnx

    model = export_onnx(parsed.bundle, parsed.out, with_items=parsed.with_items)
    print(f"{model}: {model.stat().st_size:,} bytes, its vectors equal the bundle's")


def _use_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
