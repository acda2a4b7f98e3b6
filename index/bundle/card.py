"""The model card: the one file of a bundle that is for people alone, and that may change after the bundle was written.

It is no part of the release: the manifest does not list it, `release_id` does not know it and nothing that is served
depends on it. So an evaluation can complete it while servers hold the bundle. A reader only looks at its size.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from index.bundle.errors import BundleInvalidError, naming
from index.bundle.files import sync_directory
from index.bundle.format import MODEL_CARD, MODEL_CARD_BYTES
from index.bundle.manifest import read_manifest


def write_card(bundle: Path, text: str) -> None:
    """Put `text` (Markdown) into the bundle as its model card, in one step; an older card is replaced.

    Raises BundleError where `bundle` is none, or for a card of more than 1 MiB.
    """
    with naming(bundle):
        read_manifest(bundle)
        data = text.encode()
        if len(data) > MODEL_CARD_BYTES:
            raise BundleInvalidError(MODEL_CARD, f"has {len(data)} bytes, at most are {MODEL_CARD_BYTES}", "write less")
    # Written beside the bundle: a reader must not meet a file that is neither listed nor the card. Beside the directory
    # itself, where `bundle` is a link: the link may lie on another disk.
    bundle = bundle.resolve()
    aside = bundle.parent / f".{bundle.name}.{secrets.token_hex(6)}.card"
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(bundle / MODEL_CARD)
        sync_directory(bundle)
    finally:
        aside.unlink(missing_ok=True)
