"""Before the first request: is the device there, and has every computation run once?"""

import logging
import time

import numpy as np
import torch
from numpy.typing import NDArray

from index.bundle import Bundle
from server.catalogue.text_worker import TextWorker
from server.errors import ServiceError, StartupError
from server.releases.release import Release
from server.users.histories import History

_log = logging.getLogger(__name__)
CHECK = "see the lines above, and python -m training check"


def check_device(device: str) -> None:
    """Raises StartupError if the device is not there."""
    if not device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise StartupError(
            f"engine.device is {device} but torch sees no CUDA device; install the driver and the gpu extra "
            "(in an environment of its own: pip install -e '.[gpu]'), or use --device cpu"
        )
    if torch.device(device).index is not None and torch.device(device).index >= torch.cuda.device_count():
        raise StartupError(f"engine.device is {device} but there are {torch.cuda.device_count()} CUDA devices, counted from 0")


def warm_up(release: Release, texts: TextWorker | None) -> None:
    """Runs each computation once, so that no request pays for first calls. Raises StartupError if the text encoder fails."""
    started = time.monotonic()
    if texts is not None:
        warm_up_texts(release.bundle, texts)
    for vectors in encode_once(release):
        release.index.search(torch.from_numpy(vectors).to(release.device), [10] * len(vectors))
    _log.info("warmed up in %.1f s", time.monotonic() - started)


def encode_once(release: Release) -> list[NDArray[np.float32]]:
    """Runs the user tower once at each of some sizes, and returns the vectors."""
    ordinals = np.arange(min(release.bundle.items.num_rows, release.bundle.manifest.history_length or 0), dtype=np.int32)
    history = History(
        ordinals=ordinals + 1,
        types=np.zeros(len(ordinals), dtype=np.int16),
        times_us=np.arange(len(ordinals), dtype=np.int64),
        version=1,
        counted=len(ordinals),
        generation=0,
    )
    if release.has_user_tower and release.counts(history):
        return [release.encode([history] * batch) for batch in (1, 2, 4, 8)]
    return []


def warm_up_texts(bundle: Bundle, texts: TextWorker) -> None:
    """Loads the text encoder. Raises StartupError if it does not work."""
    path, expected = bundle.path, bundle.manifest.text.dim
    try:
        found = texts.encode(["warm up"]).shape[1]
    except ServiceError as error:
        raise StartupError(f"{path}: the text encoder does not work: {error}; {CHECK}") from None
    if found != expected:
        raise StartupError(f"{path}: the text encoder gives {found} components, the manifest says {expected}; train it again")
