"""Which release was made the live one: kept on disk, so that it is live again after a restart."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.bundle import BundleError
from index.bundle.files import sync_directory
from index.bundle.manifest import read_manifest
from server.errors import StartupError

FILE_NAME = "releases.json"
_PARTIAL = ".partial"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Recorded(_Part):
    """A release, and where its bundle lies."""

    release_id: Annotated[str, Field(min_length=1, max_length=256)]
    bundle: str


class Record(_Part):
    """What was live when the server last changed it. It counts as long as the same bundle is configured."""

    configured: str
    """The release of the configured bundle."""
    live: Recorded
    previous: Recorded | None


def write_record(folder: Path, record: Record) -> None:
    """Replaces the record; it is on disk then. Raises OSError if it cannot be written; the old one is there then."""
    before = read_record(folder)
    _replace(folder, record)
    try:
        sync_directory(folder)
    except OSError:
        with suppress(OSError):  # else a restart would find what was refused
            if before is None:
                (folder / FILE_NAME).unlink()
            else:
                _replace(folder, before)
        raise


def _replace(folder: Path, record: Record) -> None:
    partial = folder / (FILE_NAME + _PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE_NAME)


def forget_other(folder: Path, configured: str) -> None:
    """Removes a record that was made while another bundle was configured: the configuration has had the last word since.

    configured: the configured bundle's release.
    """
    record = read_record(folder)
    if record is not None and record.configured != configured:
        (folder / FILE_NAME).unlink()
        sync_directory(folder)


def read_record(folder: Path) -> Record | None:
    """The record; None if there is none. Raises StartupError for one that is damaged."""
    path = folder / FILE_NAME
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StartupError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete it to serve the configured bundle"
        ) from None


def to_serve(folder: Path, configured: Path) -> tuple[Path, Recorded | None]:
    """The bundle that is to be live at start, and the release before it: those that were, if the configured bundle is the same.

    Raises StartupError if the live one's bundle is not there any more: the towers that answer are not changed silently.
    """
    record = read_record(folder)
    try:
        _, release_id = read_manifest(configured)
    except BundleError as error:
        error.path = error.path or configured
        raise StartupError(str(error)) from None
    if record is None or record.configured != release_id:
        return configured, None
    if record.live.release_id == release_id:
        return configured, record.previous
    live = Path(record.live.bundle)
    if not is_there(record.live):
        raise StartupError(
            f"release {record.live.release_id} was made the live one, and its bundle is not in {live} any more: put it back, "
            f"configure another bundle, or delete {folder / FILE_NAME} to serve the configured one ({release_id})"
        )
    return live, record.previous


def is_there(recorded: Recorded) -> bool:
    """Whether the bundle of a release is where it was."""
    try:
        return read_manifest(Path(recorded.bundle))[1] == recorded.release_id
    except (BundleError, OSError):
        return False
