"""Who calls: API keys, looked up at every call and read again when their file changes."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from server.config import TENANT
from server.errors import StartupError
from server.security.key_file import Stamp, StoredKey, read_keys, stamp_of
from server.security.roles import GRANTED, Role

CHECKED_EVERY_S = 1.0
"""So long a key may still work after it was revoked."""
_log = logging.getLogger(__name__)
_HEADER = "authorization"
_SCHEME = "bearer "


@dataclass(frozen=True)
class Caller:
    """Who calls, as the key says."""

    tenant: str
    name: str
    """Whose key it is."""
    roles: frozenset[Role]
    key_id: str


ANYBODY = Caller(TENANT, "anybody", frozenset(GRANTED), "")
"""Every caller of a server without keys. With `tenants` and no `bundle` the one tenant has another name."""

_NOBODY: tuple[bytes, Caller | None] = (bytes(32), None)  # no key is known whose sha256 is zero


class KeyRing:
    """The active keys of a file. Any thread may ask.

    A changed file counts within a second. One that cannot be used is logged, and the keys before it stay.
    """

    def __init__(self, path: Path) -> None:
        """Raises StartupError for a file that is missing, damaged, or open to others than its owner."""
        self._path = path
        self._stamp: Stamp | None
        self._stamp, keys = read_keys(path)
        self._known = _active(keys)
        if not self._known:
            _log.warning("%s has no active key: nobody can call; python -m server.keys create makes one", path)
        self._refused: tuple[Stamp | None] | None = None  # of a file that could not be used; there may be none
        self._next_look = time.monotonic() + CHECKED_EVERY_S

    def caller(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller | None:
        """Whose key came with a call, as `authorization: Bearer KEY`. None: no key, an unknown or revoked one, or several."""
        if time.monotonic() >= self._next_look:
            self._look()
        values = [value for name, value in metadata or () if name == _HEADER]
        if len(values) != 1:
            return None
        [value] = values
        if not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
            return None
        digest = sha256(value[len(_SCHEME) :].encode("utf-8", "surrogateescape")).digest()
        # The table is of hashes, so that the time it takes says nothing about keys. An unknown key costs what a known one does.
        known, caller = self._known.get(digest, _NOBODY)
        return caller if compare_digest(known, digest) else None

    def _look(self) -> None:
        self._next_look = time.monotonic() + CHECKED_EVERY_S
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        try:
            self._stamp, keys = read_keys(self._path)
        except StartupError as error:
            if self._refused != (stamp,):  # logged once, but tried again: what failed may have been the reading
                _log.error("%s; the keys that were read before stay valid", error)
            self._refused = (stamp,)
            return
        self._refused = None
        self._known = _active(keys)
        _log.info("read %s again: %d active keys", self._path, len(self._known))


def _active(keys: Iterable[StoredKey]) -> Mapping[bytes, tuple[bytes, Caller]]:
    """sha256 -> (the same, whose)."""
    known = {}
    for key in keys:
        if key.active:
            digest = bytes.fromhex(key.sha256)
            known[digest] = (digest, Caller(key.tenant, key.name, frozenset(key.roles), key.id))
    return known
