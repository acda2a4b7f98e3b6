"""manifest.json: reading it with errors that an operator understands, and writing it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from index.bundle.errors import BundleInvalidError, BundleMissingError, BundleTornError, BundleVersionError
from index.bundle.format import (
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    ITEM_RESIDUALS,
    ITEM_TOWER,
    MANIFEST,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    TEXT_ENCODER,
    USER_TOWER,
    Manifest,
)

_REWRITE = "write the bundle again"
_COPY_AGAIN = "copy the bundle again from where it was written"


def read_manifest(root: Path) -> tuple[Manifest, str]:
    """The manifest of the bundle at `root` and its release id. Raises BundleError; files are not looked at."""
    if not root.is_dir():
        raise BundleMissingError("", "is not a directory", "give the path of a bundle")
    if not (root / MANIFEST).is_file():
        raise BundleMissingError(MANIFEST, "is not there", "give the path of a bundle")
    data = (root / MANIFEST).read_bytes()
    return parse_manifest(data), release_id(data)


def is_bundle(root: Path) -> bool:
    """Whether a directory says of itself that it is a bundle, of any version and in any state."""
    try:
        return bool(json.loads((root / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its bytes. The version is looked at first: a newer one may have any other shape."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleTornError(MANIFEST, f"is not JSON ({error})", _COPY_AGAIN) from error
    _check_version(values)
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleInvalidError(MANIFEST, f"{where}: {first['msg']}", _REWRITE) from error
    _check_agreement(manifest)
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as JSON with sorted keys, readable by eye."""
    values = manifest.model_dump(mode="json")
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def release_id(data: bytes) -> str:
    """The name of a release: the first 16 hex digits of the sha256 of its manifest's bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def _check_version(values: Any) -> None:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise BundleInvalidError(MANIFEST, f"is not that of a {FORMAT}", "give the path of a bundle")
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleVersionError(MANIFEST, f"has format_version {version!r}, which never was", _REWRITE)
    if version > FORMAT_VERSION:
        problem = f"has format_version {version}, this Towerbridge reads up to {FORMAT_VERSION}"
        cure = f"upgrade Towerbridge to a release that reads format {version}, or export the bundle again with this one"
        raise BundleVersionError(MANIFEST, problem, cure)


def _check_agreement(manifest: Manifest) -> None:
    files, text = manifest.files, manifest.text
    encoder_files = [name for name in files if name.startswith(f"{TEXT_ENCODER}/")]
    has_user, has_item = USER_TOWER in files, ITEM_TOWER in files
    unknown = set(files) - set(REQUIRED_FILES) - set(OPTIONAL_FILES) - set(encoder_files)
    encodes = text.encoder is not None
    codes = list(manifest.event_types.values())
    broken = (
        (f"files: lacks {set(REQUIRED_FILES) - set(files)}", not set(REQUIRED_FILES) <= set(files)),
        (f"files: {sorted(unknown)[:1]} is no file of a bundle", bool(unknown)),
        ("files: a user tower without an item tower", has_user and not has_item),
        ("files: towers and golden.safetensors come together", (GOLDEN in files) != has_item),
        ("files: the item tower and item_residuals.safetensors come together", (ITEM_RESIDUALS in files) != has_item),
        ("history_length: is set exactly when there is a user tower", (manifest.history_length is None) == has_user),
        ("event_types: are empty, the user tower needs at least one", has_user and not codes),
        ("event_types: two types have the same code", len(set(codes)) != len(codes)),
        ("text.encoder: and its files come together", encodes != bool(encoder_files)),
        ("text.encoder_sha256: is set exactly with an encoder", encodes != (text.encoder_sha256 is not None)),
        ("text.dim: is 0 with an encoder", encodes and text.dim == 0),
        ("text.encoder: without an item tower to read it", encodes and not has_item),
        ("text.template: has no {text}", "{text}" not in text.template),
    )
    for problem, found in broken:
        if found:
            raise BundleInvalidError(MANIFEST, problem, _REWRITE)
