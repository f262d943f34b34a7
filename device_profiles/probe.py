"""What this machine is, read from /proc and /sys: CPU, memory, limits, NPUs, operating system."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .probe_cpu import Cache, Cpu, probe_cpu
from .probe_memory import MachineMemory, MemoryLimit, cpu_quota, probe_memory
from .probe_npus import Npu, probe_npus
from .schema import CpuCluster
from .system_files import read_text

__all__ = ["Cache", "CpuCluster", "Machine", "MachineMemory", "MemoryLimit", "Npu", "default_threads", "probe"]

_MOST_THREADS = 4  # beyond four, small models lose to thread hand-over more than they win


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine as read. ``model`` is the board's or computer's name, empty where it has none.

    ``usable_cpus``: logical CPUs this process may run on (affinity and control-group quota).
    """

    isa: str
    model: str
    system: str
    kernel: str
    clusters: dict[str, CpuCluster]
    caches: tuple[Cache, ...]
    logical_cpus: int
    usable_cpus: float
    memory: MachineMemory
    npus: tuple[Npu, ...]

    @property
    def cores(self) -> int:
        """Physical cores."""
        return sum(cluster.count for cluster in self.clusters.values())

    @property
    def features(self) -> frozenset[str]:
        """CPU features that every core has."""
        return frozenset.intersection(*(frozenset(cluster.features) for cluster in self.clusters.values()))

    @property
    def last_level_cache_kib(self) -> int:
        """Sum over the instances of the largest cache level; 0 when unknown."""
        level = max((cache.level for cache in self.caches), default=0)
        return sum(cache.kib * cache.instances for cache in self.caches if cache.level == level)


def probe(root: Path = Path("/")) -> Machine:
    """Read the machine under ``root`` (another folder than ``/`` holds a copy of some machine's files)."""
    cpu: Cpu = probe_cpu(root)
    usable = float(cpu.logical)
    if root == Path("/"):
        usable = min(usable, len(os.sched_getaffinity(0)))
    quota = cpu_quota(root)
    return Machine(
        isa=cpu.isa,
        model=_model(root),
        system=_system(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease") or "",
        clusters=cpu.clusters,
        caches=cpu.caches,
        logical_cpus=cpu.logical,
        usable_cpus=usable if quota is None else min(usable, quota),
        memory=probe_memory(root),
        npus=probe_npus(root),
    )


def default_threads(machine: Machine) -> int:
    """Threads to run a model with: cores of the fastest kind that this process may use, from 1 to 4."""
    fastest = next(iter(machine.clusters.values()))
    return max(1, min(fastest.count if fastest.count > 1 else machine.cores, int(machine.usable_cpus), _MOST_THREADS))


def _model(root: Path) -> str:
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        model = read_text(root / path)
        if model:
            return model
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Model":
            return value.strip()
    return read_text(root / "sys/class/dmi/id/product_name") or ""


def _system(root: Path) -> str:
    for path in ("etc/os-release", "usr/lib/os-release"):
        for line in (read_text(root / path) or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.removeprefix("PRETTY_NAME=").strip("\"'")
    return ""
