"""Links between ids, through a real server: one person, one history, one vector; and all of it undone by unlinking."""

import threading
from collections.abc import Callable, Iterator
from itertools import chain, count

import grpc
import numpy as np
import pytest
import towerbridge
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from towerbridge.v1 import common_pb2, user_pb2

from index.bundle import Bundle
from tests.server.about_people import About, refused, user, visitor
from tests.server.conftest import NOW_US, Serve, Served, offline_vector

N = 50
ALL = [f"item-{n}" for n in range(N)]
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
Events = list[tuple[str, str, int]]  # item, type, microseconds, in the order of arrival

_numbers = count()


def new(kind: Callable[[str], common_pb2.Person] = visitor) -> common_pb2.Person:
    return kind(f"identity-{next(_numbers)}")


def who(person: common_pb2.Person) -> dict[str, str]:
    return {"user_id": person.user_id} if person.user_id else {"visitor_id": person.visitor_id}


def record(served: Served, person: common_pb2.Person, events: Events) -> None:
    rows = []
    for item, type_, us in events:
        row = towerbridge.event(type_, item, event_id=f"identity-event-{next(_numbers)}", **who(person))  # type: ignore[arg-type]
        row.occurred_at.FromMicroseconds(us)
        rows.append(row)
    assert not towerbridge.rejected(served.client.record_events(rows))


def scores(served: Served, person: common_pb2.Person) -> NDArray[np.float32]:
    """What the person's vector makes of every item: (N,) float32."""
    return np.array(served.client.score_items(ALL, **who(person)).scores, dtype=np.float32)  # type: ignore[arg-type]


def expected(bundle: Bundle, events: Events) -> NDArray[np.float32]:
    """What the offline encode of the history makes of every item: (N,) float32."""
    made: NDArray[np.float32] = bundle.item_vectors @ offline_vector(bundle, events)
    return made


def views(*items: int, start: int = 0, step: int = 60) -> Events:
    """Views a minute apart, from so many seconds ago."""
    return [(f"item-{item}", "view", NOW_US - (10_000 - start - step * place) * 1_000_000) for place, item in enumerate(items)]


def test_linked_ids_have_one_history_in_time_order_and_one_vector(shared: Served, bundle: Bundle):
    about, ann, cookie = About(shared), new(user), new()
    hers, its = views(1, 2, 3), views(11, 12, 13, start=30)
    record(shared, ann, hers)
    record(shared, cookie, its)
    link = about.link(cookie, ann)
    assert link.created
    assert list(link.linked) == [ann, cookie]
    merged = ["item-13", "item-3", "item-12", "item-2", "item-11", "item-1"]  # newest first
    for person in (ann, cookie):
        shown = about.get(person)
        assert list(shown.item_ids) == merged
        assert shown.event_count == 6
        assert list(shown.linked) == [ann, cookie]
        np.testing.assert_allclose(scores(shared, person), expected(bundle, hers + its), atol=1e-5)
        assert about.get(person).events_behind == 0
    asked = {"limit": N, "min_revision": link.revision, "exclude_seen": True}
    answers = [shared.client.recommend(**asked, **who(person)) for person in (ann, cookie)]  # type: ignore[arg-type]
    assert list(answers[0].item_ids) == list(answers[1].item_ids)
    assert set(answers[0].item_ids) == set(ALL) - set(merged)
    more = views(21, start=5_000)
    record(shared, cookie, more)  # counts for both
    np.testing.assert_allclose(scores(shared, ann), expected(bundle, hers + its + more), atol=1e-5)


def test_unlinking_gives_each_id_back_what_was_its_own(shared: Served, bundle: Bundle):
    about, ann, cookie = About(shared), new(user), new()
    record(shared, ann, hers := views(1, 2))
    record(shared, cookie, its := views(11, 12, start=30))
    for _ in range(5):
        assert about.link(cookie, ann).created
        np.testing.assert_allclose(scores(shared, ann), expected(bundle, hers + its), atol=1e-5)
        record(shared, cookie, late := views(13, start=600))
        its += late
        undone = about.unlink(cookie, ann)
        assert undone.removed
        shared.client.recommend(limit=1, min_revision=undone.revision, **who(ann))  # type: ignore[arg-type]
        np.testing.assert_allclose(scores(shared, ann), expected(bundle, hers), atol=1e-5)
        np.testing.assert_allclose(scores(shared, cookie), expected(bundle, its), atol=1e-5)
        assert [list(about.get(person).linked) for person in (ann, cookie)] == [[ann], [cookie]]
        assert [about.get(person).event_count for person in (ann, cookie)] == [len(hers), len(its)]


