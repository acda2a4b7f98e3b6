"""ids.json: the ids of a world, so that a load can be made without reading the bundle. Imports nothing heavy."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "ids.json"
BUNDLE = "bundle"
DATA = "data"


class IdsError(Exception):
    """A file that is no list of ids. One line that says what to do."""


@dataclass(frozen=True)
class Ids:
    """Who and what there is: `dim` and `seed` are the world's, where it was made by bench.world."""

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    event_types: Sequence[str]
    dim: int | None = None
    seed: int | None = None


def write_ids(folder: Path, ids: Ids) -> None:
    """Writes the folder's ids.json."""
    (folder / FILE_NAME).write_text(json.dumps(asdict(ids)), encoding="utf-8")


def read_ids(path: Path) -> Ids:
    """The ids in a world's folder, or in a JSON file with user_ids, item_ids and event_types. Raises IdsError."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise IdsError(f"{file} cannot be read ({reason}); give a folder made by python -m bench.world") from None
    if not isinstance(found, dict):
        raise IdsError(f"{file} must be an object with user_ids, item_ids and event_types")
    lists = {name: _strings(found.get(name), file, name) for name in ("user_ids", "item_ids", "event_types")}
    dim, seed = found.get("dim"), found.get("seed")
    return Ids(**lists, dim=dim if isinstance(dim, int) else None, seed=seed if isinstance(seed, int) else None)


def _strings(values: Any, file: Path, name: str) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise IdsError(f"{name} in {file} must be a list of ids, at least one")
    return values
