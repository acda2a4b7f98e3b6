"""`python -m training onnx`: a bundle's user tower as ONNX, to compute a person's vector on their own device.

OUT/user_tower.onnx   the tower, inputs named and ordered as in the manifest; with items, it reads their vectors itself
OUT/device.json       what the device must know: release, inputs, event types, and with items their ids in row order

Recommend takes the vector with `release_id`, so one of a release that is no longer live is refused, never mixed.
"""

import json
import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from index.bundle import Bundle, check_user_tower, read_bundle
from training.errors import ConfigError, DatasetError

MODEL, DESCRIPTION = "user_tower.onnx", "device.json"
OPSET = 20
TOLERANCE = 1e-5  # as for golden rows
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class TowerOverItems(nn.Module):
    """The user tower with the catalogue's vectors inside: a device then keeps item rows as its history, no vectors."""

    items: Tensor

    def __init__(self, tower: nn.Module, items: Tensor) -> None:
        """`items` (N, D) float32 unit rows."""
        super().__init__()
        self.tower = tower
        self.register_buffer("items", items)

    def forward(self, item: Tensor, event_type: Tensor, seconds_before_newest: Tensor, length: Tensor) -> Tensor:
        """(B, L) i64 rows of `item_ids`, (B, L) i64, (B, L) f32, (B,) i64 -> (B, D) float32 unit rows."""
        vectors: Tensor = self.tower(F.embedding(item, self.items), event_type, seconds_before_newest, length)
        return vectors


def export_onnx(path: Path, out: Path, *, with_items: bool = False) -> Path:
    """Writes the folder `out` from the bundle at `path`; returns the model's path.

    The model is run with onnxruntime before it is kept: its vectors must equal the bundle's golden ones to 1e-5, and with
    items those of the bundle's tower. Raises ConfigError where `out` exists and is something else or a package is missing,
    DatasetError where the bundle has no user tower.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX needs {', '.join(missing)}; pip install 'towerbridge[training]'")
    if not _may_replace(out):
        raise ConfigError(f"{out}: exists and is not an earlier export alone; remove it or give another path")
    bundle = read_bundle(path)
    if bundle.user_program is None:
        raise DatasetError(f"{path}: has no user tower, so a device has nothing to compute; give a bundle that fit wrote")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        staged = Path(folder) / out.name
        staged.mkdir()
        _convert(bundle, staged / MODEL, with_items)
        _check(bundle, staged / MODEL, with_items)
        text = json.dumps(describe(bundle, with_items=with_items), indent=2, ensure_ascii=False) + "\n"
        (staged / DESCRIPTION).write_text(text, encoding="utf-8")
        if out.exists():
            out.rename(Path(folder) / "older")  # goes with the folder
        staged.rename(out)
    return out / MODEL


def _may_replace(out: Path) -> bool:
    """Whether nothing is there, or an earlier export and no other file."""
    if out.is_symlink() or not out.is_dir():
        return not out.is_symlink() and not out.exists()
    found = {path.name for path in out.iterdir()}
    return MODEL in found and found <= {MODEL, DESCRIPTION}


def describe(bundle: Bundle, *, with_items: bool) -> dict[str, Any]:
    """device.json. Histories are oldest first, right-padded, at most `history_length` events; codes of 0 are unknown."""
    history = "item" if with_items else "history"
    described: dict[str, Any] = {
        "release_id": bundle.release_id,
        "dim": bundle.manifest.dim,
        "history_length": bundle.manifest.history_length,
        "inputs": [history, "event_type", "seconds_before_newest", "length"],
        "output": "user_vector",
        "event_types": bundle.manifest.event_types,
        "time_features": bundle.manifest.time_features,
    }
    return described | ({"item_ids": bundle.item_ids} if with_items else {})


def _convert(bundle: Bundle, model: Path, with_items: bool) -> None:
    if bundle.user_program is None:
        raise AssertionError("export_onnx has seen to it")
    program = _over_items(bundle, bundle.user_program) if with_items else bundle.user_program
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    try:
        noisy.setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET, output_names=["user_vector"])
    finally:
        noisy.setLevel(level)
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no program")
    exported.model.metadata_props["towerbridge.release_id"] = bundle.release_id
    exported.save(str(model), external_data=False)


def _over_items(bundle: Bundle, program: ExportedProgram) -> ExportedProgram:
    rows, width = Dim("rows", min=1, max=1 << 20), Dim("width", min=1, max=bundle.manifest.history_length or 1)
    size = (2, max(2, min(3, bundle.manifest.history_length or 1)))
    example = (
        torch.zeros(size, dtype=torch.int64),
        torch.zeros(size, dtype=torch.int64),
        torch.zeros(size),
        torch.ones(2, dtype=torch.int64),
    )
    shapes = ({0: rows, 1: width}, {0: rows, 1: width}, {0: rows, 1: width}, {0: rows})
    module = TowerOverItems(program.module(), torch.from_numpy(bundle.item_vectors))
    return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


class _Session(nn.Module):
    """The ONNX model as a module, so that what checks a bundle's tower checks it too."""

    def __init__(self, model: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.names = [node.name for node in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Tensor:
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        return torch.from_numpy(self.session.run(None, feed)[0])


def _check(bundle: Bundle, model: Path, with_items: bool) -> None:
    session = _Session(model)
    if not with_items:
        check_user_tower(bundle, session)
        return
    random, width = np.random.default_rng(0), bundle.manifest.history_length or 1
    length = np.arange(1, width + 1)
    real = np.arange(width) < length[:, None]  # (B, L) bool, B = L = L_max
    item = np.where(real, random.integers(0, len(bundle.item_vectors), real.shape), 0)
    kind = np.where(real, random.integers(0, len(bundle.manifest.event_types) + 1, real.shape), 0)
    seconds = np.where(real & bundle.manifest.time_features, length[:, None] - 1 - np.arange(width), 0).astype(np.float32)
    history = bundle.item_vectors[item] * real[..., None]  # (B, L, D) float32
    expected = bundle.encode_users(history.astype(np.float32), kind, seconds, length)
    found = session(*(torch.from_numpy(array) for array in (item, kind, seconds, length))).numpy()
    worst = float(np.abs(found - expected).max())
    if not worst <= TOLERANCE:
        raise DatasetError(f"{bundle.path}: as ONNX its user vectors differ by {worst:.2g}; report it with the bundle")
