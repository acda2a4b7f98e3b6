"""Bugs found while the tests beside this file were written; each test fails until its bug is mended."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import towerbridge

from index.bundle import Bundle, read_bundle
from server.catalogue.text_worker import TextWorker
from server.engine.engine import Engine
from server.errors import DeadlineExceeded, Unavailable
from server.journal.database import open_journal
from server.journal.events import USER, Person
from server.journal.items import ItemContent, UpsertItems, load_items
from server.journal.writer import JournalWriter, Transaction
from server.recommend.ask import Ask
from server.recommend.flow import Recommender
from server.releases.loading import load_views, seed_catalogue
from server.users.directory import Directory
from server.users.people import People
from tests.server.conftest import Serve
from tests.tiny import write_tiny_bundle, write_tiny_encoder

PATIENCE_S = 20.0
UNIT = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


class Held:
    """A write, or a function for the engine, that holds its thread until it is let go."""

    rows = 1
    alone = False

    def __init__(self) -> None:
        self.reached, self._let_go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self._let_go.wait(PATIENCE_S)

    def commit(self, transaction: object) -> None:
        self()

    def publish(self) -> None:
        pass

    def let_go(self) -> None:
        self._let_go.set()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


# Races between the writer's, the engine's and the handlers' threads


def test_a_vector_that_was_made_before_its_item_was_placed_is_not_taken_for_fresh(serve: Serve, bundle: Bundle):
    """batch.py: a batch in flight reads a history that names an item whose put_items is still queued behind the batch."""
    served = serve(users={"refresh": False})
    app = served.app
    served.client.record_events(
        [towerbridge.event("view", "item-1", user_id="u"), towerbridge.event("view", "new", user_id="u")]
    )
    key = app.tenant.people.directory.find(Person(USER, "u"))
    assert key is not None
    journal, first, second = Held(), Held(), Held()
    app.tenant._journal.submit(journal)
    assert journal.reached.wait(PATIENCE_S)
    item = towerbridge.item("new", vector=UNIT)
    upserting = in_thread(lambda: served.client.upsert_items([item]))
    wait_until(lambda: len(app.tenant._journal._queue) == 1)  # its vector is computed, its write waits
    app.tenant._engine.call(first)
    assert first.reached.wait(PATIENCE_S)
    app.tenant._engine.call(second)  # taken together with the query: the query's batch has begun
    recommender = Recommender(app.tenant.people, app.tenant.catalogue, app.tenant._engine, app.tenant._release)
    answer = recommender.start(Ask(Person(USER, "u"), 5), time.monotonic() + PATIENCE_S)
    first.let_go()
    assert second.reached.wait(PATIENCE_S)
    journal.let_go()
    wait_until(lambda: app.tenant.people.history(key).counted == 2)
    second.let_go()
    answer.answer.result(PATIENCE_S)
    upserting.join(PATIENCE_S)  # acknowledged: from now on every answer includes the event on the new item

    served.client.recommend(user_id="u", limit=5)
    row = {"item-1": bundle.item_vectors[bundle.item_ids.index("item-1")], "new": np.array(UNIT, dtype=np.float32)}
    [expected] = bundle.encode_users(
        np.stack([row["item-1"], row["new"]])[None],
        np.array([[bundle.manifest.event_types["view"]] * 2]),
        np.zeros((1, 2), dtype=np.float32),
        np.array([2]),
    )
    np.testing.assert_allclose(served.client.get_user(user_id="u").vector, expected, atol=1e-5)


def test_an_excluded_item_that_comes_in_while_the_request_waits_is_not_returned(serve: Serve):
    """flow.py: ids that are unknown when the request starts are forgotten, and never checked again."""
    served = serve()
    app = served.app
    journal, engine = Held(), Held()
    app.tenant._journal.submit(journal)
    assert journal.reached.wait(PATIENCE_S)
    upserting = in_thread(lambda: served.client.upsert_items([towerbridge.item("banned", vector=UNIT)]))
    wait_until(lambda: len(app.tenant._journal._queue) == 1)
    app.tenant._engine.call(engine)
    assert engine.reached.wait(PATIENCE_S)
    answers: list[Any] = []
    asking = in_thread(lambda: answers.append(served.client.recommend(vector=UNIT, limit=5, exclude_item_ids=["banned"])))
    wait_until(lambda: len(app.tenant._engine._queries) == 1)
    journal.let_go()
    wait_until(lambda: app.tenant.catalogue.get("banned") is not None)
    engine.let_go()
    asking.join(PATIENCE_S)
    upserting.join(PATIENCE_S)
    assert "banned" not in answers[0].item_ids


def test_a_poke_during_background_work_is_not_lost():
    """engine.py: `_poked = _poked and more` drops a poke that came between the last look for work and that line."""
    runs: list[int] = []
    again = threading.Event()

    def background() -> bool:
        runs.append(1)
        if len(runs) == 1:
            engine.poke()  # another thread's, after this look found nothing
        else:
            again.set()
        return False

    engine = Engine(lambda queries: None, background=background)
    engine.start()
    engine.poke()
    came = again.wait(2.0)
    engine.close()
    assert came


# Waiters that hang or are refused for ever


def test_the_writers_death_fails_what_was_left_of_a_group_that_was_split(tmp_path: Path):
    """writer.py: _die fails the queue, but not the writes that were taken from it and not yet tried."""
    file = open_journal(tmp_path)
    writer = JournalWriter(file)
    writer.start()

    class Bad(Held):
        def __init__(self, commit: Exception | None = None, publish: Exception | None = None) -> None:
            super().__init__()
            self._errors = (commit, publish)

        def commit(self, transaction: object) -> None:
            if self._errors[0]:
                raise self._errors[0]

        def publish(self) -> None:
            if self._errors[1]:
                raise self._errors[1]

    held = Held()
    writer.submit(held)
    assert held.reached.wait(PATIENCE_S)
    refused = writer.submit(Bad(commit=ValueError("refused")))  # splits the group
    deadly = writer.submit(Bad(publish=RuntimeError("views are broken")))
    left = writer.submit(Bad())
    held.let_go()
    with pytest.raises(ValueError, match="refused"):
        refused.result(PATIENCE_S)
    with pytest.raises(Unavailable):
        deadly.result(PATIENCE_S)
    writer._thread.join(PATIENCE_S)
    file.close()
    assert left.done(), "its caller waits for ever"


def test_one_slow_encode_does_not_refuse_short_deadlines_for_ever(serve: Serve):
    """batch.py: the estimate is lowered by encodes only, and a refused query encodes nothing."""
    served = serve(users={"refresh": False})
    computer = served.app.tenant._engine._answer.__self__  # type: ignore[attr-defined]
    computer._encode_seconds = 2.0  # as after one stall of ten seconds: a page-in, a suspended machine
    refused = 0
    for _ in range(40):
        try:
            served.client.recommend(history=["item-1"], limit=1, timeout_s=0.5)
            break
        except towerbridge.DeadlineExceeded:
            refused += 1
    assert refused < 40


def test_a_worker_that_hangs_holds_nobody_beyond_the_deadline(tmp_path: Path):
    """text_worker.py: the deadline is looked at between chunks, but recv waits for ever."""
    worker = TextWorker(write_tiny_encoder(tmp_path / "encoder"))
    worker.encode(["red hats"])
    pid = worker._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            worker.encode(["blue hats"], deadline=time.monotonic() + 0.2)
        except BaseException as error:
            ended.append(error)

    asking = in_thread(ask)
    asking.join(1.5)
    hung = asking.is_alive()
    os.kill(pid, signal.SIGCONT)
    asking.join(PATIENCE_S)
    after = worker.encode(["red hats"])  # whatever was left unanswered must not be taken for this answer
    again = worker.encode(["red hats"])
    worker.close()
    assert not hung
    assert isinstance(ended[0], DeadlineExceeded)
    np.testing.assert_array_equal(after, again)


def test_no_handler_thread_is_left_after_stopping(serve: Serve):
    """app.py: gRPC does not shut down the pool that it was given."""
    before = {thread.ident for thread in threading.enumerate()}
    served = serve()
    served.client.recommend(user_id="nobody", limit=1)
    serve.stop(served)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 2.0
    left = ["?"]
    while left and time.monotonic() < deadline:
        left = [one.name for one in threading.enumerate() if one.name.startswith("rpc") and one.ident not in before]
        time.sleep(0.01)
    assert left == []


# Views that differ from what a restart makes of the same journal


def test_the_last_of_equal_ids_in_a_batch_counts_also_if_it_has_no_vector(serve: Serve):
    """release.py: put_items clears the slots without vector first, then writes the first item's vector over it."""
    served = serve()
    first, last = towerbridge.item("twice", vector=UNIT), towerbridge.item("twice")
    results = served.client.upsert_items([first, last]).results
    assert [one.searchable for one in results] == [True, False]
    assert not served.client.get_items(["twice"]).items[0].searchable
    [found] = served.client.search_vectors([UNIT], limit=60).results
    assert "twice" not in found.item_ids


