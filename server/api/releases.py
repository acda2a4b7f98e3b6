"""ReleaseService."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from towerbridge.v1 import release_pb2, release_pb2_grpc

from server.api.wire import Context, deadline_of, to_timestamp
from server.catalogue.catalogue import Catalogue
from server.fields import check_text
from server.releases.control import ReleaseControl
from server.releases.going_live import Promoted
from server.releases.release import Release
from server.waiting import result_of

_PATH_BYTES = 4_096
_ID_BYTES = 256
_STATES = {
    "live": release_pb2.RELEASE_STATE_LIVE,
    "previous": release_pb2.RELEASE_STATE_PREVIOUS,
    "loaded": release_pb2.RELEASE_STATE_LOADED,
}
_CONFIRM_SECONDS = 2.0  # after the deadline nothing begins to be changed; what has begun is told to whoever still waits
_LOADING = "the load goes on: repeat the call to wait for it, or watch ListReleases"
_CHANGING = "the change was not confirmed in time; GetRelease says which release is live"


class ReleaseServicer(release_pb2_grpc.ReleaseServiceServicer):
    def __init__(
        self, catalogue: Catalogue, release: Callable[[], Release], control: ReleaseControl, default_deadline_ms: int
    ) -> None:
        self._catalogue = catalogue
        self._release = release
        self._control = control
        self._default_deadline_ms = default_deadline_ms

    async def GetRelease(self, request: release_pb2.GetReleaseRequest, context: Context) -> release_pb2.GetReleaseResponse:
        release = self._release()
        manifest = release.bundle.manifest
        response = release_pb2.GetReleaseResponse(
            release_id=release.release_id,
            dim=manifest.dim,
            text_dim=manifest.text.dim,
            history_length=manifest.history_length or 0,
            event_types=sorted(manifest.event_types),
            item_count=len(self._catalogue),
            searchable_item_count=release.searchable_count(),
            offline_metrics=dict(manifest.offline_metrics),
            index_kind=release.index.engine.kind,
            device=str(release.device),
        )
        response.created_at.FromDatetime(manifest.created_at)
        return response

    async def ListReleases(
        self, request: release_pb2.ListReleasesRequest, context: Context
    ) -> release_pb2.ListReleasesResponse:
        control = self._control
        loading, failed = control.loading, control.failed
        releases = [self._held(release) for release in control.ready()]
        if loading is not None:
            releases.append(
                release_pb2.HeldRelease(
                    release_id=loading.release_id,
                    state=release_pb2.RELEASE_STATE_LOADING,
                    bundle=str(loading.path),
                    progress=loading.progress,
                    stage=loading.stage,
                )
            )
        if failed is not None:
            releases.append(
                release_pb2.HeldRelease(
                    release_id=failed.release_id,
                    state=release_pb2.RELEASE_STATE_FAILED,
                    bundle=str(failed.path),
                    error=failed.error,
                )
            )
        return release_pb2.ListReleasesResponse(releases=releases)

    async def LoadRelease(self, request: release_pb2.LoadReleaseRequest, context: Context) -> release_pb2.LoadReleaseResponse:
        bundle = check_text(request.bundle, "bundle", _PATH_BYTES, minimum=1)
        load = await asyncio.to_thread(self._control.load, bundle)
        return release_pb2.LoadReleaseResponse(
            release=self._held(await result_of(load, self._deadline(context), late=_LOADING))
        )

    async def PromoteRelease(
        self, request: release_pb2.PromoteReleaseRequest, context: Context
    ) -> release_pb2.PromoteReleaseResponse:
        release_id = check_text(request.release_id, "release_id", _ID_BYTES, minimum=1)
        deadline = self._deadline(context)
        done = await self._changed(self._control.promote(release_id, deadline), deadline)
        return release_pb2.PromoteReleaseResponse(
            release=self._held(done.release), previous_release_id=done.previous_id, people_ready=done.people_ready
        )

    async def RollbackRelease(
        self, request: release_pb2.RollbackReleaseRequest, context: Context
    ) -> release_pb2.RollbackReleaseResponse:
        expected = None
        if request.HasField("expected_live_release_id"):
            expected = check_text(request.expected_live_release_id, "expected_live_release_id", _ID_BYTES)
        deadline = self._deadline(context)
        done = await self._changed(self._control.rollback(expected, deadline), deadline)
        return release_pb2.RollbackReleaseResponse(release=self._held(done.release), previous_release_id=done.previous_id)

    async def _changed(self, change: Future[Promoted], deadline: float) -> Promoted:
        return await result_of(change, deadline + _CONFIRM_SECONDS, late=_CHANGING)

    def _deadline(self, context: Context) -> float:
        return deadline_of(context, self._default_deadline_ms)

    def _held(self, release: Release) -> release_pb2.HeldRelease:
        control = self._control
        held = release_pb2.HeldRelease(
            release_id=release.release_id,
            state=_STATES[control.state_of(release)],
            bundle=str(release.bundle.path),
            progress=1.0,
            memory_bytes=release.memory_bytes(),
            index_kind=release.index.engine.kind,
        )
        held.created_at.FromDatetime(release.bundle.manifest.created_at)
        for field, us in ((held.loaded_at, control.loaded_us(release)), (held.promoted_at, control.promoted_us(release))):
            if us is not None:
                field.CopyFrom(to_timestamp(us))
        return held
