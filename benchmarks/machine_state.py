"""What a figure has to be read with: the machine, its load, and the versions of everything that ran."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("edgescribe", "torch", "transformers", "tokenizers", "numpy", "onnx", "onnxruntime", "openvino",
            "ai-edge-litert")  # fmt: skip
INT8_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class MachineState:
    """One moment of this machine; ``busy_s`` and ``children_s`` are CPU seconds since it and this process started."""

    load_average: float
    busy_s: float
    children_s: float


@dataclass(frozen=True)
class Surroundings:
    """Of one run. ``others_cpus``: how many CPUs' worth of time went to others than the contenders, on average."""

    cpu: str
    cpus: int
    int8_features: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str]
    load_before: float
    load_after: float
    others_cpus: float
    seconds: float


def now() -> MachineState:
    """This moment; what ended children used counts once they were waited for."""
    times = os.times()
    fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, fields[:8])
    busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    children = times.children_user + times.children_system + times.user + times.system
    return MachineState(os.getloadavg()[0], busy, children)


def surroundings(before: MachineState, after: MachineState, seconds: float, extra: dict[str, str]) -> Surroundings:
    """What lay between two moments; ``extra``: versions of packages that are not in this environment."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = set(info.split())
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    others = (after.busy_s - before.busy_s) - (after.children_s - before.children_s)
    return Surroundings(
        cpu=names[0] if names else platform.processor() or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        int8_features=tuple(name for name in INT8_FEATURES if name in flags),
        system=platform.platform(),
        python=platform.python_version(),
        versions=versions | extra,
        load_before=before.load_average,
        load_after=after.load_average,
        others_cpus=max(0.0, others) / max(seconds, 1e-9),
        seconds=seconds,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
