"""One bundle per format version lies beside this file and must keep loading, whatever reads it later.

golden_v1 was made once, with torch 2.13 and pyarrow 26, by
`write_tiny_bundle(Path("tests/index/bundle/golden_v1"), n_items=8, dim=4, history_length=3)`, and is never made again:
if this test fails, the reader has changed, not the bundle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.bundle import FORMAT_VERSION, check_bundle, read_bundle

FOLDER = Path(__file__).parent
RELEASES = {1: "2015d2e5cf094015"}


def test_every_format_version_has_its_golden_bundle() -> None:
    assert sorted(RELEASES) == list(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("version", sorted(RELEASES))
def test_a_bundle_of_every_version_still_loads_and_encodes(version: int) -> None:
    path = FOLDER / f"golden_v{version}"
    bundle = read_bundle(path)
    assert bundle.release_id == check_bundle(path).release_id == RELEASES[version]
    assert bundle.item_ids == [f"item-{i}" for i in range(8)]
    user = bundle.encode_users(
        bundle.item_vectors[None, [2]],
        np.array([[3]], dtype=np.int64),
        np.zeros((1, 1), dtype=np.float32),
        np.array([1], dtype=np.int64),
    )
    assert int(np.argmax(bundle.item_vectors @ user[0])) == 2


def test_a_golden_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in (FOLDER / "golden_v1").iterdir()) < 100_000
