"""Every RPC through both clients, and what their requests hold."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import towerbridge
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from towerbridge import v1
from towerbridge.v1 import audience_pb2, event_pb2, item_pb2, recommendation_pb2, release_pb2, user_pb2

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (audience_pb2, event_pb2, item_pb2, recommendation_pb2, release_pb2, user_pb2)
]
RPCS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]

# One call an RPC; with an AsyncClient each gives a coroutine, or an async iterator.
CALLS: dict[str, Callable[[Any], Any]] = {
    "Recommend": lambda client: client.recommend(user_id="ann"),
    "BatchRecommend": lambda client: client.batch_recommend([towerbridge.recommend_request(user_id="ann")]),
    "ScoreItems": lambda client: client.score_items(["1", "2"], visitor_id="v"),
    "FindSimilarItems": lambda client: client.find_similar_items("1", limit=3),
    "SearchVectors": lambda client: client.search_vectors([[0.0, 1.0, 0.0, 0.0]]),
    "RecordEvents": lambda client: client.record_events([towerbridge.event("view", "1", user_id="ann")]),
    "UpsertItems": lambda client: client.upsert_items([towerbridge.item("1", text="Toy Story")]),
    "RemoveItems": lambda client: client.remove_items(["1"]),
    "GetItems": lambda client: client.get_items(["1"]),
    "SetAvailability": lambda client: client.set_availability({"1": False}),
    "GetUser": lambda client: client.get_user(user_id="ann", limit=5),
    "GetRelease": lambda client: client.get_release(),
    "ListReleases": lambda client: client.list_releases(),
    "LoadRelease": lambda client: client.load_release("bundles/next"),
    "PromoteRelease": lambda client: client.promote_release("0123456789abcdef"),
    "RollbackRelease": lambda client: client.rollback_release(expected_live_release_id="0123456789abcdef"),
    "SetProfile": lambda client: client.set_profile(user_id="ann", attributes={"size": "M"}),
    "SetConsent": lambda client: client.set_consent(visitor_id="v", personalisation=True, source="banner"),
    "GetConsent": lambda client: client.get_consent(user_id="ann"),
    "LinkIdentity": lambda client: client.link_identity(visitor_id="v", user_id="ann"),
    "UnlinkIdentity": lambda client: client.unlink_identity(visitor_id="v", user_id="ann"),
    "EraseUser": lambda client: client.erase_user(user_id="ann"),
    "ExportUser": lambda client: client.export_user(user_id="ann"),
    "FindSimilarUsers": lambda client: client.find_similar_users(user_id="ann", limit=3),
    "FindAudience": lambda client: client.find_audience("1", limit=3),
    "StreamEvents": lambda client: client.stream_events([towerbridge.event("view", "1", user_id="ann")]),
}


def full_name(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest.mark.parametrize("method", RPCS, ids=lambda method: method.name)
def test_every_rpc_of_the_contract_is_called_by_a_method_of_the_client(method: Any, client: Any, script: Any) -> None:
    reply = CALLS[method.name](client)
    rows = list(reply) if isinstance(reply, Iterator) else None
    assert script.methods == [full_name(method)]
    assert rows if method.server_streaming else reply.DESCRIPTOR is method.output_type


@pytest.mark.parametrize("method", RPCS, ids=lambda method: method.name)
def test_every_rpc_of_the_contract_is_called_by_a_method_of_the_async_client(method: Any, server: Any) -> None:
    async def call() -> Any:
        async with towerbridge.AsyncClient(server.target) as client:
            reply = CALLS[method.name](client)
            return [row async for row in reply] if isinstance(reply, AsyncIterator) else await reply

    reply = asyncio.run(call())
    assert server.script.methods == [full_name(method)]
    assert reply if method.server_streaming else reply.DESCRIPTOR is method.output_type


def test_both_clients_send_the_same_request(server: Any) -> None:
    arguments: dict[str, Any] = {
        "history": ["1", ("2", "cart")],
        "limit": 7,
        "exclude_item_ids": ["3"],
        "exclude_seen": True,
        "min_revision": "r9",
        "allow_stale": True,
        "attributes": ["title"],
        "exact": True,
    }

    async def call() -> None:
        async with towerbridge.AsyncClient(server.target) as client:
            await client.recommend(**arguments)

    with towerbridge.Client(server.target) as client:
        client.recommend(**arguments)
    asyncio.run(call())
    first, second = (call.request for call in server.script.calls)
    assert first == second == towerbridge.recommend_request(**arguments)


def test_a_call_has_the_clients_deadline_unless_it_brings_its_own(server: Any) -> None:
    with towerbridge.Client(server.target, timeout_s=5.0, upsert_timeout_s=50.0) as client:
        client.get_release()
        client.get_release(timeout_s=0.7)
        client.upsert_items([towerbridge.item("1")])
    default, own, upsert = (call.seconds_left for call in server.script.calls)
    # On the wire a deadline is rounded up, to 1 % at most.
    assert 0.7 < default < 5.1
    assert 0.0 < own < 0.71
    assert 5.1 < upsert < 51.0


def test_without_any_setting_a_call_has_a_second(server: Any) -> None:
    with towerbridge.Client(server.target) as client:
        client.recommend(user_id="ann")
    assert 0.0 < server.script.calls[0].seconds_left < 1.02


def test_an_async_call_has_a_deadline_too(server: Any) -> None:
    async def call() -> None:
        async with towerbridge.AsyncClient(server.target) as client:
            await client.recommend(user_id="ann")

    asyncio.run(call())
    assert 0.0 < server.script.calls[0].seconds_left < 1.02


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_call_without_an_end_is_refused(timeout_s: float, client: Any, script: Any) -> None:
    with pytest.raises(ValueError, match="timeout_s must be a positive number of seconds"):
        client.get_release(timeout_s=timeout_s)
    assert not script.calls


def test_the_api_key_travels_as_a_bearer_token(server: Any) -> None:
    with towerbridge.Client(server.target, api_key="s3cret") as client:
        client.get_release()
    assert server.script.calls[0].metadata["authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(client) + repr(client._settings)


def test_the_client_names_itself_to_the_server(client: Any, script: Any) -> None:
    client.get_release()
    agent = script.calls[0].metadata["user-agent"]
    assert agent.startswith(f"towerbridge-python/{towerbridge.__version__} ")


def test_a_closed_client_says_so(server: Any) -> None:
    client = towerbridge.Client(server.target)
    client.close()
    with pytest.raises(ValueError, match="the client is closed"):
        client.get_release()


def test_a_closed_async_client_says_so(server: Any) -> None:
    async def call() -> None:
        client = towerbridge.AsyncClient(server.target)
        await client.close()
        await client.get_release()

    with pytest.raises(ValueError, match="the client is closed"):
        asyncio.run(call())


def test_an_async_client_is_made_within_its_event_loop(server: Any) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        towerbridge.AsyncClient(server.target)


def test_async_calls_run_side_by_side(server: Any) -> None:
    async def call() -> list[v1.GetReleaseResponse]:
        async with towerbridge.AsyncClient(server.target) as client:
            return await asyncio.gather(*(client.get_release() for _ in range(20)))

    assert len(asyncio.run(call())) == len(server.script.calls) == 20
