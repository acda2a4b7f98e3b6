"""The free space inside a journal's pages, made zero.

secure_delete overwrites rows where they are deleted, but not the copies that lie in the free space of other pages since SQLite
moved rows between pages, as it does when a page is full. In a journal of 500 people and 10,000 events it left something of 2 in
100 erased people. So after an erasure the free space of every page is cleared. It means nothing to SQLite, whose format keeps
the rows of a page behind the offset that the page's header states: https://www.sqlite.org/fileformat2.html#b_tree_pages.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TREES = (2, 5, 10, 13)  # the first byte of pages that hold rows or index entries
_INNER = (2, 5)  # of these, those with a header of 12 bytes instead of 8
_MOST_PAGES = 1 << 25  # beyond it the first byte of other pages, a page number's, could be one of these
_BLOCK_PAGES = 1024
_PAUSE_SECONDS = 0.001  # between blocks, for the threads that serve
_FILE_HEADER_BYTES = 100
_FRAME_HEADER_BYTES = 24
_WAL_HEADER_BYTES = 32


class Pages:
    """A journal's file, read and cleared page by page.

    Clear only while nothing writes to the file itself, that is, while no log can be emptied into it. What is still in the
    write-ahead log comes later, with its own free space: see `logged_pages`. Close it after the last use only: closing gives up
    SQLite's own locks on the file, a rule of POSIX.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR)
        header = os.pread(self._descriptor, _FILE_HEADER_BYTES, 0)
        size = int.from_bytes(header[16:18], "big")
        self._page_bytes = 65_536 if size == 1 else size
        self._usable_bytes = self._page_bytes - header[20]

    def close(self) -> None:
        os.close(self._descriptor)

    def with_slack(self) -> Iterator[list[int]]:
        """The numbers, from 1, of pages whose free space is not zero, some at a time. A hint: it reads without a lock."""
        for first in range(1, self._count() + 1, _BLOCK_PAGES):
            data = os.pread(self._descriptor, _BLOCK_PAGES * self._page_bytes, (first - 1) * self._page_bytes)
            pages = np.frombuffer(data, np.uint8, len(data) // self._page_bytes * self._page_bytes)
            pages = pages.reshape(-1, self._page_bytes)  # (P, page) uint8
            yield [first + place for place in range(len(pages)) if self._slack(pages[place], first + place).any()]
            time.sleep(_PAUSE_SECONDS)

    def clear(self, numbers: Iterable[int]) -> int:
        """Makes the free space of pages zero; returns how many pages had something there. `sync` brings it to disk."""
        cleared = 0
        for number in sorted(numbers):
            at = (number - 1) * self._page_bytes
            page = np.frombuffer(bytearray(os.pread(self._descriptor, self._page_bytes, at)), np.uint8)
            if len(page) < self._page_bytes:  # the file has become shorter
                continue
            slack = self._slack(page, number)
            if slack.any():
                start = slack.ctypes.data - page.ctypes.data
                os.pwrite(self._descriptor, bytes(len(slack)), at + start)
                cleared += 1
        return cleared

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def logged_pages(self) -> set[int]:
        """The numbers of all pages that lie in the write-ahead log, and of some others if a power loss tore it."""
        try:
            log = self._path.with_name(self._path.name + "-wal").read_bytes()
        except FileNotFoundError:
            return set()
        step = _FRAME_HEADER_BYTES + self._page_bytes
        numbers = {int.from_bytes(log[at : at + 4], "big") for at in range(_WAL_HEADER_BYTES, len(log) - step + 1, step)}
        return numbers - {0}  # no page, but what a torn part of the log may say

    def _count(self) -> int:
        count = os.fstat(self._descriptor).st_size // self._page_bytes
        if count >= _MOST_PAGES:
            raise OSError(f"{self._path} has {count} pages, more than free space can be cleared in")
        return count

    def _slack(self, page: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        """The page's free space, which begins behind the list of its rows and ends where they do; empty for other pages."""
        at = _FILE_HEADER_BYTES if number == 1 else 0
        kind = int(page[at])
        if kind not in _TREES:
            return page[:0]
        rows = int(page[at + 3]) << 8 | int(page[at + 4])
        end = (int(page[at + 5]) << 8 | int(page[at + 6])) or 65_536
        start = at + (12 if kind in _INNER else 8) + 2 * rows
        return page[start:end] if start < end <= self._usable_bytes else page[:0]


def sweep(path: Path) -> int:
    """Clears the free space of a whole file that nobody has open, and forces it to disk; returns how many pages had some."""
    pages = Pages(path)
    try:
        cleared = sum(pages.clear(numbers) for numbers in pages.with_slack())
        pages.sync()
    finally:
        pages.close()
    return cleared