def test_links_are_safe_to_repeat(shared: Served):
    about, ann, cookie = About(shared), new(user), new()
    assert [about.link(cookie, ann).created for _ in range(3)] == [True, False, False]
    assert list(about.link(cookie, ann).linked) == [ann, cookie]
    assert [about.unlink(cookie, ann).removed for _ in range(3)] == [True, False, False]
    assert not about.unlink(ann, cookie).removed  # never was
    assert not about.unlink(new(), new(user)).removed


def test_chains_are_one_person_and_come_apart_where_they_are_cut(shared: Served, bundle: Bundle):
    about, ann, phone, cookie, tablet = About(shared), new(user), new(), new(), new()
    line = [ann, phone, cookie, tablet]
    events = [views(1, start=0), views(2, start=10), views(3, start=20), views(4, start=30)]
    for person, own in zip(line, events, strict=True):
        record(shared, person, own)
    about.link(tablet, cookie)
    about.link(phone, ann)
    assert list(about.link(cookie, phone).linked) == line
    for person in line:
        np.testing.assert_allclose(scores(shared, person), expected(bundle, list(chain.from_iterable(events))), atol=1e-5)
        assert list(about.get(person).linked) == line
    about.unlink(cookie, phone)
    for part in (slice(0, 2), slice(2, 4)):
        for person in line[part]:
            np.testing.assert_allclose(
                scores(shared, person), expected(bundle, list(chain.from_iterable(events[part]))), atol=1e-5
            )
            assert list(about.get(person).linked) == line[part]


def test_what_cannot_be_a_link_is_refused_and_changes_nothing(shared: Served):
    about, ann, ben, phone, cookie = About(shared), new(user), new(user), new(), new()
    about.link(cookie, phone)
    about.link(phone, ann)
    with refused(INVALID, "^target: must be a user"):
        about.link(ben, cookie)
    with refused(INVALID, "^target: is the same as source"):
        about.link(ann, ann)
    with refused(INVALID, "^source: set user_id or visitor_id"):
        about.link(common_pb2.Person(), ann)
    with refused(INVALID, r"^target\.user_id: must not be empty"):
        about.unlink(cookie, common_pb2.Person(user_id=""))
    with refused(PRECONDITION, f"^source: visitor '{phone.visitor_id}' is linked to user '{ann.user_id}' already; unlink"):
        about.link(phone, ben)
    with refused(PRECONDITION, f"^source: visitor '{cookie.visitor_id}' is linked to visitor '{phone.visitor_id}' already"):
        about.link(cookie, ann)
    about.unlink(phone, ann)
    with refused(PRECONDITION, f"^target: visitor '{cookie.visitor_id}' belongs to visitor '{phone.visitor_id}'; unlink"):
        about.link(phone, cookie)
    assert list(about.link(phone, ben).linked) == [ben, phone, cookie]
    about.link(ben, ann)  # two accounts of one person
    assert list(about.get(cookie).linked) == [ann, ben, phone, cookie]
    with refused(PRECONDITION, f"^target: user '{ben.user_id}' belongs to user '{ann.user_id}'; unlink"):
        about.link(ann, ben)


def test_the_same_text_as_user_and_as_visitor_is_two_people_until_they_are_linked(shared: Served):
    about, name = About(shared), f"identity-{next(_numbers)}"
    record(shared, user(name), views(1))
    record(shared, visitor(name), views(2, start=30))
    assert list(about.get(user(name)).item_ids) == ["item-1"]
    about.link(visitor(name), user(name))
    assert list(about.get(user(name)).item_ids) == ["item-2", "item-1"]


def test_ids_of_which_nothing_is_known_can_be_linked_before_their_events_come(shared: Served, bundle: Bundle):
    about, ann, cookie = About(shared), new(user), new()
    about.link(cookie, ann)
    assert shared.client.recommend(limit=1, **who(ann)).degraded  # type: ignore[arg-type]
    record(shared, cookie, events := views(4, 5))
    np.testing.assert_allclose(scores(shared, ann), expected(bundle, events), atol=1e-5)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 3), st.integers(0, N - 1), st.integers(0, 20)),
        st.tuples(st.sampled_from(["link", "unlink"]), st.integers(0, 3), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=25,
)


