"""A withdrawal of consent survives a restore of a backup from before it; a later yes wins."""

import shutil
import tempfile
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import towerbridge
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from towerbridge import v1

from server.errors import StartupError
from server.journal.backup import back_up
from server.journal.database import open_journal
from server.journal.erase import bring_up_to_date
from server.journal.events import USER, VISITOR, Person
from server.journal.history_import import Agreed, import_events, open_events
from server.journal.restore import restore
from server.journal.tombstones import open_tombstones
from server.users.directory import Purpose
from tests.server.about_people import PERSONALISATION, TRAINING, About, decision, user, visitor
from tests.server.conftest import Serve, Served
from tests.server.people_world import World

NO_CONSENT = [v1.DegradedReason.Value("DEGRADED_REASON_NO_CONSENT")]
DROPPED, ACCEPTED = v1.EventStatus.EVENT_STATUS_DROPPED_NO_CONSENT, v1.EventStatus.EVENT_STATUS_ACCEPTED
OPT_OUT = {"personalisation": "opt_out", "training": "opt_out"}
SECOND_US = 1_000_000
ANN = Person(USER, "ann")
EVENTS = pa.schema(
    {"user_id": pa.string(), "item_id": pa.string(), "event_type": pa.string(), "occurred_at": pa.timestamp("us", "UTC")}
)


def folder(served: Served) -> Path:
    return Path(served.app.tenant._config.data) / "default"


def view(served: Served, **who: str) -> int:
    [result] = served.client.record_events([towerbridge.event("view", "item-1", **who)]).results
    return result.status


def test_consent_that_was_withdrawn_since_the_backup_stays_withdrawn(serve: Serve):
    served = serve(consent=OPT_OUT)
    about = About(served)
    about.decide(user("ann"), decision(True))
    assert view(served, user_id="ann") == ACCEPTED
    backup, data = back_up(folder(served)).path, folder(served)
    served.clock.now_us += SECOND_US
    about.decide(user("ann"), decision(False))
    about.decide(visitor("ben"), decision(False))  # of whom the backup knows nothing
    about.decide(user("eve"), decision(False, TRAINING))
    serve.stop(served)  # type: ignore[attr-defined]
    restore(backup, data, replace=True)
    for _ in range(2):  # after a restart too
        served = serve(consent=OPT_OUT)
        about = About(served)
        assert list(served.client.recommend(user_id="ann", limit=1).degraded) == NO_CONSENT
        assert list(served.client.recommend(visitor_id="ben", limit=1).degraded) == NO_CONSENT
        assert view(served, user_id="ann") == view(served, visitor_id="ben") == DROPPED
        assert view(served, user_id="eve") == ACCEPTED
        states = {state.purpose: state.granted for state in about.consent(user("eve")).states}
        assert states == {PERSONALISATION: True, TRAINING: False}
        assert [one.granted for one in about.consent(user("ann")).decisions] == [True, False]
        serve.stop(served)  # type: ignore[attr-defined]
    served = serve(consent=OPT_OUT)
    served.clock.now_us += SECOND_US
    for person in (user("ann"), visitor("ben")):
        About(served).decide(person, decision(True))
    assert view(served, user_id="ann") == view(served, visitor_id="ben") == ACCEPTED
    assert not served.client.recommend(user_id="ann", limit=1).degraded


def test_whoever_is_linked_after_the_restore_brings_their_no_along(serve: Serve):
    served = serve(consent=OPT_OUT)
    assert view(served, user_id="ann") == ACCEPTED
    backup, data = back_up(folder(served)).path, folder(served)
    About(served).decide(user("ann"), decision(True))
    About(served).decide(visitor("ben"), decision(False))
    serve.stop(served)  # type: ignore[attr-defined]
    restore(backup, data, replace=True)
    served = serve(consent=OPT_OUT)
    About(served).link(visitor("ben"), user("ann"))
    assert view(served, visitor_id="ben") == DROPPED
    assert view(served, user_id="ann") == ACCEPTED


