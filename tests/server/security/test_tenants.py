"""Two tenants of one server with the same ids: neither sees, infers or writes what is the other's."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import towerbridge
from google.protobuf.message import Message
from towerbridge import v1

from server.security.key_file import create
from server.security.roles import GRANTED, ROLE_OF, Role
from tests.server.erasing import found
from tests.server.security.keyring import eventually
from tests.server.security.secured import CALL_S, OURS, Secured, answer, bearer, secured
from tests.tiny import write_tiny_bundle

Code = grpc.StatusCode
USERS, READS = "/towerbridge.v1.UserService", "/towerbridge.v1.RecommendationService"
EVENTS, ITEMS, RELEASES = "/towerbridge.v1.EventService", "/towerbridge.v1.ItemService", "/towerbridge.v1.ReleaseService"


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
def server(bundle_path: Path, tmp_path: Path, bundles: Path) -> Iterator[Secured]:
    sections = {"audience": {"enabled": True}, "metrics": {"port": 0}, "releases": {"bundles": [bundles]}}
    with secured(bundle_path, tmp_path, ("acme", "other"), **sections) as running:
        yield running


def call(server: Secured, tenant: str, method: str, request: Message, response: type[Any] | None = None) -> Any:
    """The response, of a tenant's call with the right key; without a type of response the whole answer."""
    got = server.answer(method, request, role=ROLE_OF[method], tenant=tenant)
    if response is None:
        return got
    assert got.code is Code.OK, got
    return response.FromString(got.data)


def view(person: str, item: str, event_id: str) -> v1.Event:
    return v1.Event(event_id=event_id, user_id=person, item_id=item, type="view")


def record(server: Secured, tenant: str, *events: v1.Event) -> v1.RecordEventsResponse:
    request = v1.RecordEventsRequest(events=events)
    return call(server, tenant, f"{EVENTS}/RecordEvents", request, v1.RecordEventsResponse)  # type: ignore[no-any-return]


def ann() -> v1.Person:
    return v1.Person(user_id="ann")


def get_user(server: Secured, tenant: str, user_id: str = "ann") -> v1.GetUserResponse:
    request = v1.GetUserRequest(user_id=user_id)
    return call(server, tenant, f"{USERS}/GetUser", request, v1.GetUserResponse)  # type: ignore[no-any-return]


def test_the_same_ids_are_other_people_items_and_events(server: Secured):
    assert record(server, "acme", view("ann", "item-5", "e-1")).results[0].status == v1.EventStatus.EVENT_STATUS_ACCEPTED
    same = record(server, "other", view("ann", "item-7", "e-1"))
    assert same.results[0].status == v1.EventStatus.EVENT_STATUS_ACCEPTED, "no duplicate, and no clash: it is another event"
    assert list(get_user(server, "acme").item_ids) == ["item-5"]
    assert list(get_user(server, "other").item_ids) == ["item-7"]
    for tenant, seen in {"acme": "item-5", "other": "item-7"}.items():
        ask = v1.RecommendRequest(subject=v1.Subject(user_id="ann"), limit=50, exclude_seen=True)
        items = set(call(server, tenant, f"{READS}/Recommend", ask, v1.RecommendResponse).item_ids)
        assert len(items) == 49 and seen not in items


def test_what_one_removes_or_withdraws_the_other_still_has(server: Secured):
    ids = v1.GetItemsRequest(item_ids=["item-1"])
    removal = v1.RemoveItemsRequest(item_ids=["item-1"])
    assert call(server, "acme", f"{ITEMS}/RemoveItems", removal).code is Code.OK
    ask = v1.FindSimilarItemsRequest(item_id="item-1", limit=3)
    assert call(server, "acme", f"{READS}/FindSimilarItems", ask).code is Code.NOT_FOUND
    assert call(server, "other", f"{READS}/FindSimilarItems", ask).code is Code.OK
    before, after = (call(server, tenant, f"{ITEMS}/GetItems", ids).data for tenant in ("other", "acme"))
    assert b"item-1" in before and before != after


