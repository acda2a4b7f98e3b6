"""The folder in which a release is prepared: what the server asks for, and the arrays that it gets, which it maps."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from index.probing import ProbeTable
from server.catalogue.popularity import Popularity
from server.releases.item_rows import ItemRows
from server.releases.live_index import Lists
from server.users.histories import History

SNAPSHOT = "index"
_HISTORIES = "histories.npz"


class Vectors(NamedTuple):
    """What was computed of the items that the journal held then; parallel, and mapped."""

    ordinals: NDArray[np.int64]  # (n,)
    has_vector: NDArray[np.bool_]  # (n,)
    vectors: NDArray[np.float32]  # (n, D) float32 unit rows, zeros where there is none


class Prepared:
    """Written by the server (`ask`) and by `preparing`; read by the server."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ask(self, ordinals: NDArray[np.int64], histories: Sequence[History], type_names: Sequence[str]) -> None:
        """Makes the folder anew. ordinals: of the items that have a slot. histories: what the index is measured with."""
        self.remove()
        self.path.mkdir(parents=True)
        np.save(self.path / "ordinals.npy", ordinals)
        columns: dict[str, Any] = {
            "ordinals": np.concatenate([np.zeros(0, np.int32), *(one.ordinals for one in histories)]),
            "types": np.concatenate([np.zeros(0, np.int16), *(one.types for one in histories)]),
            "times_us": np.concatenate([np.zeros(0, np.int64), *(one.times_us for one in histories)]),
            "bounds": np.cumsum([0, *(len(one.ordinals) for one in histories)]),
            "names": np.array(type_names, dtype=np.str_),
        }
        np.savez(self.path / _HISTORIES, **columns)

    def rows(self) -> ItemRows:
        """Where the bundle's items are."""
        return ItemRows(self._array("hashes"), self._array("rows"))

    def popularity(self) -> Popularity:
        """What the bundle says of all items, those that the journal held then by ordinal."""
        absent: dict[str, float] = json.loads((self.path / "absent.json").read_text())
        return Popularity(np.load(self.path / "popularity.npy"), absent)

    def vectors(self) -> Vectors:
        """The items' vectors."""
        return Vectors(self._array("placed"), self._array("has_vector"), self._array("vectors"))

    @property
    def has_lists(self) -> bool:
        """Whether lists were made."""
        return (self.path / "lists.json").exists()

    def lists(self) -> Lists:
        """What was trained and measured."""
        numbers = json.loads((self.path / "lists.json").read_text())
        table = ProbeTable(numbers["target"], np.array(self._array("needed")))
        queries = torch.from_numpy(np.array(self._array("queries")))
        return Lists(np.array(self._array("centroids")), table, numbers["gather_rows"], queries)

    def list_of(self) -> NDArray[np.int32]:
        """The list of each item, parallel to `vectors`; -1 where it has none."""
        return self._array("list_of")

    def forget_histories(self) -> None:
        """What was read of people is not kept: nobody would erase it there."""
        (self.path / _HISTORIES).unlink()

    def keep_snapshot(self) -> None:
        """Removes all but the index's snapshot; what is mapped can be read on, and takes room until it is not."""
        for file in self.path.iterdir():
            if file.name != SNAPSHOT:
                file.unlink()

    def remove(self) -> None:
        """Removes the folder, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.path / f"{name}.npy", mmap_mode="r")
        return array