def test_a_person_who_was_erased_after_a_no_is_somebody_new(serve: Serve):
    served = serve(consent=OPT_OUT)
    backup, data = back_up(folder(served)).path, folder(served)
    About(served).decide(user("ann"), decision(False))
    served.client.erase_user(user_id="ann")
    serve.stop(served)  # type: ignore[attr-defined]
    restore(backup, data, replace=True)
    served = serve(consent=OPT_OUT)
    served.clock.now_us += SECOND_US
    assert view(served, user_id="ann") == ACCEPTED


def test_a_no_that_the_journal_did_not_get_is_written_at_the_next_start(tmp_path: Path):
    """The crash came between the tombstone and the journal."""
    directory = tmp_path / "data" / "default"
    with closing(World(directory, presumed=True)) as world:
        world.decide(ANN, Purpose.TRAINING, True, 5)
        world.tombstones.withdraw(ANN, {Purpose.TRAINING: 6})
        assert world.people.directory.may_person(ANN, Purpose.TRAINING)
    with closing(World(directory, presumed=True)) as world:
        assert not world.people.directory.may_person(ANN, Purpose.TRAINING)
        world.decide(ANN, Purpose.TRAINING, True, 7)
        assert world.people.directory.may_person(ANN, Purpose.TRAINING)


def test_a_yes_after_the_no_leaves_nothing_to_withdraw_after_a_restore(tmp_path: Path):
    directory = tmp_path / "data" / "default"
    with closing(World(directory, presumed=True)) as world:
        world.decide(ANN, Purpose.TRAINING, True, 5)
        backup = back_up(directory).path
        world.decide(ANN, Purpose.TRAINING, False, 6)
        world.decide(ANN, Purpose.TRAINING, True, 7)
    restore(backup, directory, replace=True)
    with closing(World(directory)) as world:
        assert world.people.directory.may_person(ANN, Purpose.TRAINING)


def test_an_import_overrules_no_withdrawal_that_the_backup_lacked(tmp_path: Path):
    directory = tmp_path / "data" / "default"
    with closing(World(directory)) as world:
        backup = back_up(directory).path
        world.decide(ANN, Purpose.TRAINING, False, 5)
    restore(backup, directory, replace=True)
    row = ("ann", "item-1", "view", 1)
    with pq.ParquetWriter(tmp_path / "events.parquet", EVENTS) as writer:
        writer.write_table(pa.table([[value] for value in row], schema=EVENTS))
    with closing(World(directory)) as world:
        agreed, file = Agreed(("personalisation", "training"), "terms"), open_events(tmp_path / "events.parquet")
        assert import_events(world.file, file, {}, world.tombstones, now_us=9, agreed=agreed).written == 1
    with closing(World(directory)) as world:
        assert world.people.directory.may_person(ANN, Purpose.PERSONALISATION)
        assert not world.people.directory.may_person(ANN, Purpose.TRAINING)


def test_a_withdrawal_needs_the_key_and_names_nobody(tmp_path: Path):
    directory = tmp_path / "data" / "default"
    zebra = Person(VISITOR, "zebra-in-the-tombstones")
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.withdraw(zebra, {Purpose.TRAINING: 5})
        assert b"zebra" not in tombstones.path.read_bytes()
        assert tombstones.withdrawn(zebra) == {Purpose.TRAINING: 5}
    (tmp_path / "data.erasure-key").unlink()
    with pytest.raises(StartupError, match="is missing, but people were erased or withdrew consent"):
        open_tombstones(directory)


def test_a_tombstone_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path):
    directory = tmp_path / "data" / "default"
    with closing(open_tombstones(directory)) as tombstones:
        tombstones.add([(ANN, None)], 50)
        tombstones._connection.execute("DROP TABLE withdrawals; PRAGMA user_version = 1")
    with closing(open_tombstones(directory)) as tombstones:
        assert tombstones.erased_us(ANN) == 50
        tombstones.withdraw(ANN, {Purpose.TRAINING: 60})
        assert tombstones.withdrawn(ANN) == {Purpose.TRAINING: 60}


