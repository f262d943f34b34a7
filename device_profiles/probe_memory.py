"""Memory of this machine and the limits that hold for this process.

Limits: control groups version 1 (``memory.limit_in_bytes``) and 2 (``memory.max``), each with all groups above
(kernel documents ``admin-guide/cgroup-v1/memory.rst`` and ``admin-guide/cgroup-v2.rst``), and the process's own
address space and data limits (``prlimit --as``, ``--data``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from .system_files import read_int, read_text

MIB = 1 << 20
_UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number close to 2^63


class MemoryLimit(msgspec.Struct, frozen=True):
    """A limit in MiB and where it comes from, for people."""

    mib: int
    source: str


class MachineMemory(msgspec.Struct, frozen=True):
    """Totals in MiB as /proc/meminfo has them (0 where it is unreadable), and limits from the lowest up."""

    total_mib: int
    available_mib: int
    swap_mib: int
    limits: tuple[MemoryLimit, ...]

    @property
    def usable_mib(self) -> int:
        """What this process may take at most: the total, or the lowest limit below it."""
        return min([self.total_mib, *(limit.mib for limit in self.limits)])


def probe_memory(root: Path = Path("/")) -> MachineMemory:
    """Read sizes and limits; a limit above the machine's total is left out."""
    sizes = _meminfo(read_text(root / "proc/meminfo") or "")
    total = sizes.get("MemTotal", 0)
    limits = [limit for limit in (*_cgroup_limits(root), *_process_limits(root)) if limit.mib < total or not total]
    limits.sort(key=lambda limit: limit.mib)
    return MachineMemory(
        total_mib=total,
        available_mib=sizes.get("MemAvailable", sizes.get("MemFree", 0)),
        swap_mib=sizes.get("SwapTotal", 0),
        limits=tuple(limits),
    )


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups let this process use (1.5 is one and a half); None without a quota."""
    quotas = []
    for version, folder in _cgroup_folders(root, "cpu"):
        if version == 2:
            fields = (read_text(folder / "cpu.max") or "").split()
            pair = [int(f) for f in fields if f.isdigit()]
        else:
            pair = [read_int(folder / "cpu.cfs_quota_us") or -1, read_int(folder / "cpu.cfs_period_us") or -1]
        if len(pair) == 2 and min(pair) > 0:
            quotas.append(pair[0] / pair[1])
    return min(quotas, default=None)


def _meminfo(text: str) -> dict[str, int]:
    sizes = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields = value.split()
        if fields and fields[0].isdigit():
            sizes[key.strip()] = int(fields[0]) // 1024
    return sizes


def _cgroup_limits(root: Path) -> Iterator[MemoryLimit]:
    for version, folder in _cgroup_folders(root, "memory"):
        file = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        limit = read_int(file)
        if limit is not None and 0 < limit < _UNLIMITED:
            yield MemoryLimit(max(1, limit // MIB), f"control group version {version}, /{file.relative_to(root)}")


def _cgroup_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Folders of this process's group and of all above it, up to the mount. Inside a container the group's own
    path may not be mounted: then only those that exist count."""
    mount = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, bases = 2, [mount, mount / "unified"]
        elif controller in controllers.split(","):
            version, bases = 1, [mount / controllers, mount / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for base in dict.fromkeys(bases):
            for depth in range(len(parts), -1, -1):
                folder = base.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield version, folder


def _process_limits(root: Path) -> Iterator[MemoryLimit]:
    names = {"Max address space": "address space", "Max data size": "data"}
    for line in (read_text(root / "proc/self/limits") or "").splitlines():
        for name, meaning in names.items():
            fields = line.removeprefix(name).split()
            if line.startswith(name) and fields and fields[0].isdigit() and int(fields[0]) < _UNLIMITED:
                yield MemoryLimit(max(1, int(fields[0]) // MIB), f"limit of the process on its {meaning} (ulimit)")
