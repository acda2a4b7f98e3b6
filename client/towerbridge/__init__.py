"""Client of Towerbridge: real-time two-tower embeddings and vector retrieval for personalisation over gRPC.

>>> import towerbridge
>>> with towerbridge.Client("localhost:50051") as client:
...     client.record_events([towerbridge.event("view", "1", user_id="ann")])
...     answer = client.recommend(user_id="ann", limit=10, attributes=["title"])

Methods return the messages of the contract, `towerbridge.v1`; errors are the tree of TowerbridgeError.
"""

from towerbridge import v1
from towerbridge._aio import AsyncClient
from towerbridge._client import Client
from towerbridge._errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TowerbridgeError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from towerbridge._filters import between, exists, match, match_profile, where
from towerbridge._people_requests import person
from towerbridge._replies import attribute_values, rejected
from towerbridge._requests import recommend_request
from towerbridge._rows import event, item
from towerbridge._version import __version__

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "TowerbridgeError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
    "attribute_values",
    "between",
    "event",
    "exists",
    "item",
    "match",
    "match_profile",
    "person",
    "recommend_request",
    "rejected",
    "v1",
    "where",
]