def test_what_only_the_other_has_answers_as_what_nobody_has(server: Secured):
    """Code and message are the same but for the id itself."""
    item = v1.UpsertItemsRequest(items=[v1.Item(item_id="hidden", categories=["red"])])
    assert call(server, "acme", f"{ITEMS}/UpsertItems", item).code is Code.OK
    record(server, "acme", view("hidden", "item-5", "e-hidden"), view("hidden", "hidden", "e-hidden-2"))
    consents = [v1.Consent(purpose=v1.Purpose.PURPOSE_TRAINING, granted=True, source="s")]
    for made in (
        (f"{USERS}/SetConsent", v1.SetConsentRequest(person=v1.Person(user_id="hidden"), consents=consents)),
        (
            f"{USERS}/LinkIdentity",
            v1.LinkIdentityRequest(source=v1.Person(visitor_id="hidden"), target=v1.Person(user_id="hidden")),
        ),
    ):
        assert call(server, "acme", *made).code is Code.OK
    for ask in (
        lambda name: (f"{USERS}/GetUser", v1.GetUserRequest(user_id=name)),
        lambda name: (f"{USERS}/GetUser", v1.GetUserRequest(visitor_id=name)),
        lambda name: (f"{USERS}/ExportUser", v1.ExportUserRequest(person=v1.Person(user_id=name))),
        lambda name: (f"{READS}/FindSimilarItems", v1.FindSimilarItemsRequest(item_id=name, limit=3)),
        lambda name: (f"{ITEMS}/GetItems", v1.GetItemsRequest(item_ids=[name])),
        lambda name: (f"{ITEMS}/RemoveItems", v1.RemoveItemsRequest(item_ids=[name])),
        lambda name: ("/towerbridge.v1.AudienceService/FindAudience", v1.FindAudienceRequest(item_id=name, limit=3)),
        lambda name: (
            "/towerbridge.v1.AudienceService/FindSimilarUsers",
            v1.FindSimilarUsersRequest(person=v1.Person(user_id=name), limit=3),
        ),
        lambda name: (
            f"{USERS}/UnlinkIdentity",
            v1.UnlinkIdentityRequest(source=v1.Person(visitor_id=name), target=v1.Person(user_id=name)),
        ),
        lambda name: (f"{RELEASES}/PromoteRelease", v1.PromoteReleaseRequest(release_id=name)),
    ):
        theirs, nobodys = (call(server, "other", *ask(name)) for name in ("hidden", "nobody"))
        assert theirs.code is nobodys.code
        assert theirs.message.replace("hidden", "nobody") == nobodys.message
        if theirs.code is Code.OK and not ask("")[0].startswith((f"{USERS}/Unlink", f"{ITEMS}/Remove")):  # these have revisions
            assert theirs.data.replace(b"hidden", b"nobody") == nobodys.data


def test_audiences_name_a_tenants_own_people_only(server: Secured):
    record(server, "acme", view("ann", "item-5", "e-1"), view("acmes-only", "item-5", "e-2"))
    record(server, "other", view("ann", "item-5", "e-1"), view("others-only", "item-5", "e-2"))
    for tenant, their_own in {"acme": "acmes-only", "other": "others-only"}.items():
        with server.client(tenant, Role.AUDIENCE) as client:
            named = {person.user_id for person, _ in client.find_audience("item-5", limit=10)}
        assert named == {"ann", their_own}


def test_revisions_of_another_tenant_are_refused(server: Secured):
    revision = record(server, "acme", view("ann", "item-5", "e-1")).revision
    record(server, "other", view("ann", "item-5", "e-1"))
    ask = v1.RecommendRequest(subject=v1.Subject(user_id="ann"), limit=3, min_revision=revision)
    assert call(server, "acme", f"{READS}/Recommend", ask).code is Code.OK
    assert call(server, "other", f"{READS}/Recommend", ask).code is Code.FAILED_PRECONDITION


