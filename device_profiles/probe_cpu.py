"""The CPU of this machine: kinds of cores with their features and clocks, and caches.

Read from /proc/cpuinfo and /sys/devices/system/cpu, whose formats the kernel documents in
``Documentation/ABI/testing/sysfs-devices-system-cpu``.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from .cpu_names import core_name, core_name_from_midr
from .schema import CpuCluster
from .system_files import cpu_list, listing, read_int, read_text

_CPUS = "sys/devices/system/cpu"


class Cache(msgspec.Struct, frozen=True):
    """A level of cache: ``kind`` is Data, Instruction or Unified; ``kib`` of one instance, shared by ``cpus`` CPUs."""

    level: int
    kind: str
    kib: int
    instances: int


class _Kind(NamedTuple):
    core: str
    features: tuple[str, ...]
    mhz: int | None


class Cpu(msgspec.Struct, frozen=True):
    """``isa`` as ``uname -m`` would say it; ``clusters`` from the fastest to the slowest."""

    isa: str
    clusters: dict[str, CpuCluster]
    caches: tuple[Cache, ...]
    logical: int


def probe_cpu(root: Path = Path("/")) -> Cpu:
    """Read the CPU. What the machine does not tell is left out (``max_mhz`` None), never guessed."""
    blocks = _cpuinfo(read_text(root / "proc/cpuinfo") or "")
    numbers = _online(root, blocks)
    isa = _isa(blocks) or platform.machine()
    kinds: dict[_Kind, set[tuple[str, ...]]] = {}
    clocks: dict[_Kind, list[int]] = {}
    for number in numbers:
        block = blocks.get(number) or next(iter(blocks.values()), {})
        folder = root / _CPUS / f"cpu{number}"
        mhz = _max_mhz(folder, block)
        features = tuple(sorted((block.get("flags") or block.get("Features") or "").split()))
        # Clocks tell ARM clusters of one core apart (prime and others); on x86 they differ a little from core to
        # core, and without cpufreq they are those of the moment.
        kind = _Kind(_name(root, number, folder, block), features, mhz if isa == "aarch64" else None)
        kinds.setdefault(kind, set()).add(_physical(folder, number))
        clocks.setdefault(kind, []).append(mhz or 0)
    ordered = sorted(kinds.items(), key=lambda item: max(clocks[item[0]]), reverse=True)
    names = _cluster_names(len(ordered))
    clusters = {
        name: CpuCluster(
            core=kind.core, count=len(cores), max_mhz=max(clocks[kind]) or None, features=kind.features
        )
        for name, (kind, cores) in zip(names, ordered, strict=True)
    }
    return Cpu(isa=isa, clusters=clusters, caches=_caches(root, numbers), logical=len(numbers))


def _cpuinfo(text: str) -> dict[int, dict[str, str]]:
    """Fields by CPU number. Older ARM kernels give fields that all cores share once, after or before the cores."""
    blocks: dict[int, dict[str, str]] = {}
    shared: dict[str, str] = {}
    current = shared
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            current = shared
        elif key == "processor" and value.isdigit():
            current = blocks.setdefault(int(value), {})
        else:
            current[key] = value
    return {number: {**shared, **block} for number, block in blocks.items()}


def _online(root: Path, blocks: dict[int, dict[str, str]]) -> list[int]:
    online = cpu_list(read_text(root / _CPUS / "online"))
    return sorted(online or blocks) or [0]


def _isa(blocks: dict[int, dict[str, str]]) -> str | None:
    block = next(iter(blocks.values()), {})
    if "CPU implementer" in block:
        # A 32-bit process is shown the 32-bit names, whatever the kernel is.
        return "aarch64" if "asimd" in block.get("Features", "").split() else "armv7l"
    if "vendor_id" in block:
        return "x86_64" if "lm" in block.get("flags", "").split() else "i686"
    return None


def _name(root: Path, number: int, folder: Path, block: dict[str, str]) -> str:
    midr = read_int(folder / "regs/identification/midr_el1")
    if midr:
        return core_name_from_midr(midr)
    implementer, part = _number(block.get("CPU implementer")), _number(block.get("CPU part"))
    if implementer is not None and part is not None:
        return core_name(implementer, part)
    name = re.sub(r"\((R|TM|tm|r)\)", "", block.get("model name") or block.get("cpu model") or "unknown")
    name = re.sub(r"\s+(CPU\s+)?@.*| (\d+-Core )?Processor$", "", " ".join(name.split()))
    for kind, suffix in (("cpu_core", "P-core"), ("cpu_atom", "E-core")):  # Intel's hybrid CPUs name both alike
        if number in cpu_list(read_text(root / "sys/devices" / kind / "cpus")):
            return f"{name} {suffix}"
    return name


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def _max_mhz(folder: Path, block: dict[str, str]) -> int | None:
    khz = read_int(folder / "cpufreq/cpuinfo_max_freq") or read_int(folder / "cpufreq/scaling_max_freq")
    if khz and khz >= 1000:
        return round(khz / 1000)
    try:
        mhz = round(float(block.get("cpu MHz", "0")))
    except (ValueError, OverflowError):
        return None
    return mhz if 0 < mhz < 100_000 else None


def _physical(folder: Path, number: int) -> tuple[str, ...]:
    """What is equal for two hardware threads of one core."""
    siblings = read_text(folder / "topology/thread_siblings_list") or read_text(folder / "topology/core_cpus_list")
    return ("siblings", siblings) if siblings else ("cpu", str(number))


def _cluster_names(count: int) -> list[str]:
    names = {1: ["cpu"], 2: ["big", "little"], 3: ["prime", "big", "little"]}
    return names.get(count) or [f"cluster{place}" for place in range(count)]


def _caches(root: Path, numbers: list[int]) -> tuple[Cache, ...]:
    found: dict[tuple[int, str, int], set[str]] = {}
    for number in numbers:
        for index in listing(root / _CPUS / f"cpu{number}" / "cache", "index*"):
            level, kind = read_int(index / "level"), read_text(index / "type")
            size = re.fullmatch(r"(\d{1,9})([KM]?)", read_text(index / "size") or "")
            if level and kind and size:
                kib = int(size[1]) * (1024 if size[2] == "M" else 1)
                shared = read_text(index / "shared_cpu_list") or str(number)
                found.setdefault((level, kind, kib), set()).add(shared)
    return tuple(Cache(level, kind, kib, len(shared)) for (level, kind, kib), shared in sorted(found.items()))
