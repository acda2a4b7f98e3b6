"""Figures of the process."""

import gc
import os
from pathlib import Path

from server.telemetry.process import memory_limit
from tests.server.telemetry.scraped import scrape, serving

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_memory_time_files_and_threads_are_told():
    with serving() as url:
        figures = scrape(url)
    assert 0 < figures["process_resident_memory_bytes"] < figures["towerbridge_memory_limit_bytes"] <= MACHINE
    assert figures["process_cpu_seconds_total"] > 0
    assert figures["process_start_time_seconds"] > 1_600_000_000
    assert 0 < figures["process_open_fds"] < figures["process_max_fds"]
    assert figures["towerbridge_threads"] >= 2


def test_pauses_of_the_garbage_collector_are_timed_while_the_endpoint_is_open():
    before = len(gc.callbacks)
    count = "towerbridge_gc_pause_seconds_count{generation=2}"
    with serving() as url:
        first = scrape(url)[count]
        for _ in range(3):
            gc.collect()
        figures = scrape(url)
    assert figures[count] >= first + 3
    assert figures["towerbridge_gc_pause_seconds_sum{generation=2}"] > 0
    assert len(gc.callbacks) == before


def test_the_least_limit_of_the_control_groups_counts(tmp_path: Path):
    group = tmp_path / "groups" / "pod" / "server"
    group.mkdir(parents=True)
    proc = tmp_path / "cgroup"
    proc.write_text("0::/pod/server\n")
    groups = tmp_path / "groups"
    assert memory_limit(proc, groups) == MACHINE
    (group / "memory.max").write_text("max\n")
    assert memory_limit(proc, groups) == MACHINE
    (group / "memory.max").write_text("3000000\n")
    assert memory_limit(proc, groups) == 3_000_000
    (group.parent / "memory.max").write_text("2000000\n")
    assert memory_limit(proc, groups) == 2_000_000


def test_a_container_sees_its_group_as_the_root(tmp_path: Path):
    proc = tmp_path / "cgroup"
    proc.write_text("0::/elsewhere/on/the/host\n")
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "memory.max").write_text("1000000\n")
    assert memory_limit(proc, tmp_path / "groups") == 1_000_000


def test_version_1_of_control_groups_is_understood(tmp_path: Path):
    group = tmp_path / "groups" / "memory" / "docker" / "abc"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000\n")
    proc = tmp_path / "cgroup"
    proc.write_text("12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n")
    assert memory_limit(proc, tmp_path / "groups") == 4_000_000


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path):
    assert memory_limit(tmp_path / "none", tmp_path) == MACHINE
