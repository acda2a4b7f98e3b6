"""The options of `python -m training refresh`, and the plan that they make."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import ConfigError, TrainingError
from training.progress import Progress

if TYPE_CHECKING:
    from training.refresh.flow import Plan

EPILOG = """example, every night beside a server whose data directory is state and whose bundles lie in bundles:
  python -m training refresh --journal state --out bundles/2026-11-27 --target 127.0.0.1:50051

Without --bundle it goes on from the bundle that is live on the first --target. A failed step leaves the live release as
it was; the same command goes on from there. docs/retraining.md says more. Exit status: 0 done, 2 not, with one line.
"""
DEFAULT_REQUIREMENT = "N@10>=0.95*current"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all of them but --threads and --quiet."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="BUNDLE", help="the new bundle, where the server finds it; must not exist")
    add("--bundle", type=Path, metavar="BUNDLE", help="what to go on from; default: the live one of the first --target")
    add("--journal", type=Path, metavar="DIR", help="the server's data directory, to export events and items from")
    add("--tenant", default="default", metavar="NAME", help="whose journal; default, by default")
    add("--server-config", type=Path, metavar="FILE", help="the server's settings: which consent is presumed")
    add("--erasure-key", type=Path, metavar="FILE", help="erasure.key_file, if it is not beside the data directory")
    add("--events", type=Path, metavar="FILE", help="an earlier export instead; with --journal it is screened, in place")
    add("--items", type=Path, metavar="FILE", help="the catalogue; default: as exported, or with --events the bundle's")
    add("--config", type=Path, help="settings that differ from the bundle's: a YAML file, or a name in training/configs")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="warm_start.replay=0.5")
    add("--require", action="append", metavar="RULE", help=f"what the new bundle must reach, repeatable; {DEFAULT_REQUIREMENT}")
    add(
        "--target", action="append", default=[], metavar="HOST:PORT", help="a server to load into, repeatable; none: only write"
    )
    add("--no-promote", action="store_true", help="load only; the live release stays")
    add("--path-on-server", metavar="DIR", help="BUNDLE as the servers see it, where that differs")
    add("--key-file", type=Path, metavar="FILE", help="an API key with the role admin; default: TOWERBRIDGE_API_KEY")
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="for a load and for a promotion (600)")
    for flag, text in (
        ("--ca", "use TLS, and trust these roots, PEM"),
        ("--certificate", "for mTLS"),
        ("--client-key", "its key"),
    ):
        add(flag, type=Path, metavar="FILE", help=text)
    add("--insecure", action="store_true", help="without TLS to another machine, on a network that is trusted")
    add("--work", type=Path, metavar="DIR", help="where events lie until all is done; default: BUNDLE.refresh")
    add("--json", type=Path, metavar="FILE", help="also write the report to this file")


def run_refresh(parsed: argparse.Namespace) -> None:
    """Refreshes, and says each step when it is done; the report tells of a failure too. Raises TrainingError."""
    from training.refresh.flow import Refresh

    work = Refresh(_plan(parsed), lambda line: print(line, flush=True), Progress(parsed.quiet))
    try:
        work.run()
    except TrainingError as error:
        work.report["failed"] = str(error)
        raise
    finally:
        if parsed.json is not None:
            parsed.json.parent.mkdir(parents=True, exist_ok=True)
            parsed.json.write_text(json.dumps(work.report, indent=2) + "\n", encoding="utf-8")


def _plan(parsed: argparse.Namespace) -> "Plan":
    from training.refresh.commands import Journal, Server
    from training.refresh.flow import Plan
    from training.refresh.gate import parse_requirement

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("refresh trains in one process, not with torchrun; run its steps one by one (docs/retraining.md)")
    if parsed.journal is None and parsed.events is None:
        raise ConfigError("give --journal DIR, the server's data directory, or --events FILE, an export of it")
    if parsed.bundle is None and not parsed.target:
        raise ConfigError("give --bundle, or the --target whose live bundle is to be gone on from")
    journal = None
    if parsed.journal is not None:
        journal = Journal(parsed.journal, parsed.tenant, parsed.server_config, parsed.erasure_key)
    threads = [] if parsed.threads is None else [f"training.threads={parsed.threads}"]
    return Plan(
        out=parsed.out,
        work=parsed.work or parsed.out.with_name(f"{parsed.out.name}.refresh"),
        bundle=parsed.bundle,
        journal=journal,
        events=parsed.events,
        items=parsed.items,
        servers=tuple(Server(target, _flags(parsed), parsed.key_file) for target in parsed.target),
        path_on_server=parsed.path_on_server,
        promote=not parsed.no_promote,
        requirements=[parse_requirement(text) for text in parsed.require or [DEFAULT_REQUIREMENT]],
        config=parsed.config,
        overrides=[*parsed.set, *threads],
    )


def _flags(parsed: argparse.Namespace) -> tuple[str, ...]:
    """Of python -m server.release: how to call the server."""
    flags = ["--timeout", str(parsed.timeout)]
    for name in ("ca", "certificate", "client_key"):
        path = getattr(parsed, name)
        flags += [] if path is None else [f"--{name.replace('_', '-')}", str(path)]
    return (*flags, "--insecure") if parsed.insecure else tuple(flags)
