"""What callers write: events and items, made from Python values."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime

from towerbridge._values import AttributeInput, Floats, attribute_value, floats, string, strings, timestamp
from towerbridge.v1 import Event, Item


def event(
    type: str,
    item_id: str,
    *,
    user_id: str | None = None,
    visitor_id: str | None = None,
    occurred_at: datetime | None = None,
    event_id: str | None = None,
) -> Event:
    """Something that a person did with an item, for `record_events`.

    The event_id is what makes recording safe to repeat. Without one a random id is drawn here, once: keep the returned
    event and record the same one again after an error. An id of your own (an order line, a log offset) is safe across
    restarts too.

    Args:
        type: what was done, such as "view", "cart" or "purchase".
        item_id: the item; it need not be in the catalogue yet.
        user_id: a known user; exactly one of this and visitor_id.
        visitor_id: an anonymous visitor.
        occurred_at: when, with a time zone; None: when the server receives it.
        event_id: unique for each event, the same on every retry; None: drawn.

    Raises:
        TypeError: not exactly one of user_id and visitor_id, or an id that is not a str.
        ValueError: occurred_at has no time zone.
    """
    if (user_id is None) == (visitor_id is None):
        raise TypeError("an event needs exactly one of user_id and visitor_id")
    drawn = uuid.uuid4().hex if event_id is None else string("event_id", event_id)
    result = Event(event_id=drawn, type=string("type", type), item_id=string("item_id", item_id))
    if user_id is not None:
        result.user_id = string("user_id", user_id)
    if visitor_id is not None:
        result.visitor_id = string("visitor_id", visitor_id)
    if occurred_at is not None:
        result.occurred_at.CopyFrom(timestamp("occurred_at", occurred_at))
    return result


def item(
    item_id: str,
    *,
    text: str = "",
    categories: Iterable[str] = (),
    attributes: Mapping[str, AttributeInput] | None = None,
    text_embedding: Floats | None = None,
    vector: Floats | None = None,
) -> Item:
    """An item of the catalogue, for `upsert_items`, which replaces it whole.

    Args:
        item_id: the item's id.
        text: what the text tower reads, such as a title.
        categories: such as genres.
        attributes: values to return with answers: str, number, bool, datetime with a time zone, or list of str. Numbers
            come back as float. None leaves the attribute out.
        text_embedding: (T,) a text embedding made elsewhere with the release's own text encoder.
        vector: (D,) an item vector in the live release's space.

    Raises:
        TypeError: a value of a kind that the contract does not have.
        ValueError: a datetime without a time zone, or an int that a double cannot hold.
    """
    given = {} if attributes is None else attributes
    return Item(
        item_id=string("item_id", item_id),
        text=string("text", text),
        categories=strings("categories", categories),
        attributes={name: attribute_value(name, value) for name, value in given.items() if value is not None},
        text_embedding=() if text_embedding is None else floats("text_embedding", text_embedding),
        vector=() if vector is None else floats("vector", vector),
    )
