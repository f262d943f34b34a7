"""How many threads an engine should use here: physical cores that this process may run on, at most four.

Hyper-threads do not speed up the int8 products that fill these models, and an engine with more threads than
its cgroup grants CPU time is stopped in the middle of every call.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UsageError

MOST_THREADS = 4
"""Beyond four, handing work over costs a small model more than the further core wins."""


def thread_count(asked: int = 0, root: Path = Path("/")) -> int:
    """Threads to use: ``asked`` itself, or for 0 the cores of :func:`usable_cores`, at most four.

    Raises:
        UsageError: ``asked`` is negative.
    """
    if asked < 0:
        raise UsageError(f"threads is {asked}; give the number of threads, or 0 to take the number of physical cores")
    return asked or min(usable_cores(root), MOST_THREADS)


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores in this process's affinity mask, no more than the CPU time its cgroups grant; at least 1.

    ``root`` is where ``/proc`` and ``/sys`` lie.
    """
    cores = _physical_cores(sorted(_affinity()), root)
    quota = _cgroup_cpus(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return set(range(os.cpu_count() or 1))


def _physical_cores(cpus: list[int], root: Path) -> int:
    """CPUs that share a core name the same siblings; a CPU whose topology cannot be read counts as a core."""
    cores: set[str] = set()
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = _text(folder / "core_cpus_list") or _text(folder / "thread_siblings_list")
        cores.add(siblings or f"cpu {cpu}")
    return len(cores)


def _cgroup_cpus(root: Path) -> float | None:
    """The smallest CPU quota of this process's cgroups (version 2 or 1) in CPUs, or None without a quota."""
    quotas = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers == "":
            base, quota_of = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, quota_of = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        # Inside a container the path may be the host's; its own limits then stand at the top of the mount.
        folder = base / path.lstrip("/")
        while True:
            quotas.append(quota_of(folder))
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _quota_v2(folder: Path) -> float | None:
    fields = _text(folder / "cpu.max").split()
    return _ratio(*fields) if len(fields) == 2 else None


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        value = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
