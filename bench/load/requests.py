"""What is sent: requests made ahead where they can be, and as bytes, so that sending costs little."""

import random
from collections.abc import Callable, Mapping, Sequence

from towerbridge import v1

from bench.load.mix import KINDS
from bench.world.ids import Ids

_POOL = 2_048  # different requests of a kind but recommend, which asks for everyone
_RECOMMEND_POOL = 50_000
_SCORED, _BATCHED, _GOT = 50, 10, 20
PROBED_SHARE = 50  # one in so many people has no events but those that freshness is measured by


class Requests:
    """Requests of every kind for the people and items of a world; the same seed makes the same ones.

    `run` makes event_ids unique: no other run and no other process may have the same one.
    """

    def __init__(self, ids: Ids, kinds: Sequence[str], *, limit: int, dim: int, seed: int, run: str) -> None:
        self._random = random.Random(seed)
        self._run = run
        self._count = 0
        self._limit = limit
        self._dim = dim
        self._types = list(ids.event_types)
        self._items = list(ids.item_ids)
        users = list(ids.user_ids)
        probed = len(users) // PROBED_SHARE
        self._users = users[: len(users) - probed]
        self._probed = users[len(users) - probed :] or users
        makers: Mapping[str, Callable[[], bytes]] = {
            "similar": self._similar,
            "score": self._score,
            "batch_recommend": self._batch,
            "search": self._search,
            "get_items": self._get_items,
        }
        self._pools: dict[int, list[bytes]] = {
            KINDS.index(kind): [makers[kind]() for _ in range(_POOL)] for kind in kinds if kind in makers
        }
        if "recommend" in kinds:
            self._random.shuffle(users)
            self._pools[KINDS.index("recommend")] = [
                self._recommend(user).SerializeToString() for user in users[:_RECOMMEND_POOL]
            ]

    def ready(self, kind: int, pick: int) -> bytes:
        """A request of a kind other than events: `pick` is any whole number from 0."""
        pool = self._pools[kind]
        return pool[pick % len(pool)]

    def event(self, pick: int) -> tuple[str, bytes]:
        """Whose, and RecordEvents with one new event of that person."""
        pick, user = divmod(pick, len(self._users))
        return self._users[user], self._event(self._users[user], pick)

    def probe(self, pick: int) -> tuple[str, bytes]:
        """As `event`, of a person who has no others."""
        pick, user = divmod(pick, len(self._probed))
        return self._probed[user], self._event(self._probed[user], pick)

    def replayed(self, user_id: str, item_id: str, name: str) -> bytes:
        """RecordEvents with a given event, as one that happens now."""
        self._count += 1
        event = v1.Event(event_id=f"{self._run}-{self._count:x}", user_id=user_id, item_id=item_id, type=name)
        return v1.RecordEventsRequest(events=[event]).SerializeToString()

    def recommend_after(self, user_id: str, revision: str) -> bytes:
        """Recommend for one person, which must include a revision."""
        request = self._recommend(user_id)
        request.min_revision = revision
        return request.SerializeToString()

    def _event(self, user_id: str, pick: int) -> bytes:
        pick, item = divmod(pick, len(self._items))
        return self.replayed(user_id, self._items[item], self._types[pick % len(self._types)])

    def _recommend(self, user_id: str) -> v1.RecommendRequest:
        return v1.RecommendRequest(subject=v1.Subject(user_id=user_id), limit=self._limit)

    def _similar(self) -> bytes:
        return v1.FindSimilarItemsRequest(item_id=self._random.choice(self._items), limit=self._limit).SerializeToString()

    def _score(self) -> bytes:
        chosen = self._random.sample(self._items, min(_SCORED, len(self._items)))
        subject = v1.Subject(user_id=self._random.choice(self._users))
        return v1.ScoreItemsRequest(subject=subject, item_ids=chosen).SerializeToString()

    def _batch(self) -> bytes:
        chosen = self._random.sample(self._users, min(_BATCHED, len(self._users)))
        return v1.BatchRecommendRequest(requests=[self._recommend(user) for user in chosen]).SerializeToString()

    def _search(self) -> bytes:
        values = [self._random.gauss(0.0, 1.0) for _ in range(self._dim)]
        return v1.SearchVectorsRequest(vectors=[v1.Vector(values=values)], limit=self._limit).SerializeToString()

    def _get_items(self) -> bytes:
        chosen = self._random.sample(self._items, min(_GOT, len(self._items)))
        return v1.GetItemsRequest(item_ids=chosen).SerializeToString()
