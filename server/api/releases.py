"""ReleaseService."""

from collections.abc import Callable

from towerbridge.v1 import release_pb2, release_pb2_grpc

from server.api.wire import Context
from server.catalogue.catalogue import Catalogue
from server.releases.release import Release


class ReleaseServicer(release_pb2_grpc.ReleaseServiceServicer):
    def __init__(self, catalogue: Catalogue, release: Callable[[], Release]) -> None:
        self._catalogue = catalogue
        self._release = release

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
