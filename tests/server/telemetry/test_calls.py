"""Figures of calls, as Prometheus reads them."""

import grpc
import pytest

from server.telemetry.calls import CallFigures, kind_of
from tests.server.telemetry.scraped import read

RECOMMEND = "/towerbridge.v1.RecommendationService/Recommend"


def value(figures: dict[str, float], name: str, **labels: str) -> float:
    """The one sample of that name with all of these labels."""
    wanted = [f"{{{key}={text}}}" for key, text in labels.items()]
    [found] = [one for key, one in figures.items() if key.startswith(f"{name}{{") and all(label in key for label in wanted)]
    return found


def test_calls_are_counted_by_code_and_timed_whatever_they_ended_with():
    figures = CallFigures()
    row = figures.row("shop", RECOMMEND, "unary")
    row.done(grpc.StatusCode.OK, 0.0001)
    row.done(grpc.StatusCode.OK, 0.004)
    row.done(grpc.StatusCode.INVALID_ARGUMENT, 0.0004)
    seen = read(figures)
    about = {
        "grpc_type": "unary",
        "grpc_service": "towerbridge.v1.RecommendationService",
        "grpc_method": "Recommend",
        "tenant": "shop",
    }
    assert value(seen, "grpc_server_handled_total", **about, grpc_code="OK") == 2
    assert value(seen, "grpc_server_handled_total", **about, grpc_code="INVALID_ARGUMENT") == 1
    assert value(seen, "grpc_server_handling_seconds_count", **about) == 3
    assert value(seen, "grpc_server_handling_seconds_bucket", **about, le="0.0001") == 1
    assert value(seen, "grpc_server_handling_seconds_bucket", **about, le="0.0005") == 2
    assert round(value(seen, "grpc_server_handling_seconds_sum", **about), 6) == 0.0045


def test_calls_that_were_refused_are_counted_and_do_not_make_the_others_look_fast():
    figures = CallFigures()
    row = figures.row("shop", RECOMMEND, "unary")
    row.refused(grpc.StatusCode.RESOURCE_EXHAUSTED)
    seen = read(figures)
    assert value(seen, "grpc_server_handled_total", grpc_code="RESOURCE_EXHAUSTED") == 1
    assert value(seen, "grpc_server_handling_seconds_count") == 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (RECOMMEND, "unary"),
        ("/towerbridge.v1.EventService/StreamEvents", "bidi_stream"),
        ("/towerbridge.v1.UserService/ExportUser", "server_stream"),
        ("/none.such/Method", "unary"),
    ],
)
def test_a_methods_kind_is_that_of_the_contract(method: str, kind: str):
    assert kind_of(method) == kind


def test_a_method_that_nobody_called_is_there_with_zeros_so_that_its_first_call_is_a_rise():
    figures = CallFigures()
    figures.row("shop", RECOMMEND, "unary")
    seen = read(figures)
    assert value(seen, "grpc_server_handled_total", grpc_code="OK") == 0
    assert value(seen, "grpc_server_handling_seconds_count") == 0


def test_tenants_have_rows_of_their_own_and_keep_them():
    figures = CallFigures()
    figures.row("one", RECOMMEND, "unary").done(grpc.StatusCode.OK, 0.001)
    assert figures.row("one", RECOMMEND, "unary") is figures.row("one", RECOMMEND, "unary")
    figures.row("two", RECOMMEND, "unary")
    seen = read(figures)
    assert value(seen, "grpc_server_handled_total", tenant="one") == 1
    assert value(seen, "grpc_server_handled_total", tenant="two") == 0


def test_what_was_shed_is_counted_by_reason():
    figures = CallFigures()
    figures.shed("shop", "read", "limit")
    figures.shed("shop", "read", "limit")
    figures.shed("shop", "ingest", "draining")
    seen = read(figures)
    assert value(seen, "towerbridge_shed_total", tenant="shop", role="read", reason="limit") == 2
    assert value(seen, "towerbridge_shed_total", tenant="shop", role="ingest", reason="draining") == 1
