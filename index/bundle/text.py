"""The text encoder of a bundle: a sentence-transformers directory, loaded from local files that cannot hold code.

Weights are safetensors only; a pickle, a Python file or a class outside the sentence_transformers package is refused
before the library is even imported. The directory is read by path, so a bundle must lie where only its operator writes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.errors import BundleInvalidError, BundleMissingError, BundleTornError, BundleUnsafeError, naming
from index.bundle.files import file_sha256, inner_files
from index.bundle.format import TEXT_ENCODER

ALLOWED_SUFFIXES = (".safetensors", ".json", ".txt", ".md", ".model")
MODULES = "modules.json"
_OWN_PACKAGE = "sentence_transformers."
_TORCH_LAYER = re.compile(r"torch\.nn\.(?:modules\.[a-z]+\.)?[A-Za-z0-9]+")
_CURE = "save the encoder with SentenceTransformer.save_pretrained(…, safe_serialization=True)"


@dataclass(frozen=True)
class TextEncoder:
    """A loaded sentence-transformers model. `dim` is T."""

    model: Any
    dim: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, T) float32 embeddings of `texts`, in their order, as the model gives them (not scaled to length 1)."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        vectors = self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.ascontiguousarray(vectors, dtype=np.float32)  # (n, T) float32


def load_text_encoder(path: Path) -> TextEncoder:
    """Load the sentence-transformers directory `path` on the CPU, from its files alone, after `check_text_encoder`.

    Imports sentence_transformers at the first call (seconds). Raises BundleError.
    """
    check_text_encoder(path)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        problem = "needs the package sentence-transformers"
        raise BundleInvalidError("", problem, "install it, or send embeddings instead of text", path) from error
    try:
        model = SentenceTransformer(str(path), device="cpu", trust_remote_code=False, local_files_only=True)
        probe = np.asarray(model.encode(["probe"], show_progress_bar=False))
    except Exception as error:  # whatever the libraries under it raise for files they cannot read
        problem = f"is not a text encoder that loads ({type(error).__name__}: {error})"
        raise BundleInvalidError("", problem, _CURE, path) from error
    return TextEncoder(model=model, dim=int(probe.shape[1]))


def check_text_encoder(path: Path) -> None:
    """Refuse a directory that is not a sentence-transformers model of safetensors and plain text files.

    Reads names and the JSON files, not the weights. Raises BundleError naming the file.
    """
    with naming(path):
        if not path.is_dir():
            raise BundleMissingError("", "is not a directory", _CURE)
        files = inner_files(path)
        for name in files:
            if Path(name).suffix not in ALLOWED_SUFFIXES:
                raise BundleUnsafeError(name, f"is none of {' '.join(ALLOWED_SUFFIXES)}", _CURE)
        if MODULES not in files:
            raise BundleTornError(MODULES, "is missing", _CURE)
        _check_modules(_read_json(path, MODULES))
        for name in files:
            if name.endswith(".json"):
                _check_config(_read_json(path, name), name)


def text_encoder_sha256(path: Path) -> str:
    """Hex digest of a text encoder: over the sorted relative paths of its files and their sha256."""
    return digest_of_files({name: file_sha256(path / name) for name in inner_files(path)})


def digest_of_files(digests: Mapping[str, str]) -> str:
    """Hex digest over `relative path -> sha256` in sorted order: the encoder's, when its files are hashed already."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}\n{digests[name]}\n".encode())
    return total.hexdigest()


def encoder_digests(files: Mapping[str, str]) -> dict[str, str]:
    """The text encoder's part of a bundle's `relative path -> sha256`, with paths relative to the encoder."""
    prefix = f"{TEXT_ENCODER}/"
    return {name.removeprefix(prefix): digest for name, digest in files.items() if name.startswith(prefix)}


def _check_modules(modules: Any) -> None:
    if not isinstance(modules, list) or not modules:
        raise BundleInvalidError(MODULES, "is not a list of modules", _CURE)
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not kind.startswith(_OWN_PACKAGE):
            raise BundleUnsafeError(MODULES, f"names the foreign class {str(kind)[:80]!r}", _CURE)
        folder = module.get("path", "")
        if not isinstance(folder, str) or ".." in Path(folder).parts or Path(folder).is_absolute():
            raise BundleUnsafeError(MODULES, f"points outside the encoder: {str(folder)[:80]!r}", _CURE)


def _check_config(config: Any, name: str) -> None:
    try:
        foreign = _foreign_code(config)
    except RecursionError as error:
        raise BundleInvalidError(name, "is nested too deeply", _CURE) from error
    if foreign is not None:
        raise BundleUnsafeError(name, f"asks for code of its own by {foreign}", _CURE)


def _foreign_code(value: Any) -> str | None:
    """The first setting in a config that makes the libraries import code other than torch's and their own."""
    if isinstance(value, list):
        return next((found for part in value if (found := _foreign_code(part))), None)
    if not isinstance(value, dict):
        return None
    if "auto_map" in value or value.get("trust_remote_code"):
        return "auto_map" if "auto_map" in value else "trust_remote_code"
    activation = value.get("activation_function")  # of a Dense module: imported, then called
    if isinstance(activation, str) and "." in activation and not _TORCH_LAYER.fullmatch(activation):
        return f"activation_function {activation[:80]!r}"
    types = value.get("types")  # of a Router module: imported
    if isinstance(types, dict) and not all(str(kind).startswith(_OWN_PACKAGE) for kind in types.values()):
        return f"types {str(types)[:80]}"
    return next((found for part in value.values() if (found := _foreign_code(part))), None)


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads((path / name).read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise BundleTornError(name, f"is not readable JSON ({error})", "copy the bundle again") from error
