"""A bundle's user tower where its release computes."""

import logging

import torch

from index.bundle import Bundle, BundleError, check_user_tower, tower_module
from index.gpu.graph import DeviceTower, GraphedTower

_log = logging.getLogger(__name__)
_MOST_TOGETHER = 64
"""The largest batch that is recorded for a GPU: `engine.max_batch` as it comes."""


def user_tower_on(bundle: Bundle, device: torch.device) -> torch.nn.Module | None:
    """The tower, to be called with inputs on the host; its output is on the device. None if the bundle has none.

    On a GPU as CUDA graphs, if their vectors are the golden ones; else one operator after another, with a line in the log.
    """
    if bundle.user_program is None:
        return None
    tower = tower_module(bundle.user_program, device)
    if device.type == "cpu":
        return tower
    try:
        length, dim = bundle.manifest.history_length or 0, bundle.manifest.dim
        graphed = GraphedTower(tower, device, length=length, dim=dim, most=_MOST_TOGETHER)
        passed = check_user_tower(bundle, graphed)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, BundleError) as error:  # a device that is lost says so again at the next call
        problem = str(error).strip().partition("\n")[0]
        _log.warning("release %s runs its user tower without CUDA graphs, which is slower: %s", bundle.release_id, problem)
        return DeviceTower(tower, device)
    _log.info("release %s runs its user tower as CUDA graphs: golden users, %s", bundle.release_id, passed)
    return graphed
