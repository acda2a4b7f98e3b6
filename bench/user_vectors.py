"""python -m bench.user_vectors: a bundle's item vectors and its users' vectors as files, for bench.index with real queries."""

import argparse
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.bundle import Bundle, BundleError, read_bundle


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.user_vectors", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="as `python -m training fit` wrote it")
    parser.add_argument("--events", type=Path, required=True, metavar="FILE", help="events.parquet of `training import`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets items.npy and users.npy")
    parser.add_argument("--users", type=int, default=2000, help="how many, drawn at random with a seed; 2000 by default")
    arguments = parser.parse_args()
    try:
        bundle = read_bundle(arguments.bundle)
        users = user_vectors(bundle, arguments.events, arguments.users)
    except (BundleError, OSError, KeyError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "items.npy", bundle.item_vectors)
    np.save(arguments.out / "users.npy", users)
    print(f"{len(bundle.item_vectors)} items, {len(users)} users: {arguments.out}")
    return 0


def user_vectors(bundle: Bundle, events: Path, count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Vectors of random users of whom anything counts, by the user tower and all their events: (<= count, D) float32."""
    manifest = bundle.manifest
    row = {item_id: place for place, item_id in enumerate(bundle.item_ids)}
    table = pq.read_table(events).to_pylist()  # sorted by user, then by time
    people = [list(own) for _, own in groupby(table, key=lambda event: event["user_id"])]
    vectors = []
    for number in np.random.default_rng(seed).permutation(len(people)):
        known = [one for one in people[number] if one["item_id"] in row and one["event_type"] in manifest.event_types]
        counted = known[-(manifest.history_length or 0) :]
        if counted:
            newest = counted[-1]["occurred_at"]
            ages = [(newest - one["occurred_at"]).total_seconds() if manifest.time_features else 0.0 for one in counted]
            [vector] = bundle.encode_users(
                bundle.item_vectors[[row[one["item_id"]] for one in counted]][None],
                np.array([[manifest.event_types[one["event_type"]] for one in counted]]),
                np.array([ages], dtype=np.float32),
                np.array([len(counted)]),
            )
            vectors.append(vector)
        if len(vectors) == count:
            break
    if not vectors:
        raise ValueError(f"{events}: no user has an event that counts for this bundle")
    return np.stack(vectors)


if __name__ == "__main__":
    sys.exit(main())
