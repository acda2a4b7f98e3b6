"""The text encoder: loaded from safetensors and plain text, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.bundle import (
    BundleError,
    BundleInvalidError,
    BundleMissingError,
    BundleSpec,
    BundleTornError,
    BundleUnsafeError,
    check_bundle,
    check_text_encoder,
    load_text_encoder,
    read_bundle,
    text_encoder_sha256,
    write_bundle,
)
from tests.index.bundle.tampering import edit_manifest, reseal
from tests.tiny import TEXT_DIM


def refusal(bundle: Path, kind: type[BundleError], *, sealed: bool = True) -> str:
    """Refused as part of a bundle, with or without verification, and on its own."""
    if sealed:
        reseal(bundle)
    with pytest.raises(kind):
        check_text_encoder(bundle / "text_encoder")
    with pytest.raises(kind):
        load_text_encoder(bundle / "text_encoder")
    with pytest.raises(kind):
        read_bundle(bundle, verify=False)
    with pytest.raises(kind, match="text_encoder") as caught:
        read_bundle(bundle)
    return str(caught.value)


def test_texts_that_share_words_lie_close(text_bundle: Path) -> None:
    read = read_bundle(text_bundle)
    assert read.text_encoder is not None
    encoder = load_text_encoder(read.text_encoder)
    vectors = encoder.encode(["red leather shoes", "red wool shoes", "blue summer hats"])
    assert vectors.shape == (3, TEXT_DIM) == (3, encoder.dim) and vectors.dtype == np.float32
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, TEXT_DIM)


def test_a_bundle_encodes_its_own_items_from_their_texts(text_bundle: Path) -> None:
    read = read_bundle(text_bundle)
    assert read.text_encoder is not None and read.item_residuals is not None
    texts = load_text_encoder(read.text_encoder).encode(read.items.column("text").to_pylist())
    values = read.items.column("categories").to_pylist()
    codes = np.array([read.category_codes(row) for row in values], dtype=np.int64)
    np.testing.assert_allclose(read.encode_items(texts, codes, read.item_residuals), read.item_vectors, atol=1e-5)


def test_the_hash_follows_names_and_contents_only(text_bundle: Path, tmp_path: Path) -> None:
    encoder = text_bundle / "text_encoder"
    copy = Path(shutil.copytree(encoder, tmp_path / "copy"))
    assert text_encoder_sha256(copy) == text_encoder_sha256(encoder)
    assert text_encoder_sha256(copy) == read_bundle(text_bundle, verify=False).manifest.text.encoder_sha256
    (copy / "modules.json").rename(copy / "other.json")
    assert text_encoder_sha256(copy) != text_encoder_sha256(encoder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "modeling.py", "weights.pt", "0/model.pkl", "model.ckpt", "noextension", "x.SO"]
)
def test_a_file_that_could_hold_code_is_refused(text_bundle: Path, name: str) -> None:
    path = text_bundle / "text_encoder" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"import os")
    assert name in refusal(text_bundle, BundleUnsafeError)


@pytest.mark.parametrize("kind", ["os.system", "modeling.Mine", "sentence_transformersx.Y", None, 3])
def test_a_foreign_class_is_refused(text_bundle: Path, kind: object) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (text_bundle / "text_encoder" / "modules.json").write_text(json.dumps(modules))
    assert "modules.json" in refusal(text_bundle, BundleUnsafeError)


@pytest.mark.parametrize("path", ["../../elsewhere", "/etc", 3])
def test_a_module_outside_the_encoder_is_refused(text_bundle: Path, path: object) -> None:
    kind = "sentence_transformers.models.Pooling"
    modules = [{"idx": 0, "name": "0", "path": path, "type": kind}]
    (text_bundle / "text_encoder" / "modules.json").write_text(json.dumps(modules))
    assert "modules.json" in refusal(text_bundle, BundleUnsafeError)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Mine"}},
        {"deep": [{"auto_map": {}}]},
        {"model_args": {"trust_remote_code": True}},
        {"activation_function": "os.system"},
        {"activation_function": "torch.os.system"},
        {"types": {"query": "os.path"}},
    ],
)
def test_a_config_that_asks_for_other_code_is_refused(text_bundle: Path, config: object) -> None:
    (text_bundle / "text_encoder" / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(text_bundle, BundleUnsafeError)


def test_a_layer_of_torch_is_allowed(text_bundle: Path) -> None:
    config = {"activation_function": "torch.nn.modules.activation.Tanh", "hidden_act": "gelu", "auto": {}}
    (text_bundle / "text_encoder" / "config.json").write_text(json.dumps(config))
    check_text_encoder(text_bundle / "text_encoder")


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_a_broken_modules_file_is_refused(text_bundle: Path, text: str) -> None:
    (text_bundle / "text_encoder" / "modules.json").write_text(text)
    assert "modules.json" in refusal(text_bundle, BundleError)


def test_an_encoder_without_modules_is_refused(text_bundle: Path) -> None:
    (text_bundle / "text_encoder" / "modules.json").unlink()
    assert "modules.json" in refusal(text_bundle, BundleTornError)


def test_a_linked_file_is_refused(text_bundle: Path, tmp_path: Path) -> None:
    weights = text_bundle / "text_encoder" / "model.safetensors"
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    assert "model.safetensors" in refusal(text_bundle, BundleUnsafeError, sealed=False)


def test_an_encoder_of_another_hash_is_refused(text_bundle: Path) -> None:
    edit_manifest(text_bundle, lambda values: values["text"].update(encoder_sha256="0" * 64))
    with pytest.raises(BundleTornError, match="text_encoder"):
        check_bundle(text_bundle)


def test_no_encoder_at_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleMissingError, match="nothing"):
        load_text_encoder(tmp_path / "nothing")


def test_weights_that_do_not_load_are_refused_in_one_line(text_bundle: Path) -> None:
    (text_bundle / "text_encoder" / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(BundleInvalidError) as caught:
        load_text_encoder(text_bundle / "text_encoder")
    assert "\n" not in str(caught.value)


def test_an_unsafe_encoder_is_refused_when_writing_with_its_own_path(tmp_path: Path, text_bundle: Path) -> None:
    read = read_bundle(text_bundle)
    encoder = text_bundle / "text_encoder"
    (encoder / "pytorch_model.bin").write_bytes(b"x")
    spec = BundleSpec(dim=8, history_length=None, event_types={}, time_features=False)
    with pytest.raises(BundleUnsafeError) as caught:
        write_bundle(tmp_path / "b", spec, items=read.items, item_vectors=read.item_vectors, text_encoder=encoder)
    assert str(caught.value).startswith(f"{encoder}: pytorch_model.bin: ")
