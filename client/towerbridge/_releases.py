"""Calls of the synchronous client that change which release is live."""

from towerbridge import v1
from towerbridge._connection import Connection
from towerbridge._values import string

LOAD_TIMEOUT_S = 600.0
"""Seconds that a load or a promotion may take, unless a call says otherwise."""


class ReleaseCalls(Connection):
    """The part of `Client` for those who roll out releases. Needs a key with the role admin, where keys are needed."""

    def list_releases(self, *, timeout_s: float | None = None) -> v1.ListReleasesResponse:
        """The releases that the server holds: the live one first, then the one before it, then those loaded or loading."""
        return self._call(self._releases.ListReleases, v1.ListReleasesRequest(), timeout_s)

    def load_release(self, bundle: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> v1.LoadReleaseResponse:
        """Loads the bundle in a directory on the server, beside the live release, and waits until it can be promoted.

        The load goes on when the caller leaves; the same call waits for it again. `list_releases` tells how far it is.
        """
        return self._call(self._releases.LoadRelease, v1.LoadReleaseRequest(bundle=string("bundle", bundle)), timeout_s)

    def promote_release(self, release_id: str, *, timeout_s: float = LOAD_TIMEOUT_S) -> v1.PromoteReleaseResponse:
        """Makes a loaded release the live one. DeadlineExceeded: it is not, if the server could say so in time.

        Args:
            release_id: as `load_release` gave it.
            timeout_s: seconds for this call, in which the vectors of people who were active last are computed.
        """
        return self._call(
            self._releases.PromoteRelease, v1.PromoteReleaseRequest(release_id=string("release_id", release_id)), timeout_s
        )

    def rollback_release(
        self, *, expected_live_release_id: str | None = None, timeout_s: float | None = None
    ) -> v1.RollbackReleaseResponse:
        """Makes the release live again that was so before. It is never sent twice by itself.

        Args:
            expected_live_release_id: the release that must be live now; otherwise FailedPrecondition. With it the call may be
                repeated and does not go back and forth.
            timeout_s: seconds for this call; None: the client's.
        """
        request = v1.RollbackReleaseRequest(expected_live_release_id=expected_live_release_id)
        return self._call(self._releases.RollbackRelease, request, timeout_s)
