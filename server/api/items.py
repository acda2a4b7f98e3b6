"""ItemService."""

import asyncio
import json
from collections.abc import Callable, Iterable

from towerbridge.v1 import common_pb2, item_pb2, item_pb2_grpc

from server.api.status import row_error
from server.api.wire import Context, deadline_of
from server.catalogue.attributes import from_wire, to_json, to_wire
from server.catalogue.catalogue import Catalogue, CatalogueItem
from server.catalogue.changes import CatalogueChanges
from server.config import Config
from server.errors import InvalidField, NotFound
from server.fields import ROWS_MAX, check_count, check_embedding, check_id, check_ids, check_text, check_vector
from server.journal.items import ItemContent
from server.journal.revision import to_token
from server.journal.writer import JournalWriter
from server.releases.release import Release

_TEXT_BYTES = 8_192
_CATEGORIES_MAX = 64
_ATTRIBUTES_MAX = 64
_ATTRIBUTE_NAME_BYTES = 64
_ATTRIBUTES_BYTES = 65_536
_RESERVED = ("text", "categories")


class ItemServicer(item_pb2_grpc.ItemServiceServicer):
    def __init__(
        self,
        changes: CatalogueChanges,
        catalogue: Catalogue,
        journal: JournalWriter,
        release: Callable[[], Release],
        config: Config,
    ) -> None:
        self._changes = changes
        self._catalogue = catalogue
        self._journal = journal
        self._release = release
        self._default_deadline_ms = config.listen.default_deadline_ms

    async def UpsertItems(self, request: item_pb2.UpsertItemsRequest, context: Context) -> item_pb2.UpsertItemsResponse:
        check_count(len(request.items), "items", ROWS_MAX, minimum=1)
        release = self._release()
        results: list[item_pb2.UpsertItemsResult | None] = []
        contents = []
        for place, message in enumerate(request.items):
            try:
                contents.append(_content(message, release))
                results.append(None)
            except InvalidField as error:
                results.append(item_pb2.UpsertItemsResult(error=row_error(error.under(f"items[{place}]"))))
        deadline = self._deadline(context)
        # Changes wait for encoder, engine and disk, so they run in threads, off the event loop.
        done = iter(await asyncio.to_thread(self._changes.upsert, contents, deadline) if contents else ())
        filled = [result or _upserted(*next(done)) for result in results]
        return item_pb2.UpsertItemsResponse(results=filled, revision=self._revision())

    async def RemoveItems(self, request: item_pb2.RemoveItemsRequest, context: Context) -> item_pb2.RemoveItemsResponse:
        check_count(len(request.item_ids), "item_ids", ROWS_MAX, minimum=1)
        errors = _id_errors(request.item_ids, "item_ids[{}]")
        good = [item_id for item_id, error in zip(request.item_ids, errors, strict=True) if error is None]
        removed = await asyncio.to_thread(self._changes.remove, good, self._deadline(context)) if good else set()
        results = [
            item_pb2.RemoveItemsResult(removed=error is None and item_id in removed, error=error)
            for item_id, error in zip(request.item_ids, errors, strict=True)
        ]
        return item_pb2.RemoveItemsResponse(results=results, revision=self._revision())

    async def GetItems(self, request: item_pb2.GetItemsRequest, context: Context) -> item_pb2.GetItemsResponse:
        item_ids = check_ids(request.item_ids, "item_ids", ROWS_MAX, minimum=1)
        release = self._release()
        response = item_pb2.GetItemsResponse()
        for item_id in item_ids:
            item = self._catalogue.get(item_id)
            if item is None:
                response.missing_item_ids.append(item_id)
            else:
                response.items.append(_catalogue_item(item, release))
        return response

    async def SetAvailability(
        self, request: item_pb2.SetAvailabilityRequest, context: Context
    ) -> item_pb2.SetAvailabilityResponse:
        check_count(len(request.items), "items", ROWS_MAX, minimum=1)
        ids = [change.item_id for change in request.items]
        errors = _id_errors(ids, "items[{}].item_id")
        pairs = zip(request.items, errors, strict=True)
        good = [(change.item_id, change.available) for change, error in pairs if error is None]
        known = await asyncio.to_thread(self._changes.set_available, good, self._deadline(context)) if good else set()
        response = item_pb2.SetAvailabilityResponse(revision=self._revision())
        for place, (item_id, error) in enumerate(zip(ids, errors, strict=True)):
            if error is None and item_id not in known:
                error = row_error(NotFound(f"no item {item_id!r} is in the catalogue"), f"items[{place}].item_id")
            response.results.append(item_pb2.SetAvailabilityResult(error=error))
        return response

    def _deadline(self, context: Context) -> float:
        return deadline_of(context, self._default_deadline_ms)

    def _revision(self) -> str:
        return to_token(self._journal.epoch, self._journal.revision)


def _content(message: item_pb2.Item, release: Release) -> ItemContent:
    item_id = check_id(message.item_id, "item_id")
    check_text(message.text, "text", _TEXT_BYTES)
    categories = check_ids(message.categories, "categories", _CATEGORIES_MAX)
    embedding = vector = None
    if message.text_embedding:
        embedding = check_embedding(message.text_embedding, "text_embedding", release.item_vectors.text_dim)
    if message.vector:
        vector = check_vector(message.vector, "vector", release.bundle.manifest.dim)
    return ItemContent(
        item_id=item_id,
        text=message.text,
        categories=json.dumps(categories, ensure_ascii=False),
        attributes=_attributes(message),
        text_embedding=None if embedding is None else embedding.astype("<f4").tobytes(),
        encoder_sha256=None if embedding is None else release.item_vectors.encoder_sha256,
        embedding_given=embedding is not None,
        vector=None if vector is None else vector.astype("<f4").tobytes(),
        vector_release=None if vector is None else release.release_id,
    )


def _attributes(message: item_pb2.Item) -> str:
    check_count(len(message.attributes), "attributes", _ATTRIBUTES_MAX)
    values = {}
    for name, value in message.attributes.items():
        if not 1 <= len(name.encode()) <= _ATTRIBUTE_NAME_BYTES:
            raise InvalidField(f"attributes[{name[:80]}]", f"the name must have 1 to {_ATTRIBUTE_NAME_BYTES} bytes of UTF-8")
        if name in _RESERVED:
            raise InvalidField(f"attributes[{name}]", "is a reserved name; send it as the item's own field")
        try:
            values[name] = from_wire(value)
        except ValueError as error:
            raise InvalidField(f"attributes[{name}]", str(error)) from None
    return check_text(to_json(values), "attributes", _ATTRIBUTES_BYTES)


def _id_errors(item_ids: Iterable[str], field: str) -> list[common_pb2.RowError | None]:
    errors: list[common_pb2.RowError | None] = []
    for place, item_id in enumerate(item_ids):
        try:
            check_id(item_id, field.format(place))
            errors.append(None)
        except InvalidField as error:
            errors.append(row_error(error))
    return errors


def _upserted(created: bool, searchable: bool) -> item_pb2.UpsertItemsResult:
    return item_pb2.UpsertItemsResult(created=created, searchable=searchable)


def _catalogue_item(item: CatalogueItem, release: Release) -> item_pb2.CatalogueItem:
    attributes = {name: to_wire(value) for name, value in json.loads(item.attributes).items()}
    return item_pb2.CatalogueItem(
        item=item_pb2.Item(item_id=item.item_id, text=item.text, categories=json.loads(item.categories), attributes=attributes),
        available=item.available,
        searchable=release.can_find(item.ordinal),
        popularity=release.popularity.of(item.ordinal),
    )
