"""What an attacker or a careless script does to a bundle, so that the tests can see it refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from index.bundle import BundleError, BundleUnsafeError, read_bundle
from index.bundle.files import file_entries
from index.bundle.text import digest_of_files, encoder_digests

PROGRAM = "archive/models/model.json"
WEIGHTS_CONFIG = "archive/data/weights/model_weights_config.json"
SAMPLE_INPUTS = "archive/data/sample_inputs/model.pt"


class TouchOnUnpickling:
    """Unpickling this creates an empty file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's values in place and write it back."""
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def reseal(bundle: Path) -> None:
    """Make digests and sizes match the files again: what an attacker who can write one file can do as well."""
    entries = {name: entry.model_dump() for name, entry in file_entries(bundle).items()}
    encoder = encoder_digests({name: entry["sha256"] for name, entry in entries.items()})

    def put(values: dict[str, Any]) -> None:
        values["files"] = entries
        if values["text"]["encoder"] is not None:
            values["text"]["encoder_sha256"] = digest_of_files(encoder)

    edit_manifest(bundle, put)


def read_members(path: Path) -> dict[str, bytes]:
    """The members of a zip by name."""
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist()}


def zip_bytes(members: Mapping[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members, in order; a list may name one twice."""
    pairs = list(members.items()) if isinstance(members, Mapping) else members
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as target:
        for name, content in pairs:
            target.writestr(name, content)
    return out.getvalue()


def edit_tower(bundle: Path, edit: Callable[[dict[str, bytes]], object], tower: str = "user_tower.pt2") -> Path:
    """Change a tower's members in place, write it back and reseal the bundle. Returns the tower's path."""
    path = bundle / tower
    members = read_members(path)
    edit(members)
    path.write_bytes(zip_bytes(members))
    reseal(bundle)
    return path


def edit_json(member: str, edit: Callable[[Any], object]) -> Callable[[dict[str, bytes]], None]:
    """An edit of one JSON member, for `edit_tower`."""

    def apply(members: dict[str, bytes]) -> None:
        values = json.loads(members[member])
        edit(values)
        members[member] = json.dumps(values).encode()

    return apply


def pickled(value: object) -> bytes:
    """The value as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def tower_refusal(bundle: Path, kind: type[BundleError] = BundleUnsafeError) -> str:
    """The one line with which the bundle is refused; verify=False must refuse it as well."""
    with pytest.raises(kind):
        read_bundle(bundle, verify=False)
    with pytest.raises(kind) as caught:
        read_bundle(bundle)
    line = str(caught.value)
    assert "user_tower.pt2" in line and str(bundle) in line and "\n" not in line
    return line
