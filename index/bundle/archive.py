"""A tower's .pt2 file as a zip of named members, taken apart and checked before torch sees any of it.

torch.export.load unpickles what it finds under several names (sample inputs, weights and constants marked
`use_pickle`, custom and opaque objects, two older layouts) and loads shared libraries under another. Therefore: only
the members that a plain tower has, none of them compressed, none twice, no pickles. torch is then given a fresh zip of
the checked members, so that a file which two zip readers understand differently cannot slip past.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from index.bundle.errors import BundleTornError, BundleUnsafeError
from index.bundle.program import check_payload_config, check_program, plain_program

PROGRAM = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
BYTE_ORDER = "byteorder"
SERIALIZATION_ID = ".data/serialization_id"

_FIXED = ("archive_format", "archive_version", BYTE_ORDER, ".data/version", PROGRAM, WEIGHTS_CONFIG, CONSTANTS_CONFIG)
_OPTIONAL = (SAMPLE_INPUTS, SERIALIZATION_ID)
_TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_[0-9]{1,6}")
_ROOT = re.compile(r"[A-Za-z0-9_-]+")
_STAMP = (1980, 1, 1, 0, 0, 0)  # the zip's own clock is not used: the same tower gives the same bytes

_REEXPORT = "export the tower again and write the bundle with index.bundle.write_bundle"


def open_members(data: bytes, file: str) -> dict[str, bytes]:
    """The members of a .pt2 without their common root folder, after every check of this module.

    Raises BundleTornError (not a readable zip) and BundleUnsafeError (anything a plain tower does not have).
    """
    members = _read_zip(data, file)
    _check_names(members, file)
    if members.get(SAMPLE_INPUTS):
        raise BundleUnsafeError(file, "holds pickled sample inputs, which torch would execute", _REEXPORT)
    if members[BYTE_ORDER] != b"little":
        raise BundleUnsafeError(file, "is not little-endian", _REEXPORT)
    sizes = {name: len(content) for name, content in members.items()}
    try:
        for config in (WEIGHTS_CONFIG, CONSTANTS_CONFIG):
            check_payload_config(_json(members[config], file, config), file, config, sizes)
        check_program(_json(members[PROGRAM], file, PROGRAM), file)
    except RecursionError as error:
        raise BundleUnsafeError(file, "holds JSON that is nested too deeply", _REEXPORT) from error
    return members


def join_members(members: Mapping[str, bytes]) -> bytes:
    """A .pt2 of these members in the layout torch writes: stored, not compressed, under `archive/`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name, content in {SAMPLE_INPUTS: b"", **members}.items():
            target.writestr(zipfile.ZipInfo(f"archive/{name}", _STAMP), content)
    return out.getvalue()


def plain_members(data: bytes, file: str) -> dict[str, bytes]:
    """The members of what torch.export.save just wrote, less what a bundle does not keep.

    Sample inputs (a pickle), source paths and guards (Python code that torch executes) are dropped.
    """
    members = _read_zip(data, file)
    program = plain_program(_json(members[PROGRAM], file, PROGRAM))
    members[PROGRAM] = json.dumps(program, separators=(",", ":"), allow_nan=False).encode()
    members[SAMPLE_INPUTS] = b""
    members[SERIALIZATION_ID] = b"0" * 40
    return members


def _read_zip(data: bytes, file: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            entries = source.infolist()
            _check_entries(entries, len(data), file)
            return {entry.filename.partition("/")[2]: source.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise BundleTornError(file, f"is not a readable .pt2 zip ({error})", "copy the bundle again") from error


def _check_entries(entries: list[zipfile.ZipInfo], size: int, file: str) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise BundleUnsafeError(file, "holds two members of the same name", _REEXPORT)
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1 or not all(_ROOT.fullmatch(root) for root in roots):
        raise BundleUnsafeError(file, f"holds members outside one root folder: {sorted(roots)[:3]!r}", _REEXPORT)
    # torch stores, it never compresses: what is inside cannot be larger than the file, so there is no zip bomb.
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 for entry in entries):
        raise BundleUnsafeError(file, "holds a compressed or encrypted member", _REEXPORT)
    if sum(entry.file_size for entry in entries) > size:
        raise BundleUnsafeError(file, "claims more bytes than it has", _REEXPORT)


def _check_names(members: Mapping[str, bytes], file: str) -> None:
    for name in members:
        if name not in _FIXED and name not in _OPTIONAL and not _TENSOR.fullmatch(name):
            raise BundleUnsafeError(file, f"holds {name!r}, which a plain tower does not have", _REEXPORT)
    for name in _FIXED:
        if name not in members:
            raise BundleTornError(file, f"lacks {name!r}", _REEXPORT)


def _json(content: bytes, file: str, member: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleTornError(file, f"{member} is not JSON ({error})", _REEXPORT) from error
