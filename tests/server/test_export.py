"""`python -m server.journal export`, `screen` and `import --consent`: who is trained on, and who no longer is."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from towerbridge.v1 import common_pb2, user_pb2

from index.bundle import Watermark, read_bundle
from server.errors import StartupError
from server.journal.database import open_journal
from server.journal.events import USER, VISITOR, Person
from server.journal.export import SCHEMA, WATERMARK, _mark, export_events, screen, training_id
from server.journal.history_import import Agreed, Imported, import_events, open_events
from server.journal.tombstones import open_tombstones
from server.users.directory import Directory, Purpose
from tests.server.about_people import TRAINING, About, decision, user, visitor
from tests.server.conftest import NOW_US, Serve, Served
from tests.server.erasing import SECOND_US, directory, erase, event, record
from training.cli import main as training

ALL = {Purpose.PERSONALISATION: True, Purpose.TRAINING: True}
NOBODY = {Purpose.PERSONALISATION: True, Purpose.TRAINING: False}
OPT_IN_TRAINING = {"personalisation": "opt_out", "training": "opt_in"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "export.parquet"


def rows(path: Path) -> list[tuple[str, str]]:
    """User and item of each row, in the order of the file."""
    table = pq.read_table(path)
    return list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def view(served: Served, person: common_pb2.Person, *items: str) -> None:
    """Records events of a person, a second apart."""
    for item in items:
        served.clock.now_us += SECOND_US
        record(served, event(person, item))


def test_only_those_who_consented_to_training_are_exported(serve: Serve, out: Path):
    served = serve(consent=OPT_IN_TRAINING)
    view(served, user("yes"), "item-1", "item-2")
    view(served, user("silent"), "item-3")
    view(served, user("no"), "item-4")
    About(served).decide(user("yes"), decision(True, TRAINING))
    About(served).decide(user("no"), decision(False, TRAINING))
    done = export_events(directory(served), out, NOBODY, now_us=served.clock())
    assert rows(out) == [("yes", "item-1"), ("yes", "item-2")]
    assert (done.people, done.events, done.without_consent) == (1, 2, 2)
    again = export_events(directory(served), out.with_name("all.parquet"), ALL, now_us=served.clock())
    assert (again.people, again.without_consent) == (2, 1)


def test_linked_ids_are_one_user_without_the_ids_that_said_no(serve: Serve, out: Path):
    served = serve()
    view(served, visitor("phone"), "item-1")
    view(served, user("ann"), "item-2")
    view(served, visitor("laptop"), "item-3")
    view(served, visitor("phone"), "item-4")
    for name in ("phone", "laptop"):
        About(served).link(visitor(name), user("ann"))
    About(served).decide(visitor("laptop"), decision(False, TRAINING))
    view(served, visitor("alone"), "item-5")
    export_events(directory(served), out, ALL, now_us=served.clock())
    assert sorted(rows(out)) == [("ann", "item-1"), ("ann", "item-2"), ("ann", "item-4"), ("visitor:alone", "item-5")]
    assert [item for who, item in rows(out) if who == "ann"] == ["item-1", "item-2", "item-4"]  # in time order


def test_nobody_shares_an_id_in_training():
    people = [
        *(Person(kind, text) for kind in (USER, VISITOR) for text in ("a", "visitor:a", "user:a", "long:a", "user:visitor:a")),
        *(Person(kind, "x" * length) for kind in (USER, VISITOR) for length in (248, 250, 256)),
    ]
    names = [training_id(person) for person in people]
    assert len(set(names)) == len(people)
    assert all(len(name.encode()) <= 256 for name in names)
    assert training_id(Person(USER, "ann")) == "ann"


def test_the_file_says_up_to_where_it_saw(serve: Serve, out: Path):
    served = serve()
    view(served, user("ann"), "item-1")
    epoch, position = served.app.tenant._journal.epoch, served.app.tenant._journal.revision
    export_events(directory(served), out, ALL, now_us=served.clock())
    assert pq.read_schema(out).metadata[WATERMARK].decode() == f"{epoch}:{position}"
    view(served, user("ann"), "item-2")  # the server goes on giving out positions
    assert served.app.tenant._journal.revision == position + 1


def test_an_erasure_names_the_bundle_that_was_trained_on_an_export(serve: Serve, out: Path, tmp_path: Path):
    served = serve()
    for person in range(40):
        view(served, user(f"user-{person}"), *(f"item-{(person * 7 + n) % 20}" for n in range(5)))
    export_events(directory(served), out, ALL, now_us=served.clock())
    epoch, position = served.app.tenant._journal.epoch, served.app.tenant._journal.revision
    view(served, user("late"), "item-1", "item-2")
    data, bundle = str(tmp_path / "set"), str(tmp_path / "trained")
    assert training(["import", "parquet", "--events", str(out), "--out", data]) == 0
    small = ["towers.dim=8", "towers.history_length=8", "towers.hidden=16", "training.epochs=1", "--quiet"]
    assert training(["fit", "--data", data, "--out", bundle, "--set", *small]) == 0
    trained = read_bundle(Path(bundle))
    assert trained.manifest.watermark == Watermark(epoch=epoch, position=position)
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve(bundle=Path(bundle))
    assert list(erase(served, user("user-3")).trained_release_ids) == [trained.release_id]
    assert not erase(served, user("late")).trained_release_ids


def test_those_who_are_erased_or_withdraw_leave_an_earlier_export(serve: Serve, out: Path):
    served = serve()
    for name in ("stays", "erased", "withdraws", "returns"):
        view(served, user(name), "item-1", "item-2")
    About(served).link(visitor("phone"), user("stays"))
    view(served, visitor("phone"), "item-3")
    export_events(directory(served), out, ALL, now_us=served.clock())
    watermark = pq.read_schema(out).metadata
    served.clock.now_us += SECOND_US
    erase(served, user("erased"))
    erase(served, user("returns"))
    view(served, user("returns"), "item-9")
    About(served).decide(user("withdraws"), decision(False, TRAINING))
    About(served).decide(visitor("phone"), decision(False, TRAINING))
    done = screen(directory(served), out, ALL)
    assert (done.kept, done.removed) == (2, 7)
    assert rows(out) == [("stays", "item-1"), ("stays", "item-2")]
    assert pq.read_schema(out).metadata == watermark
    assert screen(directory(served), out, ALL) == (2, 0)


def test_who_is_erased_during_an_export_is_not_in_it(serve: Serve, out: Path, monkeypatch: pytest.MonkeyPatch):
    served = serve()
    for name in ("ann", "ben"):
        view(served, user(name), "item-1")
    from server.journal import export as module

    write: Callable[..., None] = module._Export.write
    calls: list[object] = []

    def write_and_erase(self: object, path: Path, now_us: int) -> None:
        write(self, path, now_us)
        # Kept, since gRPC cancels a call that nobody holds: then nobody would be erased.
        calls.append(served.client._users.EraseUser.future(user_pb2.EraseUserRequest(person=user("ann")), timeout=60))
        while served.app.tenant.people.directory.find(Person(USER, "ann")) is not None:
            time.sleep(0.001)

    monkeypatch.setattr(module._Export, "write", write_and_erase)
    export_events(directory(served), out, ALL, now_us=served.clock() - 1)
    assert rows(out) == [("ben", "item-1")]


@pytest.mark.parametrize("change", ["withdraws", "is taken off who consented"])
def test_who_may_no_longer_be_trained_on_when_an_export_ends_is_not_in_it(
    serve: Serve, out: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    served = serve(consent=OPT_IN_TRAINING)
    about = About(served)
    view(served, user("ann"), "item-1")
    view(served, visitor("phone"), "item-2")
    about.link(visitor("phone"), user("ann"))
    about.decide(user("ann"), decision(True, TRAINING))

    def mark(*arguments: object) -> None:
        _mark(*arguments)  # type: ignore[arg-type]
        if change == "withdraws":
            about.decide(user("ann"), decision(False, TRAINING))
        else:
            about.unlink(visitor("phone"), user("ann"))

    monkeypatch.setattr("server.journal.export._mark", mark)
    export_events(directory(served), out, NOBODY, now_us=served.clock())
    assert rows(out) == ([] if change == "withdraws" else [("ann", "item-1")])


def test_an_export_replaces_no_file_and_leaves_nothing_behind(serve: Serve, out: Path):
    served = serve()
    view(served, user("ann"), "item-1")
    out.write_text("mine")
    with pytest.raises(StartupError, match="choose another --out"):
        export_events(directory(served), out, ALL, now_us=served.clock())
    assert out.read_text() == "mine"
    with pytest.raises(StartupError, match="cannot export"):
        export_events(directory(served), out.parent / "missing" / "x.parquet", ALL, now_us=served.clock())
    with pytest.raises(StartupError, match="is not an export"):
        pq.write_table(pa.table({"a": [1]}), out)
        screen(directory(served), out, ALL)
    assert [path.name for path in out.parent.glob(".*")] == []


def test_an_export_of_another_journal_is_not_screened(serve: Serve, out: Path, tmp_path: Path):
    """Nobody of the file would be known here, and every row be taken out."""
    served = serve()
    view(served, user("ann"), "item-1")
    export_events(directory(served), out, ALL, now_us=served.clock())
    other = tmp_path / "other" / "default"
    open_journal(other).close()
    with pytest.raises(StartupError, match=r"was not exported from the journal in .*other/default; check --data"):
        screen(other, out, ALL)
    assert rows(out) == [("ann", "item-1")]


def test_a_directory_without_a_journal_is_refused(out: Path, tmp_path: Path):
    with pytest.raises(StartupError, match="holds no journal"):
        export_events(tmp_path / "data" / "default", out, ALL, now_us=NOW_US)


def test_the_verbs_export_screen_and_import_what_was_exported(serve: Serve, out: Path, tmp_path: Path):
    served = serve()
    view(served, user("ann"), "item-1", "item-2")
    data, config = str(served.app.tenant._config.data), tmp_path / "config.yaml"
    config.write_text("consent: {personalisation: opt_in, training: opt_out}\n")
    said = run("export", "--data", data, "--out", str(out), "--config", str(config))
    assert "2 events of 1 people" in said.stdout
    said = run("screen", str(out), "--data", data, "--config", str(config))
    assert "0 events removed, 2 kept" in said.stdout
    said = run("import", str(out), "--data", str(tmp_path / "new"))
    assert "0 events written" in said.stdout
    assert "2 × no consent to personalisation" in said.stdout
    said = run("import", str(out), "--data", str(tmp_path / "new"), "--consent", "personalisation")
    assert said.returncode == 2
    assert "--consent-source together" in said.stderr
    agreed = ("--consent", "personalisation,training", "--consent-source", "terms of 2024")
    said = run("import", str(out), "--data", str(tmp_path / "new"), *agreed)
    assert "2 events written" in said.stdout
    assert "2 decisions recorded" in said.stdout


def test_what_the_command_line_writes_is_for_its_own_account_alone(tmp_path: Path):
    data = tmp_path / "data"
    run("import", str(events_file(tmp_path / "e.parquet", "ann")), "--data", str(data), "--consent", "training",
        "--consent-source", "terms")  # fmt: skip
    assert run("backup", "--data", str(data)).returncode == 0
    written = list(data.rglob("*"))
    assert any(path.suffix == ".sqlite" and path.parent.name == "backups" for path in written)
    assert [path for path in (data, *written) if path.stat().st_mode & 0o077] == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server.journal", *arguments], capture_output=True, text=True, check=False)


def events_file(path: Path, *people: str) -> Path:
    columns: Sequence[Sequence[object]] = [
        list(people),
        [f"item-{n}" for n in range(len(people))],
        ["view"] * len(people),
        [datetime(2024, 1, 1, tzinfo=UTC)] * len(people),
    ]
    schema = pa.schema(list(SCHEMA)[:4])
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema), path)
    return path


def imported(data: Path, file: Path, *, presumes: bool = False, agreed: Agreed | None = None) -> tuple[Imported, Directory]:
    presumed = dict.fromkeys(Purpose, presumes)
    with closing(open_journal(data)) as journal, closing(open_tombstones(data)) as tombstones:
        done = import_events(journal, open_events(file), presumed, tombstones, now_us=NOW_US, agreed=agreed)
        known = Directory(presumed)
        known.load(journal.connection)
    return done, known


def test_an_import_obeys_consent(tmp_path: Path):
    file, data = events_file(tmp_path / "events.parquet", "ann", "ben", "ann"), tmp_path / "data" / "default"
    done, known = imported(data, file)
    assert done.written == 0
    assert sum(done.refused.values()) == 3
    assert len(known) == 0
    assert imported(data, file, presumes=True)[0].written == 3


def test_an_import_records_decisions_of_those_who_have_none(tmp_path: Path):
    data = tmp_path / "data" / "default"
    agreed = Agreed(("personalisation", "training"), "terms of 2024")
    first, _ = imported(data, events_file(tmp_path / "one.parquet", "ann"), agreed=agreed)
    assert (first.written, first.decisions) == (1, 2)
    with closing(open_journal(data)) as journal:
        key = journal.connection.execute("SELECT person_key FROM people").get
        journal.connection.execute("INSERT INTO consents VALUES (?, 90, 2, 0, 'call', ?, ?)", (key, NOW_US + 1, NOW_US))
    done, known = imported(data, events_file(tmp_path / "two.parquet", "ann", "ben"), agreed=agreed)
    assert done.decisions == 2
    assert not known.may_person(Person(USER, "ann"), Purpose.TRAINING)  # what she said later stands
    assert known.may_person(Person(USER, "ben"), Purpose.TRAINING)


def test_an_import_does_not_bring_the_erased_back(tmp_path: Path):
    data = tmp_path / "data" / "default"
    with closing(open_tombstones(data)) as tombstones:
        tombstones.add([(Person(USER, "ann"), None)], NOW_US - 1)
    agreed = Agreed(("personalisation",), "terms")
    done, known = imported(data, events_file(tmp_path / "events.parquet", "ann", "ben"), agreed=agreed)
    assert done.written == 1
    assert done.refused["the person was erased"] == 1
    assert known.find(Person(USER, "ann")) is None