def test_an_erasure_and_an_export_reach_one_tenant(server: Secured):
    for tenant, item in {"acme": "item-5", "other": "item-7"}.items():
        record(server, tenant, view("ann", item, f"e-{tenant}"))
    for tenant, theirs, others in (("acme", b"item-5", b"item-7"), ("other", b"item-7", b"item-5")):
        exported = b""
        with server.client(tenant, Role.ADMIN) as client:
            exported = b"".join(str(line).encode() for line in client.export_user(user_id="ann"))
        assert theirs in exported and others not in exported
    erasure = v1.EraseUserRequest(person=ann())
    assert call(server, "acme", f"{USERS}/EraseUser", erasure).code is Code.OK
    assert call(server, "acme", f"{USERS}/GetUser", v1.GetUserRequest(user_id="ann")).code is Code.NOT_FOUND
    assert list(get_user(server, "other").item_ids) == ["item-7"]
    dropped = record(server, "acme", view("ann", "item-5", "e-later")).results[0].status
    assert dropped == v1.EventStatus.EVENT_STATUS_DROPPED_ERASED
    assert record(server, "other", view("ann", "item-7", "e-later")).results[0].status == v1.EventStatus.EVENT_STATUS_ACCEPTED


def test_a_release_that_one_tenant_promotes_is_not_the_others(server: Secured, bundles: Path):
    write_tiny_bundle(bundles / "acme" / "next", n_items=50, dim=8, seed=9)
    with server.client("acme", Role.ADMIN) as acme, server.client("other", Role.ADMIN) as other:
        first = other.list_releases().releases[0].release_id
        loaded = acme.load_release("next").release.release_id
        assert loaded not in {one.release_id for one in other.list_releases().releases}
        with pytest.raises(towerbridge.NotFound):
            other.promote_release(loaded)
        acme.promote_release(loaded)
    live = {}
    for tenant in ("acme", "other"):
        live[tenant] = call(server, tenant, f"{RELEASES}/GetRelease", v1.GetReleaseRequest(), v1.GetReleaseResponse).release_id
    assert live == {"acme": loaded, "other": first}


def test_a_tenants_bundles_are_out_of_the_others_reach(server: Secured, bundles: Path):
    write_tiny_bundle(bundles / "other" / "secret", n_items=50, dim=8, seed=9)
    with server.client("acme", Role.ADMIN) as acme:
        for name in (str(bundles / "other" / "secret"), "../other/secret", str(bundles / "other" / "none")):
            with pytest.raises(towerbridge.InvalidArgument, match="lies outside of"):
                acme.load_release(name)


def test_where_tenants_bundles_lie_side_by_side_none_is_loaded(bundle_path: Path, tmp_path: Path):
    with (
        secured(bundle_path, tmp_path, ("acme", "other")) as running,
        running.client("acme", Role.ADMIN) as acme,
        pytest.raises(towerbridge.InvalidArgument, match=r"releases\.bundles"),
    ):
        acme.load_release(bundle_path.name)


def test_what_is_kept_lies_apart(server: Secured):
    record(server, "acme", view("acmes-only-person", "item-5", "e-1"))
    record(server, "other", view("others-only-person", "item-5", "e-1"))
    data = server.keys_file.parent / "data"
    assert sorted(path.name for path in data.iterdir() if path.is_dir()) == ["acme", "other"]
    assert found(data / "acme", ["acmes-only-person"]) and not found(data / "acme", ["others-only-person"])
    assert found(data / "other", ["others-only-person"]) and not found(data / "other", ["acmes-only-person"])


def test_figures_say_whose_calls_they_count(server: Secured):
    record(server, "acme", view("ann", "item-5", "e-1"), view("ben", "item-5", "e-2"))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.app.metrics_port}/metrics", timeout=CALL_S) as page:
        text = page.read().decode()
    counted = [line for line in text.splitlines() if line.startswith("grpc_server_handled_total") and "RecordEvents" in line]
    [line] = [line for line in counted if not line.endswith(" 0.0")]
    assert 'tenant="acme"' in line and line.endswith(" 1.0")
    assert "ann" not in [word for line in counted for word in line.split('"')]


def test_a_key_of_a_tenant_that_is_not_served_reaches_nothing(server: Secured):
    key, _ = create(server.keys_file, "third", "all", GRANTED)
    eventually(lambda: answer(server.channel, OURS[0], metadata=bearer(key)).code is not Code.UNAUTHENTICATED)
    for method in OURS:
        refused = answer(server.channel, method, metadata=bearer(key))
        assert refused.code is Code.PERMISSION_DENIED
        assert refused.message == "this server does not serve the tenant of this key"
