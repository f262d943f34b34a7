"""The number of threads of a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edgescribe.errors import UsageError
from edgescribe.runtimes.threads import thread_count


def test_what_was_asked_is_taken() -> None:
    assert thread_count(7) == 7
    with pytest.raises(UsageError, match="-3"):
        thread_count(-3)


def test_unasked_it_is_what_this_machine_grants() -> None:
    assert 1 <= thread_count() <= min(4, os.cpu_count() or 1)


@pytest.mark.parametrize(("quota", "threads"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4)])
def test_a_quota_limits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for cpu in range(8):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{cpu}\n")
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_cpus_list").write_text(f"{cpu}\n")
    for path, text in {
        "proc/self/cgroup": "0::/app",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory",
        "sys/fs/cgroup/app/cpu.max": quota,
        "sys/devices/system/cpu/online": "0-7",
        "sys/devices/system/cpu/present": "0-7",
        "proc/cpuinfo": "".join(f"processor\t: {cpu}\nflags\t\t: avx2\n\n" for cpu in range(8)),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    assert thread_count(0, tmp_path) == threads
