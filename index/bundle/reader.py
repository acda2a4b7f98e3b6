"""Reading a bundle: manifest, files, tensors, towers, golden rows, in the order in which each makes the next safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from index.bundle.catalogue import check_items, load_categories, load_items
from index.bundle.contents import Bundle
from index.bundle.errors import BundleError, BundleMissingError, BundleTornError, naming
from index.bundle.files import check_digest, check_listing, read_checked
from index.bundle.format import (
    GOLDEN,
    ITEM_RESIDUALS,
    ITEM_TOWER,
    ITEM_VECTORS,
    ITEMS,
    TEXT_ENCODER,
    USER_TOWER,
    VOCABULARIES,
    Manifest,
)
from index.bundle.golden import load_golden
from index.bundle.manifest import read_manifest
from index.bundle.tensors import check_array, check_unit_rows, load_tensor
from index.bundle.text import check_text_encoder, digest_of_files, encoder_digests
from index.bundle.towers import InputShape, Tower, load_tower
from index.bundle.validator import BundleReport, check_golden_item, check_golden_user, check_reencoding

_COPY_AGAIN = "copy the bundle again from where it was written"


def read_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Read the bundle at `path` into memory, after every check of `check_bundle`.

    verify=False skips digests, values and golden rows, for a bundle checked before in the same place; what makes a file
    safe to load, and shapes, are always checked. Raises BundleError, one line naming path and file.
    """
    with naming(path):
        return _Reading(path, verify).bundle()


def read_again(path: Path) -> Bundle:
    """Read a bundle that `read_bundle` has checked in another process: digests are compared, towers are not run.

    Most of it lets other threads run. Raises BundleError.
    """
    with naming(path):
        reading = _Reading(path, verify=False)
        for name, entry in reading.manifest.files.items():
            check_digest(path, name, entry)
        return reading.bundle()


def check_bundle(path: Path) -> BundleReport:
    """Run every check on the bundle at `path` and report them in order; raises BundleError at the first that fails."""
    return report_as(path, path)


def read_user_tower(path: Path) -> Bundle:
    """The bundle at `path` with its user tower alone, without any items: what is needed to compile the tower.

    For a bundle that was checked before. Raises BundleError.
    """
    with naming(path):
        return _Reading(path, verify=False).user_side()


def check_user_tower(bundle: Bundle, tower: torch.nn.Module) -> str:
    """What `check_bundle` asks of the user tower, asked of another form of it, such as a compiled one.

    Raises BundleError if its vectors are not the golden ones, or if the bundle has none.
    """
    with naming(bundle.path):
        entry = bundle.manifest.files.get(GOLDEN)
        golden = load_golden(read_checked(bundle.path, GOLDEN, entry, verify=True), bundle.manifest)[0] if entry else None
        if golden is None:
            raise BundleMissingError(GOLDEN, "has no rows of a user tower", "write the bundle with golden rows")
        return check_golden_user(replace(bundle, user_tower=tower), golden)


def report_as(path: Path, name: Path) -> BundleReport:
    """`check_bundle`, with errors that speak of `name`: a bundle being written lies elsewhere until it is whole."""
    with naming(name):
        reading = _Reading(path, verify=True)
        bundle = reading.bundle()
    return BundleReport(bundle.release_id, bundle.manifest, tuple(reading.passed))


