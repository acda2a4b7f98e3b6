"""How many calls are in flight."""

from server.config import Overload
from server.overload.limits import Limits
from server.security.roles import Role
from server.telemetry.limits import LimitFigures
from tests.server.telemetry.scraped import read


def test_every_limit_is_told_beside_what_counts_towards_it():
    limits = Limits(Overload(max_reads=20, max_ingests=30, max_admins=3))
    for role, stream in ((Role.READ, False), (Role.INGEST, True), (Role.AUDIENCE, False)):
        limit = limits.of(role, stream=stream)
        assert limit.enter(limit.let_in())
    figures = read(LimitFigures("shop", limits))
    in_flight = {name: value for name, value in figures.items() if name.startswith("towerbridge_calls_in_flight")}
    assert in_flight == {
        "towerbridge_calls_in_flight{kind=unary}{role=read}{tenant=shop}": 1,
        "towerbridge_calls_in_flight{kind=unary}{role=ingest}{tenant=shop}": 0,
        "towerbridge_calls_in_flight{kind=stream}{role=read}{tenant=shop}": 0,
        "towerbridge_calls_in_flight{kind=stream}{role=ingest}{tenant=shop}": 1,
        "towerbridge_calls_in_flight{kind=any}{role=admin}{tenant=shop}": 1,
    }
    assert figures["towerbridge_calls_limit{kind=any}{role=admin}{tenant=shop}"] == 3
    assert figures["towerbridge_calls_limit{kind=unary}{role=read}{tenant=shop}"] == 20
