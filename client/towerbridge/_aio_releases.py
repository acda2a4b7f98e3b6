"""The calls of `ReleaseCalls`, to be awaited."""

from towerbridge import v1
from towerbridge._aio_connection import AsyncConnection
from towerbridge._releases import LOAD_TIMEOUT_S
from towerbridge._values import string


class AsyncReleaseCalls(AsyncConnection):
    """The part of `AsyncClient` for those who roll out releases."""

    async def list_releases(self, *, timeout_s: float | None = None) -> v1.ListReleasesResponse:
        """`Client.list_releases`, awaited."""
        return await self._call(self._releases.ListReleases, v1.ListReleasesRequest(), timeout_s)

    async def load_release(self, bundle: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> v1.LoadReleaseResponse:
        """`Client.load_release`, awaited."""
        return await self._call(self._releases.LoadRelease, v1.LoadReleaseRequest(bundle=string("bundle", bundle)), timeout_s)

    async def promote_release(self, release_id: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> v1.PromoteReleaseResponse:
        """`Client.promote_release`, awaited."""
        return await self._call(
            self._releases.PromoteRelease, v1.PromoteReleaseRequest(release_id=string("release_id", release_id)), timeout_s
        )

    async def rollback_release(
        self, *, expected_live_release_id: str | None = None, timeout_s: float | None = None
    ) -> v1.RollbackReleaseResponse:
        """`Client.rollback_release`, awaited."""
        request = v1.RollbackReleaseRequest(expected_live_release_id=expected_live_release_id)
        return await self._call(self._releases.RollbackRelease, request, timeout_s)
