"""A release's computations on CUDA tensors without values: nothing may lie on the wrong device."""

import io

import numpy as np
import torch

from index.bundle.towers import tower_bytes
from index.exact import ExactSearch
from index.gpu.graph import DeviceTower
from index.items import ItemIndex
from index.matrix import VectorMatrix
from server.releases.release import Release
from server.users.histories import History
from tests.index.gpu.fake_cuda import DEVICE, fake_cuda, fake_tower
from tests.server.conftest import Serve


def move(release: Release, program: torch.export.ExportedProgram) -> None:
    """To the fake device, as a release that was loaded there."""
    old = release.index
    used = np.flatnonzero(old.matrix.holds(np.arange(old.slots.extent)))
    matrix = VectorMatrix(old.matrix.dim, device=DEVICE, chunk_rows=4096)
    release.device = torch.device(DEVICE)
    release.index = ItemIndex(old.slots, matrix, ExactSearch(old.slots, matrix))
    release.index.set_vectors(used, np.zeros((len(used), matrix.dim), dtype=np.float32))
    release._user_tower = DeviceTower(fake_tower(program), torch.device(DEVICE))


def test_encoding_searching_and_scoring_keep_to_the_device(serve: Serve):
    release = serve().app.tenant.live
    assert release.bundle.user_program is not None
    program = torch.export.load(io.BytesIO(tower_bytes(release.bundle.user_program, "tower")))  # a copy, to be consumed
    history = History(
        ordinals=np.arange(1, 4, dtype=np.int32),
        types=np.zeros(3, dtype=np.int16),
        times_us=np.arange(3, dtype=np.int64) * 1_000_000,
        version=1,
        counted=3,
        generation=0,
    )
    with torch.no_grad(), fake_cuda():
        move(release, program)
        vectors = release.encode([history, history])
        assert vectors.shape == (2, 8)
        found = release.index.search(torch.from_numpy(vectors).to(release.device), [5, 3])
        assert [len(one.slots) for one in found] == [5, 3]
        assert release.score(vectors[0], np.array([1, 2])).shape == (2,)
        one = release.item_vector(1)
        assert one is not None and one.shape == (8,)
