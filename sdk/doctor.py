"""What this machine can do for edgescribe: its CPU, memory, limits, runtimes, NPUs, and what will not work."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ..device_profiles.cost_model import ENGINE_BASE_MIB
from ..device_profiles.int8_gain import KERNEL_FEATURES, has_dot_product
from ..device_profiles.probe import Machine, default_threads, probe
from ..device_profiles.render import columns, memory_text, wrapped
from ..runtimes.contract import Availability
from ..runtimes.registry import availability

Level = Literal["problem", "warning", "note"]

_ISAS = ("x86_64", "aarch64")
_ADDRESS_SPACE_MIB = 2048  # engines map several times what they keep resident: libraries, arenas, thread stacks
_MARKS: dict[Level, str] = {"problem": "PROBLEM", "warning": "warning", "note": "note"}


class DoctorFinding(msgspec.Struct, frozen=True):
    """Something that does not work or works less well here: ``what``, the reason, and what to do about it.

    A problem stops something from working; a warning costs speed, memory or agreement; a note is good to know.
    """

    level: Level
    what: str
    why: str
    advice: str


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`doctor` found. ``threads`` is what sessions take by default; findings begin with the gravest."""

    machine: Machine
    python: str
    libc: str
    threads: int
    runtimes: tuple[Availability, ...]
    findings: tuple[DoctorFinding, ...]


def doctor(root: Path = Path("/")) -> DoctorReport:
    """Look at the machine and try to import every engine.

    Args:
        root: where the machine's /proc, /sys, /dev and /etc lie. Python, its packages and the engines are always
            those of the running process.
    """
    machine = probe(root)
    runtimes = availability()
    findings = [
        *_platform_findings(machine),
        *_cpu_findings(machine, runtimes),
        *_memory_findings(machine, runtimes),
        *_runtime_findings(runtimes),
        *npu_findings(machine),
    ]
    grave: list[Level] = ["problem", "warning", "note"]
    return DoctorReport(
        machine=machine,
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip() or "unknown",
        threads=default_threads(machine),
        runtimes=runtimes,
        findings=tuple(sorted(findings, key=lambda finding: grave.index(finding.level))),
    )


def render(report: DoctorReport) -> str:
    """The report as plain text for a terminal."""
    machine = report.machine
    facts = [
        ("machine", machine.model or "(no model name)"),
        ("system", ", ".join(filter(None, (machine.system, f"Linux {machine.kernel}".strip(), report.libc)))),
        ("Python", f"{report.python}, {machine.isa}"),
    ]
    for name, cluster in machine.clusters.items():
        clock = f" at {cluster.max_mhz} MHz" if cluster.max_mhz else ""
        label = "cores" if len(machine.clusters) == 1 else f"cores ({name})"
        facts.append((label, f"{cluster.count} x {cluster.core}{clock}"))
        kernels = " ".join(feature for feature in cluster.features if feature in KERNEL_FEATURES)
        facts.append(("  features", kernels or "none that the engines' kernels use"))
    if machine.caches:
        facts.append(("caches", ", ".join(f"L{c.level} {c.kind} {c.instances} x {c.kib} KiB" for c in machine.caches)))
    usable = f"{machine.usable_cpus:g} of {machine.logical_cpus} CPUs usable"
    facts.append(("threads", f"{report.threads} by default; {usable}"))
    if machine.memory.total_mib:
        memory = machine.memory
        facts.append(("memory", f"{memory_text(memory.total_mib)}, {memory_text(memory.available_mib)} available"))
        facts += [("  limit", f"{memory_text(limit.mib)}: {limit.source}") for limit in memory.limits]
    else:
        facts.append(("memory", "unknown: /proc/meminfo cannot be read"))
    for found in report.runtimes:
        state = f"{found.engine} {found.version} on {', '.join(found.devices)}" if found.available else found.reason
        facts.append((found.runtime, state if found.available else f"not usable: {state}"))
    facts += [("NPU", f"{npu.name} at {npu.node} (driver {npu.driver})") for npu in machine.npus]
    if not machine.npus:
        facts.append(("NPU", "none found"))
    lines = [columns(facts), ""]
    for finding in report.findings:
        lines.append(wrapped(f"{_MARKS[finding.level]}: {finding.what}", ""))
        lines.append(wrapped(finding.why, "    "))
        lines.append(wrapped(f"-> {finding.advice}", "    "))
    if not report.findings:
        lines.append("Nothing stands in the way.")
    return "\n".join(lines)


def _platform_findings(machine: Machine) -> Iterator[DoctorFinding]:
    if machine.isa not in _ISAS:
        yield DoctorFinding(
            "problem",
            f"the system is {machine.isa}",
            "the engines are published for x86_64 and aarch64 only",
            "install a 64-bit operating system (on a Raspberry Pi: Raspberry Pi OS, 64-bit)",
        )
    elif sys.maxsize < 2**32:
        yield DoctorFinding(
            "problem",
            "this Python is a 32-bit program",
            "the engines are published for 64-bit Python only",
            "install a 64-bit Python and make the environment anew",
        )
    if platform.libc_ver()[0] not in ("glibc", ""):
        yield DoctorFinding(
            "problem",
            f"the C library is {platform.libc_ver()[0]}",
            "the engines are published for glibc",
            "use a distribution with glibc, such as Debian",
        )


