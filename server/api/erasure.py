"""EraseUser and ExportUser, for the UserService."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from towerbridge.v1 import user_pb2

from server.api.people import decode_person, encode_person
from server.api.wire import to_timestamp
from server.errors import NotFound
from server.journal.people import named
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.releases.releases import Releases
from server.users.erasure import Erasure
from server.users.people import People
from server.users.portability import held_about
from server.waiting import result_of

_LATE = "the erasure goes on, unless the server is stopped first; repeat the call until it gives receipts"


class ErasureCalls:
    """What UserService hands over for these two calls."""

    def __init__(self, erasure: Erasure, people: People, journal: JournalWriter, path: Path, releases: Releases) -> None:
        """path: the journal's file."""
        self._erasure = erasure
        self._people = people
        self._journal = journal
        self._path = path
        self._releases = releases

    async def erase(self, request: user_pb2.EraseUserRequest, deadline: float) -> user_pb2.EraseUserResponse:
        """deadline: time.monotonic seconds."""
        person = decode_person(request.person)
        forgotten = await result_of(self._erasure.erase(person), deadline, late=_LATE)
        erased = forgotten.erased
        return user_pb2.EraseUserResponse(
            erased=[encode_person(one) for one in erased.people],
            erased_at=to_timestamp(erased.erased_us),
            receipts=[
                user_pb2.ErasureReceipt(store=one.store, count=one.removed, detail=one.detail) for one in forgotten.receipts
            ],
            trained_release_ids=erased.trained_releases,
            unknown_release_ids=erased.unknown_releases,
            revision=to_token(self._journal.epoch, self._journal.revision),
        )

    async def export(self, request: user_pb2.ExportUserRequest) -> AsyncIterator[user_pb2.ExportUserResponse]:
        """The parts, each read when the one before has been sent."""
        person = decode_person(request.person)
        key = self._people.directory.find(person)
        if key is None:
            raise NotFound(f"nothing is held about {named(person)}")
        parts = held_about(self._path, self._people.directory, key, self._releases)
        reading: asyncio.Future[str | None] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(asyncio.to_thread(next, parts, None))
                part = await asyncio.shield(reading)
                if part is None:
                    return
                if part:
                    yield user_pb2.ExportUserResponse(json_lines=part)
        finally:
            if reading is not None and not reading.done():  # its caller is gone, and a thread still reads
                await asyncio.wait([reading])
            parts.close()
