"""The server that is fuzzed: a process of its own, on a small world, with API keys and two bundles to change between.

What it says is kept in a file. A probe is added to the world: a person and items that no request names.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import towerbridge
from towerbridge import v1

from bench.fuzz.methods import all_methods
from bench.fuzz.requests import ALL_ROLES, READ_ONLY
from bench.fuzz.values import Known
from bench.process import ServerProcess, running_server
from bench.world.__main__ import make_world
from bench.world.ids import BUNDLE, DATA, read_ids

_ITEMS, _PEOPLE, _DIM = 300, 40, 16
_PROBE = "probe-of-the-fuzz"
_PROBED_ITEMS = 12
# Nobody has to agree first, so that more is reached; few people are held in memory, so that the journal is read too; the user
# tower is not compiled, since what reaches it is padded and odd requests are refused before; and calls may wait rather than be
# refused unread.
_CONFIG = """\
listen: {{max_connection_age_s: 86400}}
overload: {{queue_ms: 100}}
security: {{keys_file: {keys}}}
consent: {{personalisation: opt_out}}
audience: {{enabled: true}}
users: {{max_people_in_memory: 30}}
releases: {{bundles: [{folder}]}}
engine: {{compile: false}}
"""


@dataclass(frozen=True)
class World:
    """A running server, and what is known of it. `keys`: API keys by the names that requests have for them."""

    server: ServerProcess
    known: Known
    keys: dict[str, str]
    log: Path

    def client(self) -> towerbridge.Client:
        return towerbridge.Client(self.server.target, api_key=self.keys[ALL_ROLES], timeout_s=30.0)

    def probe(self) -> dict[str, float]:
        """Items and scores of a Recommend that no fuzzed request can change, once the first release is live again."""
        with self.client() as client:
            client.load_release(self.known.bundles[0])
            client.promote_release(self.known.release_ids[0])
            found = client.recommend(
                user_id=_PROBE, limit=1_000, filter=towerbridge.where(must=[towerbridge.match("probe", "yes")])
            )
        return dict(zip(found.item_ids, found.scores, strict=True))


@contextmanager
def running_world(folder: Path, seed: int) -> Iterator[World]:
    """Raises ServerError if the server does not start, or does not leave with status 0 at the end."""
    folders = [folder / "one", folder / "two"]
    releases = [make_world(one, _ITEMS, _PEOPLE, _DIM, seed + place, history=10) for place, one in enumerate(folders)]
    bundles = [str(one / BUNDLE) for one in folders]
    file = folder / "keys.json"
    keys = {ALL_ROLES: _key(file, "read,ingest,admin,audience"), READ_ONLY: _key(file, "read")}
    config, log = folder / "config.yaml", folder / "server.log"
    config.write_text(_CONFIG.format(keys=file, folder=folder), encoding="utf-8")
    with running_server(Path(bundles[0]), folders[0] / DATA, "--config", str(config), log=log) as server:
        ids = read_ids(folders[0])
        with towerbridge.Client(server.target, api_key=keys[ALL_ROLES], timeout_s=30.0) as client:
            client.wait_until_ready()
            revision = _add_probe(client)
        known = Known(
            items=tuple(ids.item_ids),
            users=tuple(ids.user_ids),
            event_types=tuple(ids.event_types),
            categories=tuple(
                f"{name}-{number:0{width}d}" for name, width in (("shelf", 4), ("department", 2)) for number in range(9)
            ),
            attributes=("price", "year", "brand", "in_stock", "title", "categories"),
            dim=_DIM,
            text_dim=0,
            release_ids=tuple(releases),
            bundles=(*bundles, str(folder / "none")),
            services=tuple(sorted({method.split("/")[1] for method in all_methods()})),
            revision=revision,
            now_s=int(time.time()),
        )
        yield World(server, known, keys, log)


def _key(file: Path, roles: str) -> str:
    command = [sys.executable, "-m", "server.keys", "create", "--file", str(file), "--name", roles.replace(",", "-")]
    done = subprocess.run(
        [*command, "--roles", roles], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return done.stdout.strip()


def _add_probe(client: towerbridge.Client) -> str:
    """The person, the items and what the person did with them; the revision at which all of it is there."""
    items = [
        towerbridge.item(
            f"{_PROBE}-{number}",
            categories=[f"department-{number:02d}", f"shelf-{number:04d}"],
            attributes={"probe": "yes"},
        )
        for number in range(_PROBED_ITEMS)
    ]
    results = client.upsert_items(items).results
    assert all(result.searchable for result in results), results
    kinds = ("view", "cart", "purchase")
    events = [towerbridge.event(kind, item.item_id, user_id=_PROBE) for kind, item in zip(kinds, items[3:], strict=False)]
    results_ = client.record_events(events)
    assert all(result.status == v1.EventStatus.EVENT_STATUS_ACCEPTED for result in results_.results), results_
    return results_.revision
