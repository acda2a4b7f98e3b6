"""The file of API keys: JSON with a sha256 and the rights of each key, and no key.

Every state of the file is whole: it is written aside, synced, and renamed over the one before. Several processes may write.
"""

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from server.config import TenantName
from server.errors import StartupError
from server.journal.database import sync_directory
from server.security.roles import GRANTED, Role

ACTIVE_AT_ONCE = 2
"""Active keys of one tenant and name: the one in use, and the one that replaces it."""
_OTHERS = 0o077  # what group and others may do
_MAX_BYTES = 16 * 1024 * 1024
_REMEDY = "put a copy back, or make new keys with python -m server.keys create"

KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")]
Time = Annotated[AwareDatetime, PlainSerializer(lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}", when_used="json")]


def _granted(role: Role) -> Role:
    if role not in GRANTED:
        raise ValueError(f"no key can have the role {role.value}")
    return role


class StoredKey(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^k_[0-9a-f]{12}$")]
    """Names it in logs and to `revoke`; no secret."""
    tenant: TenantName
    name: KeyName
    """Whose key it is."""
    roles: Annotated[tuple[Annotated[Role, AfterValidator(_granted)], ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key, as ASCII. Plain, since the key is 256 random bits: there is nothing to guess."""
    created_at: Time
    revoked_at: Time | None = None

    @property
    def active(self) -> bool:
        return self.revoked_at is None


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    keys: tuple[StoredKey, ...]

    @model_validator(mode="after")
    def _keys_are_told_apart(self) -> Self:
        if len({key.id for key in self.keys}) < len(self.keys) or len({key.sha256 for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id or sha256")
        return self


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    mtime_ns: int
    ctime_ns: int  # changes with owner and mode too
    size: int
    inode: int


def stamp_of(path: Path) -> Stamp | None:
    """The state of a file; None: there is none, or it cannot be looked at."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def read_keys(path: Path) -> tuple[Stamp, tuple[StoredKey, ...]]:
    """All keys, revoked ones too, and the state of the file that they were read from. Raises StartupError."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise StartupError(f"there is no file of API keys {path}; make it with python -m server.keys create") from None
    except OSError as error:
        raise StartupError(f"cannot read the API keys {path}: {error.strerror}; check its path and permissions") from None
    if stat.S_IMODE(found.st_mode) & _OTHERS:
        raise StartupError(f"the API keys {path} can be used by others than the file's owner; run chmod 600 {path}")
    if len(text) > _MAX_BYTES:
        raise StartupError(f"{path} is not a file of API keys: it is larger than {_MAX_BYTES} bytes; check the path")
    try:
        return _stamp(found), _Content.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StartupError(f"the API keys {path} are damaged ({where or 'file'}: {first['msg']}); {_REMEDY}") from None


def create(path: Path, tenant: str, name: str, roles: Sequence[Role], *, now: datetime | None = None) -> tuple[str, StoredKey]:
    """Makes a key, and the file if there is none. The key, which is kept nowhere, and what is kept of it.

    roles: of GRANTED, at least one. Raises StartupError for a tenant and name that have two active keys, and if the file cannot
    be used.
    """
    key = "tb_" + secrets.token_urlsafe(32)
    with _changing(path) as keys:
        active = [one.id for one in keys if one.active and (one.tenant, one.name) == (tenant, name)]
        if len(active) >= ACTIVE_AT_ONCE:
            raise StartupError(
                f"{name} of {tenant} has {ACTIVE_AT_ONCE} active keys, {' and '.join(active)}; "
                "revoke the one that is no longer used, or take another --name"
            )
        stored = StoredKey(
            id=f"k_{secrets.token_hex(6)}",
            tenant=tenant,
            name=name,
            roles=tuple(role for role in GRANTED if role in roles),
            sha256=sha256(key.encode()).hexdigest(),
            created_at=_seconds(now),
        )
        keys.append(stored)
    return key, stored


def revoke(path: Path, key_id: str, *, now: datetime | None = None) -> StoredKey:
    """Ends a key for good; of one that was revoked nothing changes. Raises StartupError for an unknown id."""
    with _changing(path, may_make=False) as keys:
        for place, key in enumerate(keys):
            if key.id == key_id:
                if key.active:
                    keys[place] = key.model_copy(update={"revoked_at": _seconds(now)})
                return keys[place]
        raise StartupError(f"{path} has no key {key_id}; python -m server.keys list shows them")


def _seconds(now: datetime | None) -> datetime:
    return (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)


@contextmanager
def _changing(path: Path, *, may_make: bool = True) -> Iterator[list[StoredKey]]:
    """The keys, to be changed in place; written when the block ends well. One process at a time."""
    path = path.resolve()  # of a link the file it leads to is replaced, not the link
    try:
        if not may_make:
            read_keys(path)
        with _locked(path):
            fresh = may_make and not path.exists()
            before = () if fresh else read_keys(path)[1]
            keys = list(before)
            yield keys
            if fresh or tuple(keys) != before:
                _write(path, keys)
    except OSError as error:
        raise StartupError(
            f"cannot write the API keys {path}: {error.strerror}; check the directory, its permissions and its space"
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A file of its own: the one with the keys is replaced, and with it a lock on it. It stays, since whoever removed it could
    # take it from somebody who waits for it.
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _give_to_owner(descriptor, path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: Sequence[StoredKey]) -> None:
    content = _Content(format=1, keys=tuple(keys)).model_dump(mode="json", exclude_none=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give_to_owner(file.fileno(), path)
            file.write(json.dumps(content, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _give_to_owner(descriptor: int, path: Path) -> None:
    """Keeps the owner: what root replaces must stay readable to the server, or it would go on with the keys before."""
    try:
        old = path.stat()
    except FileNotFoundError:
        return
    if old.st_uid != os.fstat(descriptor).st_uid:
        os.fchown(descriptor, old.st_uid, old.st_gid)
