"""Which releases are held."""

from server.telemetry.releases import ReleaseFigures
from tests.server.telemetry.scraped import read


def test_each_release_is_told_with_what_it_is_at_the_scrape():
    held = [("r2", "live"), ("r1", "previous")]
    figures = ReleaseFigures("shop", lambda: held)
    assert read(figures) == {
        "towerbridge_release_info{release_id=r2}{state=live}{tenant=shop}": 1,
        "towerbridge_release_info{release_id=r1}{state=previous}{tenant=shop}": 1,
    }
    held[:] = [("r3", "live"), ("", "failed"), ("", "failed")]
    assert read(figures) == {
        "towerbridge_release_info{release_id=r3}{state=live}{tenant=shop}": 1,
        "towerbridge_release_info{release_id=}{state=failed}{tenant=shop}": 1,
    }
