"""The bundle: the directory that training hands to serving. Only this package reads or writes one."""

from index.bundle.card import write_card
from index.bundle.contents import Bundle
from index.bundle.errors import (
    BundleError,
    BundleInvalidError,
    BundleMissingError,
    BundleTornError,
    BundleUnsafeError,
    BundleVersionError,
)
from index.bundle.format import FORMAT, FORMAT_VERSION, BundleSpec, GoldenItem, GoldenUser, Manifest, Watermark
from index.bundle.reader import check_bundle, check_user_tower, read_again, read_bundle, read_user_tower
from index.bundle.text import TextEncoder, check_text_encoder, load_text_encoder, text_encoder_sha256
from index.bundle.towers import tower_module
from index.bundle.validator import BundleReport
from index.bundle.writer import check_target, write_bundle

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Bundle",
    "BundleError",
    "BundleInvalidError",
    "BundleMissingError",
    "BundleReport",
    "BundleSpec",
    "BundleTornError",
    "BundleUnsafeError",
    "BundleVersionError",
    "GoldenItem",
    "GoldenUser",
    "Manifest",
    "TextEncoder",
    "Watermark",
    "check_bundle",
    "check_target",
    "check_text_encoder",
    "check_user_tower",
    "load_text_encoder",
    "read_again",
    "read_bundle",
    "read_user_tower",
    "text_encoder_sha256",
    "tower_module",
    "write_bundle",
    "write_card",
]
