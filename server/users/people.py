"""Everyone's history: a view over the journal, the links and the decisions."""

import gc
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count

import apsw

from server.journal.events import HeldEvent, Person, Status, StoredEvent
from server.journal.people_reader import PeopleReader, Recorded
from server.users.directory import Directory, Purpose
from server.users.histories import History, HistoryCache
from server.users.history_loading import Events, ItemPlaces, read_events, recent_since
from server.users.item_references import ItemReferences
from server.users.profile import Profile

Locate = Callable[[str, int], int]
"""The ordinal of an item for an event at a position of the journal; -1 if the event must wait."""


class People:
    """What is known of people, for answers. The journal's writer thread changes it; any thread may read.

    An event counts if its item was in the catalogue at its time or came in since, if its type is known, and if its person has
    consented to personalisation. The events of ids that are linked are one history, kept under the root's key, merged in time
    order. Histories are cached; what is not in the cache is read from the journal, up to the last position that was published,
    so that a history read anew and one that was kept up to date are the same.
    """

    def __init__(
        self,
        types: Iterable[str],
        directory: Directory,
        *,
        limit: int,
        capacity: int = 1_000_000,
        unreferenced: Callable[[int], None] = lambda ordinal: None,
    ) -> None:
        """limit: newest events in a history. capacity: people whose histories are kept in memory."""
        self.directory = directory
        self.type_names = list(types)
        self._type_codes = {name: code for code, name in enumerate(self.type_names)}
        self.live_types = frozenset(self.type_names)
        """Those that the live release knows: events of others are in histories for releases that are not live."""
        self._limit = limit
        self._capacity = capacity
        self._references = ItemReferences(unreferenced)
        self._cache = HistoryCache(capacity)
        self._versions = count(1)
        self._generations: dict[int, int] = {}  # by root; 0 for those not in it
        self._profiles: dict[int, Profile] = {}
        self._erased: set[int] = set()  # keys erased since the start
        self._published = 0
        # Held by whoever changes the cache or reads the journal for it: what is read is then what was published.
        self._lock = threading.RLock()
        self._reader: PeopleReader | None = None
        self._locate: Locate = lambda item_id, position: -1

    def __len__(self) -> int:
        """Ids of which something is recorded."""
        return len(self.directory)

    @property
    def in_memory(self) -> int:
        """People whose histories are in memory."""
        return len(self._cache)

    def history(self, root: int) -> History:
        """The events that count of a person, given by the root's key; empty for an unknown key."""
        packed = self._cache.get(root)
        return History.unpack(packed) if packed is not None else self._read_through(root)

    def held_count(self, key: int) -> int:
        """Recorded events of the person that may be used, whether they count or not."""
        with self._lock:
            if self._reader is None:
                return 0
            return sum(self._reader.count(member, self._published) for member in self.directory.permitted_members(key))

    @property
    def has_profiles(self) -> bool:
        """Whether anybody has stated anything."""
        return bool(self._profiles)

    def profile(self, key: int) -> Profile | None:
        """The root's profile, or the key's own if the root has none. For whoever may use it: consent is not looked at."""
        return self._profiles.get(self.directory.root(key)) or self._profiles.get(key)

    def own_profile(self, key: int) -> Profile | None:
        """What was stated about this id itself. Consent is not looked at."""
        return self._profiles.get(key)

    def subjects(self, keys: Sequence[int]) -> dict[int, Person]:
        """The subjects of those of the keys that are still held."""
        with self._lock:
            return self._reader.subjects(keys) if self._reader is not None else {}

    def trail(self, key: int, upto: int) -> list[Recorded]:
        """Every decision recorded under the key up to a position of the journal, oldest first by arrival."""
        with self._lock:
            return self._reader.trail(key, upto) if self._reader is not None else []

    def some(self, number: int) -> list[tuple[int, History]]:
        """Up to `number` people's keys and histories, spread over those in memory."""
        keys = self._cache.keys()
        return [(key, self.history(key)) for key in keys[:: max(1, len(keys) // number)][:number]]

    def to_refresh(self) -> list[int]:
        """The roots of those whose vectors should be there after a start. Before anybody else changes or reads histories."""
        known = self.directory.keys()
        linked = [key for key in known if self.directory.is_linked(key) and self.directory.parent(key) is None]
        return [*self._cache.keys(), *linked]

    def keys_in_memory(self) -> list[int]:
        """The roots of those whose histories are in memory."""
        return self._cache.keys()

    def is_erased(self, key: int) -> bool:
        """Whether the key was erased since the start: nothing may be kept under it."""
        return key in self._erased

    def is_current(self, key: int, generation: int) -> bool:
        """Whether what was made of a history of this generation may still be kept under the key, which must be a root's."""
        is_root = self.directory.parent(key) is None
        return is_root and key not in self._erased and self._generations.get(key, 0) == generation

    def references(self, ordinal: int) -> int:
        """How many recorded events on the item count."""
        return self._references.count(ordinal)

    def type_code(self, name: str) -> int | None:
        """The code of an event type that counts."""
        return self._type_codes.get(name)

    def load(self, connection: apsw.Connection, items: ItemPlaces, *, published: int) -> None:
        """Rebuilds everything from the journal. published: the journal's head."""
        self._published = published
        self._locate = items.locate
        self.directory.load(connection)
        for key, profile in connection.execute("SELECT person_key, profile FROM profiles"):
            self._profiles[key] = Profile.from_json(profile)
        recent = recent_since(connection, self._capacity) if len(self.directory) > self._capacity else 0
        gc.disable()  # millions of rows pass through, and none of them in a circle: that is a quarter of the time
        try:
            for events in read_events(connection, self._type_codes, items):
                self._take_in(events, recent)
        finally:
            gc.enable()

    def read_from(self, connection: apsw.Connection, locate: Locate) -> None:
        """From now on histories that are not in memory are read here. The connection is this object's alone."""
        self._reader = PeopleReader(connection)
        self._locate = locate

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    # What follows is for the thread that writes.

    def add(self, events: Sequence[tuple[StoredEvent, Person]], ordinal_of: Callable[[str], int]) -> list[Status]:
        """Takes in new events; says of each whether it counts. ordinal_of: the ordinal of a live item, or -1."""
        statuses = []
        with self._lock:
            for event, person in events:
                self.directory.add(person, event.person_key)
                code = self._type_codes.get(event.type)
                ordinal = ordinal_of(event.item_id)
                if code is None or ordinal < 0:
                    if code is not None:
                        self._references.wait(event.item_id, event.person_key)
                    statuses.append(Status.UNKNOWN_ITEM if ordinal < 0 else Status.UNKNOWN_TYPE)
                    continue
                self._references.add(ordinal)
                self._append(event, ordinal, code)
                statuses.append(Status.ACCEPTED if event.type in self.live_types else Status.UNKNOWN_TYPE)
            self._published = events[-1][0].position
        return statuses

    def learn_types(self, names: Sequence[str]) -> None:
        """Events of these types count from now on, too, recorded ones as well: for a release that knows them."""
        with self._lock:
            new = [name for name in names if name not in self._type_codes]
            held = self._reader.of_types(new, self._published) if new and self._reader is not None else []
            for name in new:
                self.type_names.append(name)
                self._type_codes[name] = len(self.type_names) - 1
            for key, position, item_id in held:
                ordinal = self._locate(item_id, position)
                if ordinal >= 0:
                    self._references.add(ordinal)
                else:
                    self._references.wait(item_id, key)
                self._cache.drop(self.directory.root(key))  # it is read anew when somebody asks

    def item_came_in(self, item_id: str, ordinal: int) -> list[int]:
        """Lets the events that waited for the item count; returns the roots of the people whose histories changed."""
        with self._lock:
            keys = self._references.came_in(item_id, ordinal)
            roots = list(dict.fromkeys(self.directory.root(key) for key in keys))
            for root in roots:
                self._cache.drop(root)
            return roots

    def link(self, source: tuple[Person, int], target: tuple[Person, int]) -> list[int]:
        """The source belongs to the target. Returns the keys under which vectors are no longer right."""
        with self._lock:
            for person, key in (source, target):
                self.directory.add(person, key)
            self.directory.link(source[1], target[1])
            return self._changed(source[1], target[1])

    def unlink(self, source: int, target: int) -> list[int]:
        """The source belongs to nobody any more. Returns the keys under which vectors are no longer right."""
        with self._lock:
            self.directory.unlink(source)
            return self._changed(source, target)

    def decide(self, person: Person, key: int, decisions: Iterable[tuple[Purpose, bool]]) -> list[int]:
        """The decisions that count of this id. Returns the keys under which vectors are no longer right."""
        with self._lock:
            self.directory.add(person, key)
            before = self.directory.permitted_members(key)
            for purpose, granted in decisions:
                self.directory.decide(key, purpose, granted)
            return self._changed(key) if self.directory.permitted_members(key) != before else []

    def set_profile(self, person: Person, key: int, profile: Profile | None) -> None:
        self.directory.add(person, key)
        if profile is None:
            self._profiles.pop(key, None)
        else:
            self._profiles[key] = profile

    def erased(self, people: Sequence[tuple[Person, int]], events: Iterable[HeldEvent]) -> list[int]:
        """Forgets people whom the journal holds no more, and their events. Returns the keys to drop everywhere."""
        keys = [key for _, key in people]
        with self._lock:
            self._erased.update(keys)
            self.forget(events)
            self.directory.erase(people)
            for key in keys:
                self._cache.drop(key)
                self._profiles.pop(key, None)
                self._generations.pop(key, None)
        return keys

    def forget(self, events: Iterable[HeldEvent]) -> list[int]:
        """Forgets events that the journal holds no more. Returns the keys under which vectors are no longer right."""
        roots: dict[int, None] = {}
        with self._lock:
            for event in events:
                if event.type not in self._type_codes:
                    continue
                ordinal = self._locate(event.item_id, event.position)
                if ordinal >= 0:
                    self._references.add(ordinal, -1)
                else:
                    self._references.wait(event.item_id, event.person_key, -1)
                roots[self.directory.root(event.person_key)] = None
            return self._changed(*roots)

    def _take_in(self, events: Events, recent: int) -> None:
        """Events of whole people, at start."""
        self._references.take_in(events)
        counting = events.counting()
        for key, its in counting.people():
            if counting.positions[its].max() < recent or self.directory.is_linked(key):
                continue  # read when somebody asks
            if self.directory.may(key, Purpose.PERSONALISATION):
                kept = slice(max(its.start, its.stop - self._limit), its.stop)
                history = History(
                    counting.ordinals[kept],
                    counting.types[kept],
                    counting.times_us[kept],
                    next(self._versions),
                    its.stop - its.start,
                    0,
                )
                self._cache.put(key, history.pack())

    def _changed(self, *keys: int) -> list[int]:
        """What belongs to these people has changed: their histories are read anew, and no older vector may be used."""
        generation = next(self._versions)
        stale = {*keys, *(self.directory.root(key) for key in keys)}
        for key in stale:
            self._generations[key] = generation
            self._cache.drop(key)
        return list(stale)

    def _append(self, event: StoredEvent, ordinal: int, code: int) -> None:
        root = self.directory.root(event.person_key)
        packed = self._cache.get(root)
        if packed is not None:  # otherwise it is read when somebody asks
            version = next(self._versions)
            after = History.unpack(packed).with_event(ordinal, code, event.occurred_us, version=version, limit=self._limit)
            self._cache.put(root, after.pack())

    def _read_through(self, key: int) -> History:
        with self._lock:
            packed = self._cache.get(key)
            if packed is not None:
                return History.unpack(packed)
            history = self._read(key)
            if self.directory.parent(key) is None and key not in self._erased:  # only roots are kept up to date
                self._cache.put(key, history.pack())
            return history

    def _read(self, key: int) -> History:
        """The history as the journal has it, up to what was published."""
        rows = []
        for member in self.directory.permitted_members(key):
            for position, item_id, type_name, time_us in self._rows(member):
                code = self._type_codes.get(type_name, -1)
                ordinal = self._locate(item_id, position) if code >= 0 else -1
                if ordinal >= 0:
                    rows.append((time_us, position, ordinal, code))
        return History.of(rows, self._limit, version=next(self._versions), generation=self._generations.get(key, 0))

    def _rows(self, key: int) -> list[tuple[int, str, str, int]]:
        return self._reader.events(key, self._published) if self._reader is not None else []
