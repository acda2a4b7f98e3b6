"""One tenant: everything below the edge, wired."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import apsw
from prometheus_client.registry import Collector

from index.bundle import Bundle, BundleError, read_bundle
from index.bundle.manifest import read_manifest
from index.choice import ChoiceError
from index.gpu.memory import MemoryPlanError
from server.api.audience import AudienceServicer
from server.api.erasure import ErasureCalls
from server.api.events import EventServicer
from server.api.handlers import Handlers, handlers_of
from server.api.items import ItemServicer
from server.api.recommendations import RecommendationServicer
from server.api.releases import ReleaseServicer
from server.api.users import UserServicer
from server.catalogue.changes import CatalogueChanges
from server.catalogue.text_workers import TextWorkers
from server.config import Config
from server.engine.batch import BatchComputer
from server.engine.engine import Engine
from server.engine.turns import Turns
from server.errors import ServiceError, StartupError
from server.journal.bundles import note_bundle
from server.journal.database import open_journal, open_reader
from server.journal.erase import bring_up_to_date
from server.journal.events import HeldEvent, Status
from server.journal.retention import Retention, rules_of
from server.journal.tombstones import open_tombstones
from server.journal.writer import JournalWriter
from server.overload.limits import Limits
from server.recommend.flow import Recommender
from server.releases.compiled import TowerCompiler
from server.releases.control import ReleaseControl
from server.releases.load import Parts
from server.releases.loading import load_views, seed_catalogue
from server.releases.record import to_serve
from server.releases.release import Release
from server.releases.releases import Releases
from server.releases.warm_up import CHECK, warm_up
from server.security.audit import AuditLog
from server.telemetry.index import IndexFigures
from server.telemetry.limits import LimitFigures
from server.telemetry.people import PeopleFigures
from server.telemetry.releases import ReleaseFigures
from server.telemetry.stages import StageFigures
from server.users.admission import Admission
from server.users.audience import Audience
from server.users.changes import PeopleChanges
from server.users.consent import presumed_by
from server.users.directory import Directory
from server.users.erasure import Erasure
from server.users.intake import EventIntake
from server.users.people import People
from server.users.refresher import Refresher

_MANY_TO_REFRESH = 256  # people: 64 ms of the engine's time


class Tenant:
    """What one tenant owns: journal, people, catalogue, releases, and the thread that computes for it.

    Between construction and `start` nothing is served. Raises StartupError, with one line that says what to do, if it cannot be
    loaded.
    """

    def __init__(
        self, name: str, bundle: Path, config: Config, *, clock_us: Callable[[], int], not_serving: Callable[[], None]
    ) -> None:
        """not_serving: told, on any thread, when something that answers depend on has died."""
        self.name = name
        self.folder = config.data / name
        self._bundle_path = bundle
        self._config = config
        self._clock_us = clock_us
        self._not_serving = not_serving
        self.limits = Limits(config.overload)
        self.stages = StageFigures()
        with ExitStack() as opened:  # closed again if anything below fails
            try:
                self._load(config, opened)
            except apsw.Error as error:
                raise StartupError(f"cannot use the journal in {config.data}: {error}; check the disk and its space") from None
            warm_up(self.live, self._texts.open(self.live.bundle))
            self.handlers = self._make_handlers(config)
            self._opened = opened.pop_all()

    def _load(self, config: Config, opened: ExitStack) -> None:
        path, self._previous = to_serve(self.folder, self._bundle_path)
        try:
            bundle = read_bundle(path)
            configured = bundle.release_id if path == self._bundle_path else read_manifest(self._bundle_path)[1]
        except BundleError as error:
            raise StartupError(str(error)) from None
        file = self._file = open_journal(self.folder)
        opened.callback(file.close)
        self.audit = AuditLog(self.folder, self._clock_us)
        opened.callback(self.audit.close)
        self._tombstones = open_tombstones(self.folder, config.erasure.key_file)
        opened.callback(self._tombstones.close)
        bring_up_to_date(file, self._tombstones)  # before anything is read from the journal
        self._texts = TextWorkers()
        opened.callback(self._texts.close)
        self._texts.open(bundle)  # it loads while the rest does
        self._refresher = Refresher()
        self._event_counts: Counter[Status] = Counter()
        self.people = People(
            bundle.manifest.event_types,
            Directory(presumed_by(config.consent), self._tombstones.waiting),
            limit=config.users.max_history_events,
            capacity=config.users.max_people_in_memory,
            unreferenced=self._unreferenced,
        )
        opened.callback(self.people.close)
        computer = self._computer = BatchComputer(
            self._release, self.people, self._refresher, clock_us=self._clock_us, stages=self.stages
        )
        self._engine = Engine(
            computer.answer,
            background=Turns(
                lambda: config.users.refresh and computer.refresh(),
                lambda: self.releases.upkeep(),
                lambda: self.releases.warm(),
            ),
            flooded=lambda: self._refresher.changed > _MANY_TO_REFRESH,
            max_batch=config.engine.max_batch,
            callers_compute=self._callers_compute,
            on_death=self._not_serving,
            waited=self.limits.reads.waited,
        )
        self.towers = TowerCompiler(self.folder / "compiled", self._engine, threads=config.engine.threads)
        self._load_release(config, bundle, opened)
        self._journal = JournalWriter(
            file,
            max_group_rows=config.journal.max_group_rows,
            on_death=self._not_serving,
            waited=self.limits.ingests.waited,
            stages=self.stages,
        )
        self._make_changes(config)
        self.control = self._make_control(config, configured)

    def _load_release(self, config: Config, bundle: Bundle, opened: ExitStack) -> None:
        """The catalogue, everyone's history and the release, from the bundle and the journal."""
        file = self._file
        seed_catalogue(file, bundle)
        try:
            self.catalogue, live = load_views(
                file,
                bundle,
                self.people,
                self._texts.open(bundle),
                settings=config.index,
                device=config.engine.device,
                max_batch=config.engine.max_batch,
                max_people=config.users.max_people_in_memory,
                snapshots=self._snapshots(bundle) if config.index.snapshots else None,
                wake=self._engine.poke,
            )
        except (ChoiceError, MemoryPlanError) as error:
            raise StartupError(f"index: {error}") from None
        except ServiceError as error:
            raise StartupError(f"{self._bundle_path}: the text encoder does not work: {error}; {CHECK}") from None
        self.releases = Releases(live)
        opened.callback(self._close_indexes)
        note_bundle(file.connection, self.live.release_id, bundle.manifest.watermark, self._clock_us())
        self.people.read_from(open_reader(file.path), self.catalogue.locate)

    def _make_changes(self, config: Config) -> None:
        """Whatever changes items and people, over the journal's writer."""
        file = self._file
        self._retention = Retention(
            rules_of(config.journal.retention_days, config.journal.max_events_per_person, config.journal.event_id_days),
            lambda: open_reader(file.path),
            self._journal,
            self._forget,
            self._clock_us,
        )
        self._changes = CatalogueChanges(
            self._journal, self.catalogue, self.people, self._refresher, self._engine, self.releases, self._texts
        )
        self._people_changes = PeopleChanges(
            self._journal, self.people, self._refresher, self._engine, self.releases, self._tombstones, self._clock_us
        )
        self._erasure = Erasure(
            file,
            self._journal,
            self.people,
            self._people_changes,
            self._engine,
            self.releases,
            self._tombstones,
            config,
            self._clock_us,
        )

    def _make_control(self, config: Config, configured: str) -> ReleaseControl:
        parts = Parts(
            self.releases,
            self.people,
            self._engine,
            self._journal,
            self._changes,
            self._texts,
            config,
            self._file.path,
            self.folder / "releases",
            self.towers if config.engine.compile else None,
        )
        whole = (self._bundle_path, configured)
        return ReleaseControl(parts, self.catalogue, self._refresher, self.folder, whole, self._clock_us)

    def _snapshots(self, bundle: Bundle) -> Path:
        """Where the index of a release is kept: the configured bundle's has a place of its own."""
        is_configured = bundle.path.resolve() == self._bundle_path.resolve()
        return self.folder / "index" if is_configured else self.folder / "releases" / bundle.release_id / "index"

    def _close_indexes(self) -> None:
        for release in self.releases.held:
            release.live_index.close()

    def _make_handlers(self, config: Config) -> Handlers:
        journal, release, people, catalogue = self._journal, self._release, self.people, self.catalogue
        admission = Admission(people.directory, self._tombstones)
        intake = EventIntake(journal, people, admission, catalogue, self._refresher, self._engine)
        recommender = Recommender(people, catalogue, self._engine, release, self.stages)
        erasure = ErasureCalls(self._erasure, people, journal, self._file.path, self.releases)
        self._audience = Audience(people, self._refresher, self._computer.refresh, self._engine, release)
        return handlers_of(
            RecommendationServicer(recommender, people, catalogue, journal, release, config),
            EventServicer(intake, journal, config, self._clock_us, people.directory, self._event_counts),
            ItemServicer(self._changes, catalogue, journal, release, config),
            UserServicer(people, self._people_changes, erasure, catalogue, journal, release, config, self._clock_us),
            AudienceServicer(self._audience, catalogue, config),
            ReleaseServicer(catalogue, release, self.control, config.listen.default_deadline_ms),
        )

    def figures(self) -> list[Collector]:
        """What operators watch."""
        return [
            IndexFigures(self.name, lambda: self.live.index, lambda: self.live.live_index.recall),
            PeopleFigures(self.name, self._refresher, lambda: self.live.user_vectors, lambda: self._event_counts),
            ReleaseFigures(self.name, self.control.states),
            LimitFigures(self.name, self.limits),
        ]

    def start(self) -> None:
        """Begins to compute and to write; the first request is as fast as any."""
        self._refresher.mark_all(self.people.to_refresh())
        self._engine.start()
        self._engine.call(lambda: self.live.live_index.take_over(threads=self._config.engine.threads)).result()
        if self._config.engine.compile:
            self.towers.use(self.live)
        self._journal.start()
        self._retention.start()
        self.control.tidy()

    def wake(self) -> None:
        """Begins in the background with what the start left to do."""
        self._engine.poke()
        if self._previous is not None:
            self.control.bring_back(self._previous)

    def close(self) -> None:
        """Ends what is under way, then writes and closes everything. No call may be in flight."""
        self.towers.close()  # first: a load may wait for it
        self.control.close()
        self._retention.close()
        self._erasure.close()
        self._journal.close()
        self._engine.close()
        self._opened.close()

    def describe(self) -> str:
        """One line for people."""
        release = self.live
        index = f"{release.live_index.choice}, on {release.device}"
        return f"release {release.release_id}, {len(self.catalogue)} items, {index}"

    @property
    def live(self) -> Release:
        """The release that makes the answers."""
        return self.releases.live

    def report(self) -> str:
        """What there is, for the start's report."""
        stored = sum(one.stat().st_size for one in self._file.path.parent.glob(f"{self._file.path.name}*"))
        people = f"{len(self.people):,} ids of people ({self.people.in_memory:,} histories in memory)"
        return f"{self.describe()}, {people}, journal of {stored / 1e6:,.1f} MB in {self.folder}"

    def _release(self) -> Release:
        return self.releases.live

    def _callers_compute(self) -> bool:
        # A GPU's streams and graphs belong to one thread. And several threads to a computation search the queries of a batch.
        engine = self._config.engine
        return engine.device == "cpu" and engine.threads == 1 and not self.releases.live.index.engine.gains_from_batches

    def _forget(self, events: Sequence[HeldEvent]) -> None:
        self._people_changes.outdated(self.people.forget(events))

    def _unreferenced(self, ordinal: int) -> None:
        self._changes.free(ordinal)
