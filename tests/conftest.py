"""For every test: no server compiles its tower, and what needs CUDA is skipped without it."""

import os

import pytest

# It takes 20 seconds of a processor, once a data directory; tests that are about it say so themselves.
os.environ.setdefault("TOWERBRIDGE__ENGINE__COMPILE", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped, and so counted, where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