class Family:
    """Four ids, and what they should be: a plain model."""

    def __init__(self, about: About, served: Served) -> None:
        self.about = about
        self.served = served
        self.people = [new(user), new(user), new(), new()]
        self.parents: dict[int, int] = {}
        self.events: list[tuple[int, tuple[str, str, int]]] = []

    def root(self, one: int) -> int:
        while one in self.parents:
            one = self.parents[one]
        return one

    def take(self, step: tuple) -> None:  # type: ignore[type-arg]
        if step[0] == "record":
            event = (f"item-{step[2]}", "view", NOW_US - step[3] * 60_000_000)
            record(self.served, self.people[step[1]], [event])
            self.events.append((step[1], event))
            return
        _, source, target = step
        if step[0] == "unlink":
            assert self.about.unlink(self.people[source], self.people[target]).removed == (self.parents.get(source) == target)
            if self.parents.get(source) == target:
                del self.parents[source]
        elif self.can_link(source, target):
            assert self.about.link(self.people[source], self.people[target]).created == (source not in self.parents)
            self.parents[source] = target
        else:
            with pytest.raises(grpc.RpcError):
                self.about.link(self.people[source], self.people[target])

    def can_link(self, source: int, target: int) -> bool:
        possible = source != target and (source > 1 or target < 2)
        return possible and self.parents.get(source, target) == target and self.root(target) != source

    def check(self, bundle: Bundle) -> None:
        for one, person in enumerate(self.people):
            own = [event for whose, event in self.events if self.root(whose) == self.root(one)]
            if own:
                np.testing.assert_allclose(scores(self.served, person), expected(bundle, own), atol=1e-5)
                in_time = sorted(own, key=lambda event: event[2])[::-1]
                times = [moment.ToMicroseconds() for moment in self.about.get(person).occurred_at]
                assert times == [us for _, _, us in in_time]


@settings(max_examples=30, deadline=None)
@given(steps=STEPS)
def test_after_any_changes_each_id_has_the_vector_of_everything_that_is_its_person(
    shared: Served,
    bundle: Bundle,
    steps: list[tuple],  # type: ignore[type-arg]
):
    family = Family(About(shared), shared)
    for step in steps:
        family.take(step)
        family.check(bundle)


def test_links_outlive_a_restart(serve: Serve, bundle: Bundle):
    served = serve()
    family = Family(About(served), served)
    steps = [("record", one, 7 * one, one) for one in range(4)]
    for step in [*steps, ("link", 3, 2), ("link", 2, 0), ("link", 1, 0), ("unlink", 1, 0), ("record", 3, 40, 2)]:
        family.take(step)
    family.check(bundle)
    for step in (("record", 2, 44, 0), ("unlink", 2, 0)):
        serve.stop(served)  # type: ignore[attr-defined]
        served = serve()
        family.about, family.served = About(served), served
        family.check(bundle)
        assert list(family.about.get(family.people[3]).linked) == [family.people[0], family.people[2], family.people[3]]
        family.take(step)
        family.check(bundle)


@pytest.fixture
def busy(shared: Served, bundle: Bundle) -> Iterator[tuple[common_pb2.Person, common_pb2.Person, list[NDArray[np.float32]]]]:
    """A user, a visitor, and what the scores of the user are: apart, and linked."""
    ann, cookie = new(user), new()
    record(shared, ann, hers := views(1, 2))
    record(shared, cookie, its := views(13, 14, start=30))
    yield ann, cookie, [expected(bundle, hers), expected(bundle, hers + its)]


def test_readers_see_a_link_whole_or_not_at_all_and_always_once_it_is_acknowledged(
    shared: Served, busy: tuple[common_pb2.Person, common_pb2.Person, list[NDArray[np.float32]]]
):
    ann, cookie, wanted = busy
    about = About(shared)
    acknowledged: list[tuple[int, int]] = [(0, 0)]  # number of the change, 1 if linked; -1 while a change is under way
    wrong: list[str] = []
    done = threading.Event()

    def change() -> None:
        for number in range(1, 61):
            acknowledged.append((number, -1))
            linked = number % 2
            (about.link if linked else about.unlink)(cookie, ann)
            acknowledged.append((number, linked))
        done.set()

    def read(ask: Callable[[], int]) -> None:
        while not done.is_set():
            before = acknowledged[-1]
            seen = ask()
            after = acknowledged[-1]
            if seen < 0 or (before == after and before[1] >= 0 and seen != before[1]):
                wrong.append(f"{before} to {after}: {seen}")

    def by_scores() -> int:
        found = scores(shared, ann)
        return next((linked for linked in (0, 1) if np.allclose(found, wanted[linked], atol=1e-5)), -1)

    def by_history() -> int:
        lists = (["item-2", "item-1"], ["item-14", "item-2", "item-13", "item-1"])
        shown: user_pb2.GetUserResponse = about.get(ann)
        return lists.index(list(shown.item_ids)) if list(shown.item_ids) in lists else -1

    def by_answer() -> int:
        answer = shared.client.recommend(limit=N, exclude_seen=True, **who(ann))  # type: ignore[arg-type]
        return {N - 2: 0, N - 4: 1}.get(len(answer.item_ids), -1)

    threads = [threading.Thread(target=read, args=(ask,)) for ask in (by_scores, by_history, by_answer)]
    for thread in threads:
        thread.start()
    change()
    for thread in threads:
        thread.join()
    assert not wrong
