"""Whether an answer is made of one release: which items only one release can return."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from towerbridge import v1

from bench.load.mix import KINDS, InputError

_EXAMPLES = 5


class ReleaseCheck:
    """Counts answers by release, and those with an item that only another release than the answer's can return."""

    def __init__(self, owners: dict[str, str]) -> None:
        self._owners = owners
        self.answers: Counter[str] = Counter()
        self.checked = 0  # with an item of the lists: the others say nothing
        self.mixed = 0
        self.examples: list[str] = []

    def look(self, kind: str, reply: bytes) -> None:
        """Looks at a reply. Kinds without items of a release are left out."""
        for release_id, item_ids in _answers(kind, reply):
            self.answers[release_id] += 1
            owners = [self._owners.get(one) for one in item_ids]
            self.checked += any(owner is not None for owner in owners)
            strangers = [one for one, owner in zip(item_ids, owners, strict=True) if owner not in (None, release_id)]
            if strangers:
                self.mixed += 1
                if len(self.examples) < _EXAMPLES:
                    self.examples.append(f"an answer of {release_id} holds {strangers[0]} of {self._owners[strangers[0]]}")

    def result(self) -> dict[str, Any]:
        return {
            "answers": dict(self.answers),
            "checked": self.checked,
            "mixed": self.mixed,
            "examples": self.examples,
        }


def read_owners(path: Path) -> dict[str, str]:
    """Release by item id. The file: {release_id: file of the ids that only this release can return}; a file of ids is a JSON
    list, or has one a line. Raises InputError.
    """
    files = _json(path)
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{path} must map release ids to files of item ids")
    owners: dict[str, str] = {}
    for release_id, name in files.items():
        for item_id in _item_ids(path.parent / name):
            if owners.setdefault(item_id, release_id) != release_id:
                raise InputError(f"{item_id!r} is in the lists of two releases; list only what one alone can return")
    return owners


def _answers(kind: str, reply: bytes) -> list[tuple[str, list[str]]]:
    if kind in ("recommend", "pair_recommend"):
        answer = v1.RecommendResponse.FromString(reply)
        return [(answer.release_id, list(answer.item_ids))]
    if kind == "similar":
        similar = v1.FindSimilarItemsResponse.FromString(reply)
        return [(similar.release_id, list(similar.item_ids))]
    if kind == "batch_recommend":
        batch = v1.BatchRecommendResponse.FromString(reply)
        found = [one.response for one in batch.results if one.HasField("response")]
        return [(one.release_id, list(one.item_ids)) for one in found]
    if kind == "search":
        hits = v1.SearchVectorsResponse.FromString(reply)
        return [(hits.release_id, list(one.item_ids)) for one in hits.results]
    assert kind in KINDS or kind == "pair_events", kind
    return []


def _item_ids(path: Path) -> list[str]:
    if path.suffix == ".json":
        found = _json(path)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise InputError(f"{path} must be a list of item ids")
        return found
    try:
        return [one for one in path.read_text(encoding="utf-8").split("\n") if one]
    except (OSError, ValueError):
        raise InputError(f"{path} cannot be read") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path} is not JSON") from None