def _cpu_findings(machine: Machine, runtimes: tuple[Availability, ...]) -> Iterator[DoctorFinding]:
    features = machine.features
    cores = ", ".join(dict.fromkeys(cluster.core for cluster in machine.clusters.values()))
    if machine.isa in _ISAS and not has_dot_product(features):
        yield DoctorFinding(
            "warning",
            f"no int8 dot product on {cores}",
            "int8 models work, but gain less over float32 here than on CPUs with "
            + ("asimddp" if machine.isa == "aarch64" else "VNNI"),
            "nothing to do; expect about half the gain, and prune more if the time budget is missed",
        )
    if machine.isa == "x86_64" and not has_dot_product(features):
        yield DoctorFinding(
            "warning",
            "int8 products can saturate on this CPU",
            "without VNNI the kernels of ONNX Runtime and OpenVINO may sum pairs of uint8 by int8 products in 16 bits",
            "keep the known-answer check on; if an artifact fails it, take LiteRT",
        )
    if machine.isa == "x86_64" and "avx2" not in features:
        yield DoctorFinding(
            "warning",
            f"no AVX2 on {cores}",
            "the engines fall back to SSE kernels, several times slower",
            "expect long latencies, or use another machine",
        )
    if "asimdhp" in features and any(r.runtime == "openvino" and r.available for r in runtimes):
        yield DoctorFinding(
            "note",
            "OpenVINO computes in f16 by default on this CPU",
            "answers then differ from the other runtimes' in the third decimal",
            "leave INFERENCE_PRECISION_HINT=f32 as edgescribe sets it; other programs have to set it themselves",
        )
    if len(machine.clusters) > 1:
        fastest = next(iter(machine.clusters.values()))
        yield DoctorFinding(
            "note",
            f"the cores differ: {fastest.count} x {fastest.core} are the fastest",
            "a layer is cut into equal parts, so a slow core holds up the others",
            f"use no more than {fastest.count} threads, and taskset where the time varies",
        )
    if machine.usable_cpus < 1:
        yield DoctorFinding(
            "warning",
            f"this process gets {machine.usable_cpus:g} of a CPU",
            "its control group has a CPU quota, and calls pause when it is used up",
            "raise the quota (cpu.max, or docker --cpus), or expect long p99 latencies",
        )


def _memory_findings(machine: Machine, runtimes: tuple[Availability, ...]) -> Iterator[DoctorFinding]:
    memory = machine.memory
    if not memory.total_mib:
        yield DoctorFinding(
            "warning", "the size of memory is unknown", "/proc/meminfo cannot be read", "mount /proc in this container"
        )
        return
    usable = memory.usable_mib
    origin = memory.limits[0].source if memory.limits else "the machine has no more"
    for name, base in ENGINE_BASE_MIB.items():
        if not any(found.runtime == name and found.available for found in runtimes):
            continue
        if usable < base:
            yield DoctorFinding(
                "problem",
                f"{memory_text(usable)} of memory are too little for {name}",
                f"its process takes about {base:.0f} MiB before a model is loaded; the limit: {origin}",
                "raise the limit, or take litert, which needs the least",
            )
        elif usable < 2 * base:
            yield DoctorFinding(
                "warning",
                f"{memory_text(usable)} of memory are tight for {name}",
                f"its process takes about {base:.0f} MiB before a model is loaded; the limit: {origin}",
                "compare the bundle's measured peak memory with the limit (edgescribe check)",
            )
    for limit in memory.limits:
        if "address space" in limit.source and limit.mib < _ADDRESS_SPACE_MIB:
            yield DoctorFinding(
                "warning",
                f"the address space is limited to {memory_text(limit.mib)}",
                "engines map far more memory than they use, so they can fail although memory is free",
                f"raise it above {memory_text(_ADDRESS_SPACE_MIB)} (ulimit -v), or limit memory by a control group",
            )


def _runtime_findings(runtimes: tuple[Availability, ...]) -> Iterator[DoctorFinding]:
    if not any(found.available for found in runtimes):
        yield DoctorFinding(
            "problem",
            "no engine can be used",
            "; ".join(f"{found.runtime}: {found.reason}" for found in runtimes),
            "install one: pip install 'edgescribe[litert]' (or [onnxruntime], [openvino])",
        )
    litert = next((found for found in runtimes if found.runtime == "litert"), None)
    version = _tflite_runtime_version()
    if version is None:
        return
    if int(np.__version__.partition(".")[0]) >= 2:
        yield DoctorFinding(
            "warning" if litert and litert.available else "problem",
            f"tflite_runtime {version} does not work with numpy {np.__version__}",
            "it was built for numpy below 2",
            "pip install ai-edge-litert, or 'numpy<2' where that has no wheel",
        )
    elif litert and litert.engine == "tflite_runtime":
        yield DoctorFinding(
            "warning",
            f"litert runs on tflite_runtime {version}",
            "it computes zeros for dynamic int8 and blockwise int4 models; edgescribe refuses those there",
            "pip install ai-edge-litert, or use w8a8-static and float32 artifacts",
        )


def _tflite_runtime_version() -> str | None:
    try:
        return importlib.metadata.version("tflite-runtime")
    except importlib.metadata.PackageNotFoundError:
        return None


def npu_findings(machine: Machine) -> Iterator[DoctorFinding]:
    """Findings about the machine's NPUs."""
    for npu in machine.npus:
        if not npu.usable:
            yield DoctorFinding(
                "warning",
                f"{npu.name} at {npu.node} is closed to this user",
                "the device node may not be opened for reading and writing",
                f"add the user to the group that owns {npu.node} (often render), and log in again",
            )
        yield DoctorFinding(
            "note",
            f"{npu.name} is not used",
            "this version writes artifacts for CPUs, and never moves one to another device by itself",
            "nothing to do",
        )
