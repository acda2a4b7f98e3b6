"""A loaded release becomes the live one: people's vectors first, then the record on disk, then one assignment."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from server.catalogue.catalogue import Catalogue
from server.errors import DeadlineExceeded, Unavailable
from server.garbage import freeze
from server.journal.bundles import NoteBundle
from server.releases.load import Parts
from server.releases.record import Record, Recorded, forget_other, write_record
from server.releases.release import Release
from server.releases.warming import Warming
from server.users.refresher import Refresher

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.02
STOPPING = "the server is stopping; repeat the call elsewhere"
_LATE = "the vectors of {} people were not computed in time; nothing has changed: give the call more time"


class Promoted(NamedTuple):
    """A release that is live now."""

    release: Release
    previous_id: str  # the release that was live before; "" if it was live already
    people_ready: int


class GoingLive:
    """One change at a time: in one thread."""

    def __init__(
        self,
        parts: Parts,
        catalogue: Catalogue,
        refresher: Refresher,
        tenant_folder: Path,
        configured: str,
        clock_us: Callable[[], int],
    ) -> None:
        """tenant_folder: where the record is kept. configured: the release of the configured bundle."""
        self.promoted_us: dict[str, int] = {}
        """When each release was last made the live one, in microseconds since 1970."""
        self._parts = parts
        self._catalogue = catalogue
        self._refresher = refresher
        self._folder = tenant_folder
        self._configured = configured
        self._clock_us = clock_us
        self._stopping = threading.Event()

    def tidy(self) -> None:
        """At the start: a record of another configuration counts no more, not even when that one comes back."""
        forget_other(self._folder, self._configured)

    def stop(self) -> None:
        """Whoever waits for people's vectors gets Unavailable. Any thread may call."""
        self._stopping.set()

    def warm(self, release: Release, deadline: float) -> int:
        """Computes the vectors of people who were active last; how many have one then. deadline: time.monotonic seconds."""
        releases, people, count = self._parts.releases, self._parts.people, self._parts.config.releases.warm_people
        keys = dict.fromkeys(releases.live.user_vectors.recent(count))
        if len(keys) < count:
            keys.update(dict.fromkeys(people.keys_in_memory()))
        warming = releases.warming = Warming(release, people, list(keys)[:count], self._clock_us)
        late = DeadlineExceeded(_LATE.format(len(warming.keys)))
        try:
            while not warming.done.done():
                if time.monotonic() > deadline:
                    raise late
                self._parts.engine.poke()
                if self._stopping.wait(_LOOK_SECONDS):
                    raise Unavailable(STOPPING)
        finally:
            warming.given_up = True
            releases.warming = None
        if time.monotonic() > deadline:
            raise late
        return warming.ready

    def make_live(self, release: Release, ready: int) -> Promoted:
        """On disk first: what is live after a crash is then what was live last, or what was about to be."""
        parts, releases = self._parts, self._parts.releases
        before = releases.live
        manifest = release.bundle.manifest
        parts.journal.submit(NoteBundle(release.release_id, manifest.watermark, self._clock_us())).result()
        record = Record(configured=self._configured, live=_recorded(release), previous=_recorded(before))
        try:
            write_record(self._folder, record)
        except OSError as error:
            raise Unavailable(f"the record of the live release cannot be written ({error.strerror}); mend the disk") from None

        def swap() -> None:
            releases.make_live(release)
            self._catalogue.popularity = release.popularity
            if manifest.event_types or before.bundle.manifest.event_types:
                parts.people.live_types = frozenset(manifest.event_types)

        parts.engine.call(swap).result()
        self.promoted_us[release.release_id] = self._clock_us()
        # Whoever has no vector yet gets one when nobody waits, or when they ask; so does whoever has one of a time before, from
        # when the release was live already or while others' were computed.
        self._refresher.mark_all(sorted(parts.people.keys_in_memory(), key=lambda key: key in release.user_vectors))
        parts.engine.poke()
        freeze(young=True)
        _log.info("release %s is live, after %s; %d people were ready", release.release_id, before.release_id, ready)
        return Promoted(release, before.release_id, ready)


def _recorded(release: Release) -> Recorded:
    return Recorded(release_id=release.release_id, bundle=str(release.bundle.path.resolve()))
