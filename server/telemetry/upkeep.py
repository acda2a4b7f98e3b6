"""Figures of what an operator must see to in time: the certificate, the data directory's disk, and backups."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from server.journal.backup import newest_backup
from server.security.tls import Certificates


class UpkeepFigures(Collector):
    """Looks at the disk and the directories of backups at every scrape, and at the certificate that new connections get."""

    def __init__(self, certificates: Certificates | None, data: Path, tenants: Mapping[str, Path]) -> None:
        """certificates: None without TLS. data: the data directory. tenants: their directories in it, by name."""
        self._certificates = certificates
        self._data = data
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "towerbridge_tls_certificate_expiry_timestamp_seconds",
            "When the server's certificate ends, seconds since 1970. Absent without TLS.",
            None if self._certificates is None else self._certificates.valid_until.timestamp(),
        )
        backup = GaugeMetricFamily(
            "towerbridge_backup_timestamp_seconds",
            "When the newest backup in the data directory was begun, seconds since 1970. Absent without one.",
            labels=["tenant"],
        )
        free = total = None
        with suppress(OSError):  # of a disk that fails the other figures are needed all the more
            disk = shutil.disk_usage(self._data)
            free, total = disk.free, disk.total
            for tenant, folder in self._tenants.items():
                if newest := newest_backup(folder):
                    backup.add_metric([tenant], newest.timestamp())
        yield backup
        yield GaugeMetricFamily(
            "towerbridge_data_disk_free_bytes", "What the server may still write to the data directory's disk.", free
        )
        yield GaugeMetricFamily("towerbridge_data_disk_total_bytes", "The data directory's disk.", total)
