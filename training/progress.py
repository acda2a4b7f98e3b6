"""What a long run shows: progress bars on a terminal, plain lines elsewhere, nothing with --quiet."""

import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """`quiet` shows nothing at all; bars show only where stderr is a terminal."""

    quiet: bool = False

    def bar(self, title: str, total: int | None) -> "tqdm[Any]":
        """A bar to `update`, or a mere count where the total is not known; it leaves no trace when done."""
        return tqdm(total=total, desc=title, leave=False, disable=self.quiet or not sys.stderr.isatty())

    def say(self, line: str) -> None:
        """One line on stderr, above any bar."""
        if not self.quiet:
            tqdm.write(line, file=sys.stderr)
