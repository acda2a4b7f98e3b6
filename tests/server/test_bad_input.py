"""What RecommendationService refuses: INVALID_ARGUMENT, with the field's name."""

from collections.abc import Callable

import grpc
import numpy as np
import pytest
import towerbridge
from google.protobuf.timestamp_pb2 import Timestamp
from towerbridge import v1
from towerbridge.v1 import recommendation_pb2_grpc

from tests.server.conftest import Served

SOMEONE = v1.Subject(visitor_id="someone")
NAN, INF = float("nan"), float("inf")


def recommend(**changes: object) -> v1.RecommendRequest:
    return v1.RecommendRequest(**{"subject": SOMEONE, "limit": 5, **changes})  # type: ignore[arg-type]


def history(**columns: object) -> v1.RecommendRequest:
    return recommend(subject=v1.Subject(history=v1.InlineHistory(**columns)))  # type: ignore[arg-type]


def by_vector(values: list[float]) -> v1.RecommendRequest:
    return recommend(subject=v1.Subject(vector=v1.UserVector(values=values)))


def search(**changes: object) -> v1.SearchVectorsRequest:
    return v1.SearchVectorsRequest(**{"vectors": [v1.Vector(values=[1.0] * 8)], "limit": 5, **changes})  # type: ignore[arg-type]


CASES: list[tuple[str, object]] = [
    ("limit", recommend(limit=0)),
    ("limit", recommend(limit=-1)),
    ("limit", recommend(limit=1001)),
    ("subject", v1.RecommendRequest(limit=5)),
    ("subject.user_id", recommend(subject=v1.Subject(user_id=""))),
    ("subject.visitor_id", recommend(subject=v1.Subject(visitor_id="x" * 257))),
    ("subject.visitor_id", recommend(subject=v1.Subject(visitor_id="a\0b"))),
    ("subject.history.item_ids", history()),
    ("subject.history.item_ids", history(item_ids=["item-1"] * 1001)),
    ("subject.history.item_ids[1]", history(item_ids=["item-1", ""])),
    ("subject.history.event_types", history(item_ids=["item-1", "item-2"], event_types=["view"])),
    ("subject.history.event_types[0]", history(item_ids=["item-1"], event_types=["View!"])),
    ("subject.history.occurred_at", history(item_ids=["item-1", "item-2"], occurred_at=[Timestamp(seconds=1)])),
    ("subject.history.occurred_at[0]", history(item_ids=["item-1"], occurred_at=[Timestamp(nanos=-5)])),
    ("subject.vector.values", by_vector([])),
    ("subject.vector.values", by_vector([1.0] * 7)),
    ("subject.vector.values", by_vector([0.0] * 8)),
    ("subject.vector.values", by_vector([NAN, *[1.0] * 7])),
    ("subject.vector.values", by_vector([-INF, *[1.0] * 7])),
    ("exclude_item_ids", recommend(exclude_item_ids=["x"] * 10_001)),
    ("exclude_item_ids[0]", recommend(exclude_item_ids=[""])),
    ("attributes", recommend(attributes=["a"] * 33)),
    ("attributes[0]", recommend(attributes=["a" * 65])),
    ("min_revision", recommend(min_revision="0x10")),
    ("requests", v1.BatchRecommendRequest()),
    ("requests", v1.BatchRecommendRequest(requests=[recommend()] * 101)),
    ("item_ids", v1.ScoreItemsRequest(subject=SOMEONE)),
    ("item_ids", v1.ScoreItemsRequest(subject=SOMEONE, item_ids=["item-1"] * 1001)),
    ("subject", v1.ScoreItemsRequest(item_ids=["item-1"])),
    ("item_id", v1.FindSimilarItemsRequest(limit=5)),
    ("limit", v1.FindSimilarItemsRequest(item_id="item-1")),
    ("limit", v1.FindSimilarItemsRequest(item_id="item-1", limit=1001)),
    ("vectors", search(vectors=[])),
    ("vectors", search(vectors=[v1.Vector(values=[1.0] * 8)] * 101)),
    ("vectors[1].values", search(vectors=[v1.Vector(values=[1.0] * 8), v1.Vector(values=[NAN] * 8)])),
    ("limit", search(limit=0)),
]


@pytest.mark.parametrize(("field", "request_"), CASES, ids=[f"{n}-{field}" for n, (field, _) in enumerate(CASES)])
def test_a_bad_request_is_refused_by_field(shared: Served, field: str, request_: object):
    with grpc.insecure_channel(f"127.0.0.1:{shared.app.port}") as channel:
        stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        call: Callable[..., object] = getattr(stub, type(request_).__name__.removesuffix("Request"))
        with pytest.raises(grpc.RpcError) as refused:
            call(request_, timeout=10)
    error = refused.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith(f"{field}: ")


def test_a_vector_of_huge_components_is_scaled_and_not_lost(shared: Served):
    huge, plain = shared.client.search_vectors([[3e38] * 8, [1.0] * 8], limit=5).results
    assert list(huge.item_ids) == list(plain.item_ids)
    np.testing.assert_allclose(huge.scores, plain.scores, atol=1e-5)
    with pytest.raises(towerbridge.InvalidArgument, match="finite"):
        shared.client.search_vectors([[1e39] * 8], limit=5)
