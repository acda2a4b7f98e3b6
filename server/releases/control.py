"""Releases are loaded, made live and taken back, while the server serves."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from index.bundle import BundleError
from index.bundle.manifest import read_manifest
from server.catalogue.catalogue import Catalogue
from server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidField,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from server.garbage import freeze
from server.releases.aside import Stopped, prepare_aside
from server.releases.going_live import STOPPING, GoingLive, Promoted
from server.releases.load import Load, Parts, Preparer, discard
from server.releases.memory import available_bytes
from server.releases.record import Recorded, is_there
from server.releases.release import Release
from server.users.refresher import Refresher

_log = logging.getLogger(__name__)
T = TypeVar("T")
_NO_TURN = "its turn did not come in time; nothing has changed: repeat the call"


@dataclass(frozen=True)
class Failed:
    """A load that failed, kept until the next one."""

    release_id: str
    path: Path
    error: str


class ReleaseControl:
    """Loads one release at a time, and changes the live one, one change at a time, in threads of its own."""

    def __init__(
        self,
        parts: Parts,
        catalogue: Catalogue,
        refresher: Refresher,
        tenant_folder: Path,
        configured: tuple[Path, str],
        clock_us: Callable[[], int],
    ) -> None:
        """tenant_folder: where the record is kept. configured: the configured bundle and its release."""
        self.prepare: Preparer = prepare_aside
        self.available: Callable[[], int] = available_bytes
        """Bytes of memory that can be had."""
        self.loading: Load | None = None
        self.failed: Failed | None = None
        self._parts = parts
        self._going_live = GoingLive(parts, catalogue, refresher, tenant_folder, configured[1], clock_us)
        self._configured = configured[0]
        self._tenant = tenant_folder.name
        self._clock_us = clock_us
        self._loaded_us: dict[str, int] = {parts.releases.live.release_id: clock_us()}
        self._coming_back: str | None = None  # the release before the live one, which is loaded again after a start
        self._lock = threading.Lock()
        self._stopping = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="release-load")
        self._changer = ThreadPoolExecutor(1, thread_name_prefix="release-change")

    def loaded_us(self, release: Release) -> int | None:
        """When the release was loaded, in microseconds since 1970; None if it is being loaded."""
        return self._loaded_us.get(release.release_id)

    def promoted_us(self, release: Release) -> int | None:
        """When the release was last made the live one, in microseconds since 1970."""
        return self._going_live.promoted_us.get(release.release_id)

    def ready(self) -> list[Release]:
        """The releases that can answer: the live one, the one before it, then the others by age."""
        releases = self._parts.releases
        live, previous = releases.live, releases.previous
        first = [live] if previous is None else [live, previous]
        return [*first, *(one for one in releases.held if one not in first and one.release_id in self._loaded_us)]

    def states(self) -> Iterable[tuple[str, str]]:
        """Each release's id and what it is: "live", "previous", "loaded", "loading" or "failed"."""
        releases, loading, failed = self._parts.releases, self.loading, self.failed
        for release in self.ready():
            yield release.release_id, self.state_of(release)
        if loading is not None and releases.find(loading.release_id) not in self.ready():
            yield loading.release_id, "loading"
        if failed is not None:
            yield failed.release_id, "failed"

    def state_of(self, release: Release) -> str:
        """What a release that is ready is: "live", "previous" or "loaded"."""
        releases = self._parts.releases
        return "live" if release is releases.live else "previous" if release is releases.previous else "loaded"

    def load(self, bundle: str) -> Future[Release]:
        """Begins to load a bundle, or joins the load that is under way. The future cannot be cancelled.

        Raises InvalidField for a path that is not trusted or no bundle, FailedPrecondition while another is loaded,
        ResourceExhausted if there is no place for one more.
        """
        path = self._trusted(bundle)
        try:
            _, release_id = read_manifest(path)
        except BundleError as error:
            error.path = error.path or path
            raise InvalidField("bundle", str(error)) from None
        return self._begin(path, release_id)

    def promote(self, release_id: str, deadline: float) -> Future[Promoted]:
        """Makes a loaded release the live one. deadline: time.monotonic seconds; after it nothing is changed any more."""
        return self._change(lambda: self._promote(release_id, deadline))

    def rollback(self, expected: str | None, deadline: float) -> Future[Promoted]:
        """Makes the release live that was so before. expected: the release that must be live now."""
        return self._change(lambda: self._rollback(expected, deadline))

    def bring_back(self, previous: Recorded) -> None:
        """Loads the release again that was live before the last stop's live one, so that a rollback finds it."""
        if not is_there(previous):
            _log.warning(
                "release %s is not in %s any more: there is nothing to go back to", previous.release_id, previous.bundle
            )
            return
        self._coming_back = previous.release_id
        try:
            self._begin(Path(previous.bundle), previous.release_id)
        except ServiceError as error:
            self._coming_back = None
            _log.warning("release %s, which was live before, is not loaded again: %s", previous.release_id, error)

    def close(self) -> None:
        """Ends what is under way; those who wait get Unavailable. Before journal and engine are closed."""
        with self._lock:
            self._stopping = True
            if self.loading is not None:
                self.loading.stopping.set()
        self._going_live.stop()
        self._changer.shutdown(cancel_futures=True)
        self._loader.shutdown(cancel_futures=True)

    def tidy(self) -> None:
        """Removes what loads before this start left behind, and what another configuration did."""
        self._going_live.tidy()
        kept = {release.release_id for release in self._parts.releases.held}
        for folder in self._parts.folder.glob("*"):
            if folder.name not in kept and folder.name != self._coming_back:
                shutil.rmtree(folder, ignore_errors=True)

    # Loading.

    def _trusted(self, bundle: str) -> Path:
        """The bundle's directory, without links. Raises InvalidField if it is not below a folder that is trusted."""
        roots = self._roots()
        if not roots:
            raise InvalidField("bundle", "no folder is trusted here; name one in releases.bundles")
        try:
            path = (roots[0] / bundle).resolve()
            path.is_dir()  # raises if the name is too long for the file system
        except (ValueError, RuntimeError, OSError) as error:  # also a NUL, a circle of links
            raise InvalidField("bundle", f"is no directory's name: {error}") from None
        if not any(path.is_relative_to(root) and path != root for root in roots):
            names = ", ".join(map(str, roots))
            raise InvalidField("bundle", f"lies outside of {names}; copy it there, or add its folder to releases.bundles")
        return path

    def _roots(self) -> list[Path]:
        """The folders below which this tenant's bundles lie. Of several tenants none reaches the others'."""
        served, listed = self._parts.config.served, self._parts.config.releases.bundles
        if listed is not None:
            return [(one / self._tenant if len(served) > 1 else one).resolve() for one in listed]
        own = self._configured.resolve().parent
        others = (bundle.resolve() for name, bundle in served.items() if name != self._tenant)
        return [] if any(other.is_relative_to(own) for other in others) else [own]

    def _begin(self, path: Path, release_id: str) -> Future[Release]:
        releases = self._parts.releases
        with self._lock:
            if self._stopping:
                raise Unavailable(STOPPING)
            loading = self.loading
            if loading is not None and loading.release_id == release_id:
                return loading.done
            held = releases.find(release_id)
            if held is not None:
                done: Future[Release] = Future()
                done.set_running_or_notify_cancel()
                done.set_result(held)
                return done
            if loading is not None:
                raise FailedPrecondition(
                    f"release {loading.release_id} is being loaded from {loading.path}; repeat the call when it is done"
                )
            self._check_place()
            self.failed = None
            load = self.loading = Load(self._parts, path, release_id, self.prepare, lambda: self.available(), self._room)
            self._loader.submit(self._run, load).add_done_callback(lambda work: _refuse_if_cancelled(work, load.done))
            return load.done

    def _check_place(self) -> None:
        keep = self._parts.config.releases.keep
        if keep <= len({self._parts.releases.live, self._parts.releases.previous} - {None}):
            raise ResourceExhausted(
                f"releases.keep is {keep}, and the live release and the one before it take these places; set it to 3 or more"
            )

    def _room(self) -> bool:
        """Makes a place; whether another had to go for it. In the thread of changes: none may go that is becoming live."""
        return self._changer.submit(self._make_room).result()

    def _make_room(self) -> bool:
        """Lets the oldest go of those that are merely loaded, until there is a place."""
        releases, anyone = self._parts.releases, False
        while len(releases.held) >= self._parts.config.releases.keep:
            spare = next((one for one in releases.held if one not in (releases.live, releases.previous)), None)
            if spare is None:
                break
            anyone = True
            _log.info("release %s makes room for another", spare.release_id)
            self._loaded_us.pop(spare.release_id, None)
            discard(self._parts, spare)
            shutil.rmtree(self._parts.folder / spare.release_id, ignore_errors=True)
        return anyone

    def _run(self, load: Load) -> None:
        error: BaseException | None = None
        try:
            release = load.run()
        except Stopped:
            error = Unavailable(STOPPING)
        except BaseException as failure:
            error = Unavailable(STOPPING) if self._stopping else failure
        with self._lock:
            self.loading = None
            if error is None:
                self._loaded_us[release.release_id] = self._clock_us()
                if self._coming_back == release.release_id:
                    self._parts.releases.previous = self._parts.releases.previous or release
            else:
                said = str(error) if isinstance(error, ServiceError) else "an unexpected error; the server's log has it"
                self.failed = Failed(load.release_id, load.path, said)
            if load.release_id == self._coming_back:
                self._coming_back = None
        if error is None:
            freeze(young=True)
            load.done.set_result(release)
            return
        _log.error("release %s was not loaded: %s", load.release_id, error, exc_info=not isinstance(error, ServiceError))
        load.done.set_exception(error)

    # Changing the live release, in the thread for it.

    def _change(self, change: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()

        def run() -> None:
            try:
                done.set_result(change())
            except BaseException as error:
                done.set_exception(error)

        with self._lock:
            if self._stopping:
                raise Unavailable(STOPPING)
            self._changer.submit(run).add_done_callback(lambda work: _refuse_if_cancelled(work, done))
        return done

    def _promote(self, release_id: str, deadline: float) -> Promoted:
        releases = self._parts.releases
        release = next((one for one in self.ready() if one.release_id == release_id), None)
        if release is None:
            loading = self.loading is not None and self.loading.release_id == release_id
            problem = "is being loaded; promote it when that is done" if loading else "is not loaded; load its bundle first"
            raise NotFound(f"release_id: {release_id!r} {problem}")
        if release is releases.live:
            return Promoted(release, "", 0)
        return self._going_live.make_live(release, self._going_live.warm(release, deadline))

    def _rollback(self, expected: str | None, deadline: float) -> Promoted:
        releases = self._parts.releases
        if expected is not None and expected != releases.live.release_id:
            raise FailedPrecondition(f"the live release is {releases.live.release_id}, not {expected!r}; nothing was changed")
        if releases.previous is None:
            coming = self._coming_back
            if coming is not None:
                raise Unavailable(f"release {coming}, which was live before, is being loaded; repeat the call in a moment")
            raise FailedPrecondition("no release was live before the live one; load and promote another")
        if time.monotonic() > deadline:
            raise DeadlineExceeded(_NO_TURN)
        return self._going_live.make_live(releases.previous, 0)


def _refuse_if_cancelled(work: Future[None], done: Future[T]) -> None:
    if work.cancelled():
        done.set_exception(Unavailable(STOPPING))