def test_an_item_that_returns_after_a_restart_has_its_place_among_the_popular(serve: Serve):
    """catalogue.py: ranking and total are made at start of live items only: a share can even exceed 1."""
    served = serve()
    served.client.remove_items([f"item-{number}" for number in range(49)])  # all but the least popular
    serve.stop(served)  # type: ignore[attr-defined]
    served = serve()
    served.client.upsert_items([towerbridge.item(f"item-{number}", categories=["red"]) for number in (3, 0)])
    grown = served.client.recommend(user_id="nobody", limit=5)
    serve.stop(served)  # type: ignore[attr-defined]
    rebuilt = serve().client.recommend(user_id="nobody", limit=5)
    assert rebuilt.item_ids[0] == "item-0"
    assert max(grown.scores) <= 1
    assert (list(grown.item_ids), list(grown.scores)) == (list(rebuilt.item_ids), list(rebuilt.scores))


def test_an_embedding_that_was_sent_survives_a_release_with_another_encoder(text_bundle_path: Path, tmp_path: Path):
    """items.py: keep_embeddings overwrites what a caller sent, and sets embedding_given to 0: a rollback cannot find it."""

    class Texts:
        """The other release's text encoder, as far as loading needs one."""

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.ones((len(texts), 16), dtype=np.float32)

    write_tiny_bundle(tmp_path / "other", n_items=50, dim=8, text=True, seed=3)
    first, other = read_bundle(text_bundle_path), read_bundle(tmp_path / "other")
    sent = np.arange(16, dtype="<f4").tobytes()
    content = ItemContent(
        "sent", "red hats", text_embedding=sent, encoder_sha256=first.manifest.text.encoder_sha256, embedding_given=True
    )
    file = open_journal(tmp_path / "tenant")
    seed_catalogue(file, first)
    UpsertItems([content], lambda outcomes: None).commit(Transaction(file))
    load_views(file, other, People(["view"], Directory(), limit=3), Texts(), device="cpu")  # type: ignore[arg-type]
    [kept] = [item.content for item in load_items(file.connection) if item.content.item_id == "sent"]
    file.close()
    assert kept.text_embedding == sent
    assert kept.embedding_given