class _Reading:
    """One pass over a bundle's files; collects what was checked."""

    def __init__(self, root: Path, verify: bool) -> None:
        self.root = root
        self.verify = verify
        self.passed: list[tuple[str, str]] = []
        self.manifest, self.release_id = read_manifest(root)
        self._passed("manifest", f"format {self.manifest.format_version}, release {self.release_id}")

    def bundle(self) -> Bundle:
        """All parts read, checked and put together."""
        try:
            return self._bundle()
        except OSError as error:
            file, problem = Path(error.filename or "").name, f"cannot be read ({error.strerror or error})"
            raise BundleTornError(file, problem, "look at the disk and permissions") from error

    def user_side(self) -> Bundle:
        """The manifest and the user tower, and a catalogue of nothing."""
        user = self._tower(USER_TOWER, user_inputs(self.manifest))
        return Bundle(
            path=self.root,
            manifest=self.manifest,
            release_id=self.release_id,
            items=pa.table({}),
            item_vectors=np.zeros((0, self.manifest.dim), dtype=np.float32),
            item_residuals=None,
            categories={},
            user_tower=user.module if user else None,
            item_tower=None,
            user_program=user.program if user else None,
            item_program=None,
            text_encoder=None,
        )

    def _bundle(self) -> Bundle:
        check_listing(self.root, self.manifest.files)
        self._passed("files", f"{len(self.manifest.files)} listed, none missing, none more")
        encoder = self._text_encoder()
        items = load_items(self._read(ITEMS))
        check_items(items)
        self._passed(ITEMS, f"{items.num_rows} items, {len(items.column_names)} columns")
        categories = load_categories(self._read(VOCABULARIES))
        self._passed(VOCABULARIES, f"{len(categories)} categories")
        vectors = self._matrix(ITEM_VECTORS, "vectors", items.num_rows)
        if self.verify:
            check_unit_rows(vectors, ITEM_VECTORS, "vectors")
        residuals = self._matrix(ITEM_RESIDUALS, "residuals", items.num_rows) if self._has(ITEM_RESIDUALS) else None
        user = self._tower(USER_TOWER, user_inputs(self.manifest))
        item = self._tower(ITEM_TOWER, item_inputs(self.manifest))
        bundle = Bundle(
            path=self.root,
            manifest=self.manifest,
            release_id=self.release_id,
            items=items,
            item_vectors=vectors,
            item_residuals=residuals,
            categories=categories,
            user_tower=user.module if user else None,
            item_tower=item.module if item else None,
            user_program=user.program if user else None,
            item_program=item.program if item else None,
            text_encoder=encoder,
        )
        if self.verify and self._has(GOLDEN):
            self._golden(bundle)
        return bundle

    def _text_encoder(self) -> Path | None:
        if self.manifest.text.encoder is None:
            return None
        path = self.root / TEXT_ENCODER
        try:
            check_text_encoder(path)
        except BundleError as error:  # it speaks of its own directory; an operator knows the bundle's
            raise type(error)(f"{TEXT_ENCODER}/{error.file}".rstrip("/"), error.problem, error.cure) from error
        if self.verify:
            self._encoder_digests()
        return path

    def _encoder_digests(self) -> None:
        entries = {name: entry for name, entry in self.manifest.files.items() if name.startswith(f"{TEXT_ENCODER}/")}
        for name, entry in entries.items():
            check_digest(self.root, name, entry)
        digest = digest_of_files(encoder_digests({name: entry.sha256 for name, entry in entries.items()}))
        if digest != self.manifest.text.encoder_sha256:
            problem = "is not the encoder of the manifest (encoder_sha256 differs)"
            raise BundleTornError(TEXT_ENCODER, problem, _COPY_AGAIN)
        self._passed(TEXT_ENCODER, f"{len(entries)} files, {digest[:16]}")

    def _matrix(self, file: str, name: str, rows: int) -> NDArray[np.float32]:
        """A (N, D) float32 array, row i being item i."""
        matrix = load_tensor(self._read(file), file, name)
        check_array(matrix, file, name, (rows, self.manifest.dim), np.float32)
        self._passed(file, f"{matrix.shape[0]} x {matrix.shape[1]} {matrix.dtype}")
        return matrix

    def _tower(self, file: str, inputs: Sequence[InputShape]) -> Tower | None:
        if not self._has(file):
            return None
        tower = load_tower(self._read(file), inputs, self.manifest.dim, file)
        self._passed(file, f"{len(inputs)} inputs, {len(tower.program.graph.nodes)} nodes, no pickles")
        return tower

    def _golden(self, bundle: Bundle) -> None:
        user, item = load_golden(self._read(GOLDEN), self.manifest)
        self._passed("golden items", check_golden_item(bundle, item))
        if user is not None:
            self._passed("golden users", check_golden_user(bundle, user))
        again = check_reencoding(bundle)
        if again is not None:
            self._passed("re-encoding", again)

    def _read(self, file: str) -> bytes:
        return read_checked(self.root, file, self.manifest.files[file], verify=self.verify)

    def _has(self, file: str) -> bool:
        return file in self.manifest.files

    def _passed(self, check: str, detail: str) -> None:
        self.passed.append((check, detail))


def user_inputs(manifest: Manifest) -> tuple[InputShape, ...]:
    """What a user tower takes: B and L free, D fixed."""
    width = 1 if manifest.history_length == 1 else None
    return (
        InputShape("history", torch.float32, (None, width, manifest.dim)),
        InputShape("event_type", torch.int64, (None, width)),
        InputShape("seconds_before_newest", torch.float32, (None, width)),
        InputShape("length", torch.int64, (None,)),
    )


def item_inputs(manifest: Manifest) -> tuple[InputShape, ...]:
    """What an item tower takes: N free, T, C and D fixed."""
    return (
        InputShape("text", torch.float32, (None, manifest.text.dim)),
        InputShape("categories", torch.int64, (None, manifest.category_slots)),
        InputShape("residual", torch.float32, (None, manifest.dim)),
    )
