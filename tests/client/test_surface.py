"""What is public, and that its parts agree with each other and with the contract."""

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import towerbridge
from google.protobuf.descriptor import FileDescriptor
from towerbridge import v1
from towerbridge._channel import service_config
from towerbridge.v1 import (
    audience_pb2,
    common_pb2,
    event_pb2,
    filter_pb2,
    item_pb2,
    recommendation_pb2,
    release_pb2,
    user_pb2,
)

ROOT = Path(__file__).parents[2]
MODULES = (audience_pb2, common_pb2, event_pb2, filter_pb2, item_pb2, recommendation_pb2, release_pb2, user_pb2)
FILES: list[FileDescriptor] = [module.DESCRIPTOR for module in MODULES]
STREAMED = {"export_user", "find_audience", "find_similar_users", "stream_events"}
RPC_NAMES = [method.name for file in FILES for service in file.services_by_name.values() for method in service.methods]


def public_methods(client: type) -> dict[str, Any]:
    members = inspect.getmembers(client, inspect.isfunction)
    return {name: value for name, value in members if not name.startswith("_") or name == "__init__"}


def test_the_public_names_are_these() -> None:
    assert towerbridge.__all__ == [
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
    assert all(hasattr(towerbridge, name) for name in towerbridge.__all__)


def test_every_module_but_the_contract_is_private() -> None:
    modules = {path.stem for path in (ROOT / "client" / "towerbridge").glob("*.py")}
    assert all(name.startswith("_") for name in modules)


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert towerbridge.__version__ == project["version"]


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "client" / "towerbridge" / "py.typed").exists()


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    sync, asynchronous = public_methods(towerbridge.Client), public_methods(towerbridge.AsyncClient)
    assert sync.keys() == asynchronous.keys()
    for name in sync:
        assert arguments_of(sync[name]) == arguments_of(asynchronous[name]), name
        assert inspect.iscoroutinefunction(asynchronous[name]) == (name not in {"__init__", *STREAMED}), name


def arguments_of(method: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("name", RPC_NAMES)
def test_every_rpc_has_a_method_of_its_name(name: str) -> None:
    method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    assert method in public_methods(towerbridge.Client)


def test_every_message_and_enum_of_the_contract_is_exported() -> None:
    named = {name for file in FILES for name in [*file.message_types_by_name, *file.enum_types_by_name]}
    assert set(v1.__all__) == named
    assert all(hasattr(v1, name) for name in named)


@pytest.mark.parametrize(
    ("method", "request_type", "flattened"),
    [
        ("recommend", "RecommendRequest", {"subject", "search"}),
        ("score_items", "ScoreItemsRequest", {"subject"}),
        ("find_similar_items", "FindSimilarItemsRequest", {"search"}),
        ("search_vectors", "SearchVectorsRequest", {"search"}),
        ("batch_recommend", "BatchRecommendRequest", set()),
        ("record_events", "RecordEventsRequest", set()),
        ("upsert_items", "UpsertItemsRequest", set()),
        ("remove_items", "RemoveItemsRequest", set()),
        ("get_items", "GetItemsRequest", set()),
        ("set_availability", "SetAvailabilityRequest", set()),
        ("get_user", "GetUserRequest", set()),
        ("get_release", "GetReleaseRequest", set()),
        ("list_releases", "ListReleasesRequest", set()),
        ("load_release", "LoadReleaseRequest", set()),
        ("promote_release", "PromoteReleaseRequest", set()),
        ("rollback_release", "RollbackReleaseRequest", set()),
        ("set_profile", "SetProfileRequest", {"person", "profile"}),
        ("get_consent", "GetConsentRequest", {"person"}),
        ("export_user", "ExportUserRequest", {"person"}),
        ("erase_user", "EraseUserRequest", {"person"}),
        ("find_similar_users", "FindSimilarUsersRequest", {"person"}),
        ("find_audience", "FindAudienceRequest", set()),
    ],
)
def test_arguments_are_named_as_the_requests_fields(method: str, request_type: str, flattened: set[str]) -> None:
    fields = set(getattr(v1, request_type).DESCRIPTOR.fields_by_name)
    assert flattened <= fields
    expected = fields - flattened
    if "subject" in flattened:
        expected |= {"user_id", "visitor_id", "history", "vector", "release_id"}
    if "person" in flattened:
        expected |= {"user_id", "visitor_id"}
    if "profile" in flattened:
        expected |= set(v1.Profile.DESCRIPTOR.fields_by_name)
    if "search" in flattened:
        expected |= set(v1.SearchOptions.DESCRIPTOR.fields_by_name)
    arguments = set(inspect.signature(getattr(towerbridge.Client, method)).parameters)
    assert arguments - {"self", "timeout_s"} == expected


def test_the_service_config_names_every_service_of_the_contract() -> None:
    named = {entry["service"] for entry in json.loads(service_config(3))["methodConfig"][0]["name"]}
    assert named == {service.full_name for file in FILES for service in file.services_by_name.values()}


def test_the_guide_prints_the_service_config_that_the_client_uses() -> None:
    guide = (ROOT / "docs" / "calling.md").read_text(encoding="utf-8")
    printed = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", guide, flags=re.DOTALL)]
    assert json.loads(service_config(3)) in printed


def test_the_guide_mentions_every_public_name_and_method() -> None:
    guide = (ROOT / "docs" / "calling.md").read_text(encoding="utf-8")
    names = {*towerbridge.__all__, *public_methods(towerbridge.Client)} - {"__version__", "__init__"}
    assert {name for name in names if not re.search(rf"\b{name}\b", guide)} == set()


def test_the_guides_python_compiles() -> None:
    guide = (ROOT / "docs" / "calling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "calling.md", "exec")
