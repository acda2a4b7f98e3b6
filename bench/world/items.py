"""Items in clusters, as an item tower would place them: what they are, and what they learnt beyond that."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.index.generator import CLUSTERS, DECAY, NOISE, SIZE_EXPONENT

DEPARTMENTS = 40
_BRANDS = 500
_FIRST_YEAR = 2000


class MadeItems(NamedTuple):
    """Everything about the items but their vectors, which the item tower makes of centres and noise."""

    item_ids: list[str]
    shelves: NDArray[np.int64]  # (N,) int64, the cluster of each item
    centres: NDArray[np.float32]  # (S, D) float32 unit rows, one a shelf
    noise: NDArray[np.float32]  # (N, D) float32, what an item differs by from its shelf's centre
    popularity: NDArray[np.float64]  # (N,) float64, events, whole numbers


def make_items(count: int, dim: int, random: np.random.Generator) -> MadeItems:
    """Clusters by a power law, noise about as long as a centre, a decaying spectrum: as bench.index.generator, see there."""
    shelves = min(CLUSTERS, max(1, count // 20))
    spectrum = np.arange(1, dim + 1) ** -DECAY
    spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)  # (D,) of length 1
    centres = random.standard_normal((shelves, dim), dtype=np.float32) * spectrum
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    shares = np.arange(1, shelves + 1) ** -SIZE_EXPONENT
    noise = random.standard_normal((count, dim), dtype=np.float32)
    noise *= NOISE * spectrum
    return MadeItems(
        item_ids=[f"item-{number:08d}" for number in range(count)],
        shelves=random.choice(shelves, size=count, p=shares / shares.sum()),
        centres=centres,
        noise=noise,
        popularity=np.ceil(1e5 / (1 + random.permutation(count)) ** 0.8),
    )


def items_table(made: MadeItems, random: np.random.Generator) -> pa.Table:
    """The bundle's items: two categories each, and attributes to filter by."""
    count = len(made.item_ids)
    names = pa.array([f"shelf-{number:04d}" for number in range(len(made.centres))])
    shelves = names.take(pa.array(made.shelves))
    departments = pa.array(department_names()).take(pa.array(made.shelves % DEPARTMENTS))
    pairs = pa.concat_arrays([departments, shelves]).take(pa.array(np.arange(2 * count).reshape(2, count).T.ravel()))
    brands = pa.array([f"brand-{number:03d}" for number in range(_BRANDS)])
    titles = [f"{shelf} no. {number}" for number, shelf in enumerate(shelves.to_pylist())]
    return pa.table(
        {
            "item_id": made.item_ids,
            "text": titles,
            "categories": pa.ListArray.from_arrays(pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32)), pairs),
            "popularity": made.popularity,
            "title": titles,
            "price": np.round(np.exp(random.normal(3.5, 1.0, count)), 2),
            "year": _FIRST_YEAR + random.integers(0, 26, count),
            "brand": brands.take(pa.array(random.integers(0, _BRANDS, count))),
            "in_stock": random.random(count) < 0.95,
        }
    )


def department_names() -> list[str]:
    return [f"department-{number:02d}" for number in range(DEPARTMENTS)]


def category_codes(made: MadeItems) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Vocabulary, and (N, 2) int64 codes of each item's department and shelf."""
    names = [*department_names(), *(f"shelf-{number:04d}" for number in range(len(made.centres)))]
    codes = np.stack([1 + made.shelves % DEPARTMENTS, 1 + DEPARTMENTS + made.shelves], axis=1)
    return {name: code for code, name in enumerate(names, start=1)}, codes
