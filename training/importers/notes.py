"""Notes: what an import keeps although it looks odd, counted and with examples."""

from collections import Counter
from typing import Any

EXAMPLES = 3


class Notes:
    """{note: how often, and up to three examples}."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, Any]]] = {}

    def add(self, note: str, count: int, examples: list[dict[str, Any]]) -> None:
        """Counts `count` more; examples beyond the third are left out."""
        if count:
            self.counts[note] += count
            kept = self.examples.setdefault(note, [])
            kept += examples[: EXAMPLES - len(kept)]

    def describe(self) -> dict[str, Any]:
        """As in dataset.json."""
        return {note: {"count": self.counts[note], "examples": self.examples[note]} for note in sorted(self.counts)}
