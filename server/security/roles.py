"""Which role a call needs: every method by name, and whatever is not named here is refused."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Role(Enum):
    """What a key may do. None includes another: a key that reads and writes has both."""

    READ = "read"
    INGEST = "ingest"
    ADMIN = "admin"
    AUDIENCE = "audience"
    OPEN = "open"
    """Needs no key. It cannot be given to one."""


GRANTED = (Role.READ, Role.INGEST, Role.ADMIN, Role.AUDIENCE)
"""The roles that a key can have."""

_METHODS: dict[Role, dict[str, tuple[str, ...]]] = {
    Role.READ: {
        "towerbridge.v1.RecommendationService": (
            *("Recommend", "BatchRecommend", "ScoreItems", "FindSimilarItems", "SearchVectors"),
        ),
        "towerbridge.v1.ItemService": ("GetItems",),
        "towerbridge.v1.UserService": ("GetUser", "GetConsent"),
        "towerbridge.v1.ReleaseService": ("GetRelease",),
    },
    Role.INGEST: {
        "towerbridge.v1.EventService": ("RecordEvents", "StreamEvents"),
        "towerbridge.v1.ItemService": ("UpsertItems", "RemoveItems", "SetAvailability"),
        "towerbridge.v1.UserService": ("SetProfile", "SetConsent", "LinkIdentity", "UnlinkIdentity"),
    },
    Role.ADMIN: {
        "towerbridge.v1.UserService": ("ExportUser", "EraseUser"),
        "towerbridge.v1.ReleaseService": ("ListReleases", "LoadRelease", "PromoteRelease", "RollbackRelease"),
        # Both names under which reflection is spoken.
        "grpc.reflection.v1.ServerReflection": ("ServerReflectionInfo",),
        "grpc.reflection.v1alpha.ServerReflection": ("ServerReflectionInfo",),
    },
    Role.AUDIENCE: {"towerbridge.v1.AudienceService": ("FindSimilarUsers", "FindAudience")},
    Role.OPEN: {"grpc.health.v1.Health": ("Check", "Watch", "List")},
}

ROLE_OF: Mapping[str, Role] = MappingProxyType(
    {
        f"/{service}/{method}": role
        for role, services in _METHODS.items()
        for service, methods in services.items()
        for method in methods
    }
)
"""Full method name, such as "/towerbridge.v1.EventService/RecordEvents" -> the role it needs."""

AUDITED = frozenset(method for method, role in ROLE_OF.items() if role is Role.ADMIN)
"""Calls that are answered only when the audit log has their line."""
