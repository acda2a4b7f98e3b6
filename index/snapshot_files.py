"""A snapshot's two files: written so that a crash leaves the old pair or the new one, and refused if they are not as written.

The data file is named after its content and is on disk before the manifest that names it takes the old manifest's place; files
that no manifest names are removed after that.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.bundle.files import sync_directory

FORMAT: Final = "towerbridge-snapshot"
VERSION: Final = 1
KIND: Final = "faiss-ivf"
MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_DIGEST = "manifest_sha256"

Count = Annotated[int, Field(ge=0)]


class SnapshotError(Exception):
    """A snapshot is refused. `str()` is one line for an operator: the file, what is wrong, what to do."""

    def __init__(self, folder: Path, file: str, problem: str, cure: str = "") -> None:
        cure = cure or f"delete the folder {folder}: the index is built again at the next start"
        super().__init__(" ".join(f"{folder / file}: {problem}; {cure}".split()))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Counts(_Part):
    items: Count
    lists: Annotated[int, Field(ge=1)]


class DataFile(_Part):
    name: Annotated[str, Field(pattern=r"^lists-[0-9a-f]{16}\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class Manifest(_Part):
    """What the data file is and belongs to."""

    format: Literal["towerbridge-snapshot"]
    format_version: Literal[1]
    kind: Literal["faiss-ivf"]
    release_id: str
    created_at: str
    """RFC 3339, UTC."""
    dim: Annotated[int, Field(ge=1)]
    counts: Counts
    target: Annotated[float, Field(gt=0, le=1)]
    """Mean recall that the table of probes was measured for."""
    gather_rows: Count
    file: DataFile


def write_pair(folder: Path, manifest: Manifest, data: Iterable[bytes | memoryview]) -> None:
    """Replaces what is in `folder`; data: the data file, in parts, one behind the other.

    Raises OSError if that fails; the old pair is still whole then, or the new one is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / manifest.file.name, data)
    _write(folder / MANIFEST, [_manifest_bytes(manifest)])
    for path in folder.iterdir():
        stale = path.name.startswith("lists-") and path.name != manifest.file.name
        if stale or path.name.endswith(_PARTIAL):
            path.unlink()


def read_pair(folder: Path, *, release_id: str) -> tuple[Manifest, bytes] | None:
    """The manifest and the data file's bytes, read once; None if there is no snapshot or it is another release's.

    Raises SnapshotError if either file is not as it was written.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotError(folder, MANIFEST, f"cannot be read ({error.strerror})") from error
    manifest = _parse(folder, text)
    if manifest.release_id != release_id:
        return None
    return manifest, _read_data(folder, manifest.file)


def _read_data(folder: Path, file: DataFile) -> bytes:
    try:
        data = (folder / file.name).read_bytes()
    except OSError as error:
        raise SnapshotError(folder, file.name, f"cannot be read ({error.strerror})") from error
    if len(data) != file.bytes:
        raise SnapshotError(folder, file.name, f"has {len(data)} bytes, the manifest says {file.bytes}")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise SnapshotError(folder, file.name, "is not the file that the manifest was written for (sha256 differs)")
    return data


def _parse(folder: Path, text: bytes) -> Manifest:
    """A manifest from its bytes. The version is looked at first: a newer one may have any other shape."""
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(folder, MANIFEST, f"is not JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SnapshotError(folder, MANIFEST, f"is not that of a {FORMAT}")
    version = values.get("format_version")
    if type(version) is int and version > VERSION:
        problem = f"has format_version {version}, this Towerbridge reads up to {VERSION}"
        cure = f"upgrade Towerbridge, or delete the folder {folder}: the index is built again at the next start"
        raise SnapshotError(folder, MANIFEST, problem, cure)
    values.pop(_DIGEST, None)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise SnapshotError(folder, MANIFEST, f"{where}: {first['msg']}") from error
    if text != _manifest_bytes(manifest):
        raise SnapshotError(folder, MANIFEST, "is not as it was written (sha256 differs)")
    return manifest


def _manifest_bytes(manifest: Manifest) -> bytes:
    """JSON with sorted keys, and the digest of the rest among them, so that a damaged number is not believed."""
    values = manifest.model_dump(mode="json")
    digest = hashlib.sha256(_json(values)).hexdigest()
    return _json({**values, _DIGEST: digest})


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file whole: beside its place, to disk, and then by rename, which is on disk too when this returns."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as target:
        for part in parts:
            target.write(part)
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)
    sync_directory(path.parent)
