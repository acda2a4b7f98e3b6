"""export -> screen -> import -> fit -> evaluate -> load -> promote, each step once, whatever fails between."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from index.bundle import BundleError, read_bundle
from index.bundle.manifest import read_manifest
from training.config import find_config, load_config
from training.data.dataset import read_dataset
from training.errors import ConfigError, NothingNewError, RefreshError, TrainingError
from training.fitting.checkpoint import checkpoint_folder
from training.fitting.distributed import Ranks
from training.fitting.fit import Running, fit
from training.importers.flow import import_tables
from training.incremental.drift import drift_lines
from training.incremental.warm_start import read_start, settings_of
from training.progress import Progress
from training.refresh.commands import Journal, Server
from training.refresh.gate import Requirement, compare, unmet
from training.refresh.record import Record

Given = dict[str, Any]  # what a step gives: JSON, kept in the record


@dataclass(frozen=True)
class Plan:
    """What a refresh was asked for."""

    out: Path
    work: Path
    bundle: Path | None  # None: the live release's, as the first server sees it
    journal: Journal | None  # None: `events` are not screened
    events: Path | None  # None: exported from the journal
    items: Path | None  # None: exported with the events, else the current bundle's
    servers: tuple[Server, ...]  # none: the new bundle is only written
    path_on_server: str | None  # None: `out`, as it is here
    promote: bool
    requirements: list[Requirement]
    config: Path | None
    overrides: list[str]

    def asked(self) -> dict[str, str]:
        """What tells this refresh from another one; how and where it is loaded may change between two attempts."""
        names = ("out", "bundle", "journal", "events", "items", "config", "overrides")
        return {name: str(getattr(self, name)) for name in names}


class Refresh:
    """One refresh; `report` has the seconds and results of each step as they come."""

    def __init__(self, plan: Plan, say: Callable[[str], None], progress: Progress) -> None:
        """Raises ConfigError for a plan that cannot be."""
        self.plan, self.say, self.progress = plan, say, progress
        live = plan.servers[0].live_bundle() if plan.bundle is None else plan.bundle
        self.record = Record.read(plan.work, plan.asked(), str(live), _release_of(live))
        self.current = Path(self.record.bundle)
        if plan.out.resolve() == self.current.resolve():
            raise ConfigError(f"{plan.out}: is the current bundle, which must stay for a rollback; give another --out")
        if _release_of(self.current) != self.record.release_id:
            raise ConfigError(f"{self.current}: is not release {self.record.release_id} any more; give another --out")
        if plan.out.exists() and not any(_is_release(plan.out, made) for made in self.record.made):
            raise ConfigError(f"{plan.out}: exists, and a server may need it; give another --out")
        self.record.prepare()
        self.report: dict[str, Any] = {"current": self.record.release_id, "steps": {}}

    def run(self) -> None:
        """Runs what has not been done yet.

        Raises RefreshError naming the step; then the live release is as it was, and the same command goes on from there.
        """
        self._collect()
        self._learn()
        self._pass_the_gate()
        self._make_live()
        self.record.remove()

    def _collect(self) -> None:
        """Events and items into a data set."""
        is_of_now = self.plan.events is None and self._step("export", self._export)
        if not is_of_now and self.plan.journal is not None:
            self._step("screen", self._screen, again=True)
        if self.record.begin("import", _sha256(self._events, self._items), "fit", "evaluate"):
            self._drop_checkpoint()
        self._step("import", self._import)

    def _learn(self) -> None:
        """The new bundle at `out`."""
        settings = "" if self.plan.config is None else _sha256(find_config(self.plan.config))
        if self.record.begin("fit", settings, "evaluate"):
            self._drop_checkpoint()
        made = self.record.done.get("fit", {}).get("release_id")
        if made is not None and not _is_release(self.plan.out, made):
            self.record.forget("fit", "evaluate")
        self._step("fit", self._fit)
        self.report["new"] = self.record.done["fit"]["release_id"]
        self.report["drift"] = self.record.done["fit"]["drift"]

    def _pass_the_gate(self) -> None:
        self._step("evaluate", self._evaluate)
        self.report["evaluation"] = self.record.done["evaluate"]["figures"]
        missed = unmet(self.plan.requirements, self.report["evaluation"]["new"], self.report["evaluation"]["current"])
        if missed:
            raise RefreshError(f"evaluate: {self.plan.out} is not promoted: {'; '.join(missed)}; the live release is as it was")

    def _make_live(self) -> None:
        """Loads on all servers before any of them promotes, so that both releases answer side by side only shortly."""
        for server in self.plan.servers:
            self._step("load", partial(self._load, server), again=True)
        for server in self.plan.servers if self.plan.promote else ():
            self._step("promote", partial(self._promote, server), again=True)

    def _step(self, name: str, run: Callable[[], Given], *, again: bool = False) -> bool:
        """Runs a step and says what came of it; False if it was done before."""
        if again:
            self.record.forget(name)
        try:
            given, ran = self.record.step(name, run)
        except NothingNewError as error:
            self._drop_checkpoint()
            self.record.remove()  # there is nothing to go on with, and people's events must not lie there
            raise RefreshError(f"{name}: {error}; the live release is as it was") from error
        except (TrainingError, BundleError) as error:
            live = ", ".join(self.report.get("live", []))
            state = f"the new release is live on {live} alone" if live else "the live release is as it was"
            raise RefreshError(f"{name}: {error}; {state}, and the same command goes on here") from error
        said = given["said"] if ran else ["was done before"]
        self.say(f"{name:<9}{given['seconds']:>8.1f} s  {said[0]}")
        for line in said[1:]:
            self.say(f"{'':<21}{line}")
        self.report["steps"][name] = given["seconds"]
        return ran

    def _drop_checkpoint(self) -> None:
        """Of a fit of other events or settings: it would be refused, and its weights know who may have been erased since."""
        shutil.rmtree(checkpoint_folder(self.plan.out), ignore_errors=True)

    @property
    def _events(self) -> Path:
        return self.plan.work / "events.parquet" if self.plan.events is None else self.plan.events

    @property
    def _items(self) -> Path:
        if self.plan.items is not None:
            return self.plan.items
        exported = self.plan.work / "items.parquet"
        return exported if self.plan.events is None else self.current / "items.parquet"

    def _export(self) -> Given:
        if self.plan.journal is None:
            raise ConfigError("neither --journal nor --events: there is nothing to learn from")
        for path in (self._events, self.plan.work / "items.parquet"):
            path.unlink(missing_ok=True)  # of an attempt that was killed
        return _said(self.plan.journal.export(self._events, self._items if self.plan.items is None else None))

    def _screen(self) -> Given:
        if self.plan.journal is None:
            raise ConfigError("--events without --journal: nobody can be screened out")
        return _said(self.plan.journal.screen(self._events))

    def _import(self) -> Given:
        summary = import_tables(self.plan.work / "data", "parquet", [self._events], self._items, [])
        return _said(summary)

    def _fit(self) -> Given:
        start = read_start(self.current)
        config = load_config(self.plan.config, self.plan.overrides, inherited=settings_of(start.bundle))
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        running = Running(Ranks().on(config.training.device))
        done = fit(self.plan.work / "data", self.plan.out, config, self.progress, start, running=running)
        self.record.made.append(done.release_id)  # saved with the step
        said = [f"{self.plan.out}: release {done.release_id}", *drift_lines(done.drift or {})]
        return {"release_id": done.release_id, "drift": done.drift, "said": said}

    def _evaluate(self) -> Given:
        dataset = read_dataset(self.plan.work / "data")
        compared = compare(dataset, read_bundle(self.plan.out), read_bundle(self.current), self.progress)
        return {"figures": compared.as_json(), "said": compared.lines()}

    def _load(self, server: Server) -> Given:
        loaded = server.load(self.plan.path_on_server or str(self.plan.out.resolve()))
        if loaded != self.report["new"]:
            raise RefreshError(f"{server.target} loaded release {loaded}, not {self.report['new']}; look at --path-on-server")
        return {"said": [f"{server.target} holds release {loaded}"]}

    def _promote(self, server: Server) -> Given:
        before = server.promote(self.report["new"])
        self.report.setdefault("live", []).append(server.target)
        return {"said": [f"release {self.report['new']} is live on {server.target}, after {before or 'none'}"]}


def _said(text: str) -> Given:
    return {"said": [line.rstrip() for line in text.splitlines() if line.strip()]}


def _is_release(path: Path, release_id: str) -> bool:
    try:
        return read_manifest(path)[1] == release_id
    except BundleError:
        return False


def _release_of(bundle: Path) -> str:
    try:
        return read_manifest(bundle)[1]
    except BundleError as error:
        raise ConfigError(f"{bundle}: {error}") from error


def _sha256(*files: Path) -> str:
    """Of the files' contents, one after another."""
    digests = []
    for path in files:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error
    return " ".join(digests)
