"""Who is who, and what each of them has agreed to."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple

import apsw

from server.journal.events import Person


class Purpose(IntEnum):
    """What data may be used for; the numbers are the journal's and the wire's."""

    PERSONALISATION = 1
    TRAINING = 2


class Decision(NamedTuple):
    """What a person decided about one purpose."""

    purpose: Purpose
    granted: bool
    source: str
    given_us: int  # microseconds since 1970, UTC
    is_now: bool = False  # the time was left to the server: it is later than the decisions before, also if the clock went back


class Directory:
    """Every subject's key, links and decisions, all in memory. The journal's writer thread changes it; any thread reads it.

    A link says that the source belongs to the target. Ids that are linked, directly or not, are one person: a tree, whose root
    belongs to nobody.
    """

    def __init__(
        self,
        presumed: Mapping[Purpose, bool] | None = None,
        withdrawn: Callable[[Person], Mapping[Purpose, int]] = lambda person: {},
    ) -> None:
        """presumed: for which purposes consent is presumed where nobody has decided; for none by default.

        withdrawn: what a subject of whom nothing is recorded withdrew before a restore; see `Tombstones.waiting`.
        """
        self._presumed = dict(presumed or {})
        self._withdrawn = withdrawn
        # A string of kind and id is half the size of a tuple of both.
        self._keys: dict[str, int] = {}
        self._parents: dict[int, int] = {}
        self._children: dict[int, tuple[int, ...]] = {}
        # By key: two bits a purpose, see _bits. A person who has decided nothing is not in it.
        self._decided: dict[int, int] = {}

    def __len__(self) -> int:
        """Subjects of which something is recorded."""
        return len(self._keys)

    def find(self, person: Person) -> int | None:
        """The key of a subject of which something is recorded."""
        return self._keys.get(_name(person))

    def keys(self) -> Iterable[int]:
        """Every key. For the thread that writes, or before there is one."""
        return self._keys.values()

    def root(self, key: int) -> int:
        """The key that stands for the whole person."""
        parent = self._parents.get(key)
        while parent is not None:
            key, parent = parent, self._parents.get(parent)
        return key

    def parent(self, key: int) -> int | None:
        """What the key belongs to, directly."""
        return self._parents.get(key)

    def is_linked(self, key: int) -> bool:
        return key in self._parents or key in self._children

    def members(self, key: int) -> list[int]:
        """The keys of everyone who is one person with this one, the root first, parents before children."""
        found = [self.root(key)]
        for member in found:
            found.extend(self._children.get(member, ()))
        return found

    def decided(self, key: int, purpose: Purpose) -> bool | None:
        """The decision of this id itself; None if it has not decided."""
        bits = self._decided.get(key, 0) >> _shift(purpose)
        return None if not bits & 2 else bool(bits & 1)

    def may(self, key: int, purpose: Purpose) -> bool:
        """Whether data held under the key may be used: nobody on the way to the root has said no, and one has said yes.

        Where nobody on the way has decided, what is presumed applies.
        """
        decision = self._on_the_way(key, purpose)
        return self._presumed.get(purpose, False) if decision is None else decision

    def is_presumed(self, key: int, purpose: Purpose) -> bool:
        """Whether nobody on the way to the root has decided."""
        return self._on_the_way(key, purpose) is None

    def may_person(self, person: Person, purpose: Purpose) -> bool:
        """`may`, of a subject of which nothing may be recorded."""
        key = self.find(person)
        if key is None:
            return self._presumed.get(purpose, False) and purpose not in self._withdrawn(person)
        return self.may(key, purpose)

    def why_not(self, person: Person, purpose: Purpose) -> str:
        """Why what is known of a subject may not be used, and what changes that: the rest of a sentence about them."""
        key, name = self.find(person), purpose.name.lower()
        own = (False if purpose in self._withdrawn(person) else None) if key is None else self.decided(key, purpose)
        if own is False:
            return f"has refused {name}; only a later yes of theirs changes that (SetConsent)"
        if key is not None and self._on_the_way(key, purpose) is False:
            return f"is linked to an id that has refused {name}; only a later yes of that id changes that (SetConsent)"
        return f"has not consented to {name}; record their consent first (SetConsent)"

    def permitted_members(self, key: int) -> list[int]:
        """Those of `members` whose events may be used for personalisation."""
        root, purpose = self.root(key), Purpose.PERSONALISATION
        found = [(root, self.decided(root, purpose))]  # with what applies on the way to the root, as in `may`
        for member, decision in found:
            if decision is False:
                continue  # which holds for all below
            for child in self._children.get(member, ()):
                own = self.decided(child, purpose)
                found.append((child, decision if own is None else own))
        presumed = self._presumed.get(purpose, False)
        return [member for member, decision in found if (presumed if decision is None else decision)]

    def load(self, connection: apsw.Connection) -> None:
        """Rebuilds everything from the journal."""
        for kind, subject_id, key in connection.execute("SELECT kind, subject_id, person_key FROM people"):
            self._keys[f"{kind}{subject_id}"] = key
        for source, target in connection.execute("SELECT source_key, target_key FROM links ORDER BY position"):
            self.link(source, target)
        rows = connection.execute("SELECT person_key, purpose, granted FROM consents ORDER BY person_key, given_us, position")
        for key, purpose, granted in rows:
            self.decide(key, Purpose(purpose), bool(granted))

    # What follows is for the thread that writes.

    def add(self, person: Person, key: int) -> None:
        """A subject became known."""
        name = _name(person)
        if name not in self._keys:
            self._keys[name] = key
            for purpose in self._withdrawn(person):
                self.decide(key, purpose, False)

    def link(self, source: int, target: int) -> None:
        """The source belongs to the target from now on; it must belong to nobody, and not be the target's root."""
        self._parents[source] = target
        self._children[target] = (*self._children.get(target, ()), source)

    def unlink(self, source: int) -> None:
        """The source belongs to nobody any more; it must have belonged to somebody."""
        target = self._parents.pop(source)
        left = tuple(child for child in self._children[target] if child != source)
        if left:
            self._children[target] = left
        else:
            del self._children[target]

    def decide(self, key: int, purpose: Purpose, granted: bool) -> None:
        """The decision of this id that counts."""
        shift = _shift(purpose)
        self._decided[key] = self._decided.get(key, 0) & ~(3 << shift) | (2 | granted) << shift

    def erase(self, people: Iterable[tuple[Person, int]]) -> None:
        """Forgets subjects, given with their keys, and their links. Idempotent."""
        for person, key in people:
            self._keys.pop(_name(person), None)
            self._decided.pop(key, None)
            for child in self._children.get(key, ()):
                self.unlink(child)
            if key in self._parents:
                self.unlink(key)

    def _on_the_way(self, key: int, purpose: Purpose) -> bool | None:
        """False if anybody from the key to the root has said no, True if one has said yes, None if nobody has decided."""
        if key not in self._parents:  # most people; this runs for every event and answer
            return self.decided(key, purpose)
        decision: bool | None = None
        for member in self._way(key):
            decided = self.decided(member, purpose)
            if decided is False:
                return False
            decision = decided or decision
        return decision

    def _way(self, key: int) -> Iterator[int]:
        yield key
        parent = self._parents.get(key)
        while parent is not None:
            yield parent
            parent = self._parents.get(parent)


def _name(person: Person) -> str:
    return f"{person.kind}{person.subject_id}"


def _shift(purpose: Purpose) -> int:
    return 2 * (purpose - 1)
