"""What python -m bench.fuzz found."""

from pathlib import Path

import pytest
import towerbridge

from tests.server.releasing import serving, write_bundles


@pytest.mark.parametrize("name", ["a\0b", "circle", "n" * 300])
def test_a_bundle_that_is_no_directorys_name_is_the_callers_error(tmp_path: Path, name: str):
    """It was INTERNAL, with a traceback."""
    write_bundles(tmp_path, "a")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with (
        serving(tmp_path / "a", tmp_path / "data", releases={"bundles": [tmp_path]}) as served,
        pytest.raises(towerbridge.InvalidArgument, match="bundle"),
    ):
        served.client.load_release(name)
