"""The role map names every method there is, and nothing else."""

import importlib
import pkgutil

import pytest
import towerbridge.v1
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from server.security.roles import AUDITED, GRANTED, ROLE_OF, Role

BOTH_NAMES = {f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")}


def methods(file: FileDescriptor) -> set[str]:
    return {f"/{service.full_name}/{method.name}" for service in file.services_by_name.values() for method in service.methods}


def contract() -> set[str]:
    """Every method of every service of towerbridge.v1."""
    names = [module.name for module in pkgutil.iter_modules(towerbridge.v1.__path__) if module.name.endswith("_pb2")]
    return set().union(*(methods(importlib.import_module(f"towerbridge.v1.{name}").DESCRIPTOR) for name in names))


def test_every_method_is_in_the_map_and_every_name_in_the_map_is_a_method():
    ours, others = contract(), methods(health_pb2.DESCRIPTOR) | methods(reflection_pb2.DESCRIPTOR)
    assert len(ours) >= 26 and others
    missing = (ours | others) - ROLE_OF.keys()
    assert not missing, f"server/security/roles.py must say who may call {sorted(missing)}"
    assert {name for name in ROLE_OF if name.startswith("/towerbridge.")} == ours
    assert {name for name in ROLE_OF if name.startswith("/grpc.reflection.")} == BOTH_NAMES


def test_only_health_is_open_and_no_key_can_have_that_role():
    assert {name.rpartition("/")[0] for name, role in ROLE_OF.items() if role is Role.OPEN} == {"/grpc.health.v1.Health"}
    assert set(GRANTED) == set(Role) - {Role.OPEN}


def test_what_changes_or_names_people_or_releases_for_good_is_audited():
    assert set(AUDITED) == BOTH_NAMES | {
        "/towerbridge.v1.UserService/EraseUser",
        "/towerbridge.v1.UserService/ExportUser",
        "/towerbridge.v1.ReleaseService/ListReleases",
        "/towerbridge.v1.ReleaseService/LoadRelease",
        "/towerbridge.v1.ReleaseService/PromoteRelease",
        "/towerbridge.v1.ReleaseService/RollbackRelease",
    }


@pytest.mark.parametrize("name", ["/towerbridge.v1.EventService/Nothing", "/towerbridge.v2.EventService/RecordEvents", ""])
def test_what_is_not_in_the_map_has_no_role(name: str):
    assert name not in ROLE_OF


def test_the_map_cannot_be_changed():
    with pytest.raises(TypeError):
        ROLE_OF["/towerbridge.v1.UserService/EraseUser"] = Role.OPEN  # type: ignore[index]
