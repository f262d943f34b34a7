"""Cores that a process may really use, on trees laid out as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edgescribe.errors import UsageError
from edgescribe.runtimes.threads import thread_count, usable_cores


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu in range(8):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", f"{cpu % 3},{cpu % 3 + 3}")
    assert usable_cores(tmp_path) == 3


@pytest.mark.usefixtures("eight_cpus")
def test_without_topology_each_cpu_is_a_core_and_four_threads_are_the_most(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
    assert thread_count(0, tmp_path) == 4
    assert thread_count(6, tmp_path) == 6


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/app/inner", "sys/fs/cgroup/app/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/../elsewhere", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, 8),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/app",
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/app",
                "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "what 0"}, 8),
    ],
)
def test_cgroup_quotas_limit(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)
    assert usable_cores(tmp_path) == cores


def test_this_machine_has_a_core() -> None:
    assert 1 <= thread_count() <= 4
    with pytest.raises(UsageError, match="-3"):
        thread_count(-3)
