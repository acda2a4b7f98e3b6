"""The server's image, laid out once."""

import pytest

from tests.docker.rootfs import SERVER, Rootfs
from tests.tiny import write_tiny_bundle


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Rootfs:
    rootfs = Rootfs(SERVER, tmp_path_factory.mktemp("image") / "server")
    write_tiny_bundle(rootfs.path("/bundles/live"))
    return rootfs