def test_a_journal_that_is_up_to_date_is_not_read_at_a_start_after_a_no(tmp_path: Path):
    directory = tmp_path / "data" / "default"
    with closing(World(directory, presumed=True)) as world:
        world.decide(ANN, Purpose.TRAINING, False, 5)
    with closing(open_journal(directory)) as file, closing(open_tombstones(directory)) as tombstones:
        file.connection.execute("DELETE FROM consents")  # which nobody looks at
        bring_up_to_date(file, tombstones)
        assert not file.connection.execute("SELECT 1 FROM consents").fetchall()


class Restores(RuleBasedStateMachine):
    """Decisions, backups, restarts and restores in any order; consent is presumed, which is the harder case.

    Known by hand: each person's last decision by the time when it was given, whatever was restored since.
    """

    people = st.builds(Person, st.sampled_from((USER, VISITOR)), st.sampled_from(("ann", "ben")))
    purposes = st.sampled_from(Purpose)

    def __init__(self) -> None:
        super().__init__()
        self._root = Path(tempfile.mkdtemp())
        self._directory = self._root / "data" / "default"
        self._world = World(self._directory, presumed=True)
        self._last: dict[tuple[Person, Purpose], tuple[int, bool]] = {}
        self._lost: set[tuple[Person, Purpose]] = set()  # whose yes a restore took
        self._sent: list[tuple[Person, Purpose, bool, int]] = []
        self._backups: list[tuple[Path, dict[tuple[Person, Purpose], tuple[int, bool]]]] = []

    def teardown(self) -> None:
        self._world.close()
        shutil.rmtree(self._root)

    @rule(person=people, purpose=purposes, granted=st.booleans(), given=st.integers(1, 20))
    def decide(self, person: Person, purpose: Purpose, granted: bool, given: int) -> None:
        self._send(person, purpose, granted, given * 1_000 + len(self._sent))  # no two at the same time

    @precondition(lambda self: self._sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self._send(*data.draw(st.sampled_from(self._sent)))

    def _send(self, person: Person, purpose: Purpose, granted: bool, given_us: int) -> None:
        self._world.decide(person, purpose, granted, given_us)
        self._sent.append((person, purpose, granted, given_us))
        if given_us >= self._last.get((person, purpose), (0, True))[0]:
            self._last[person, purpose] = given_us, granted
            self._lost.discard((person, purpose))

    @rule(person=people)
    def become_known(self, person: Person) -> None:
        self._world.link(person, Person(USER, f"parent of {person.kind} {person.subject_id}"))

    @rule()
    def back_up(self) -> None:
        path = self._root / f"{len(self._backups)}.sqlite"
        back_up(self._directory, path)
        self._backups.append((path, dict(self._last)))

    @rule()
    def restart(self) -> None:
        self._world.close()
        self._world = World(self._directory, presumed=True)

    @precondition(lambda self: self._backups)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        backup, known = data.draw(st.sampled_from(self._backups))
        self._world.close()
        restore(backup, self._directory, replace=True)
        self._lost |= {of for of, last in self._last.items() if known.get(of) != last}
        self._world = World(self._directory, presumed=True)

    @invariant()
    def a_no_that_was_given_last_is_in_force_and_so_is_a_yes_that_no_restore_took(self) -> None:
        rebuilt = self._world.rebuilt()
        try:
            for (person, purpose), (_, granted) in self._last.items():
                if not granted or (person, purpose) not in self._lost:
                    for people in (self._world.people, rebuilt):
                        assert people.directory.may_person(person, purpose) is granted, (person, purpose)
        finally:
            rebuilt.close()

    @invariant()
    def the_journal_gives_out_no_position_twice(self) -> None:
        head = self._world.file.connection.execute("SELECT value FROM meta WHERE key = 'head'").get
        assert self._world.file.head == head


TestRestores = Restores.TestCase
TestRestores.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
