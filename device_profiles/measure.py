"""Measures the machine this runs on and describes it as a device profile.

The best of many repetitions counts for each rate, as in STREAM: other work on the machine can only lower a rate.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec
import numpy as np

from ..errors import EngineError
from .dense_speed import MACS, ROWS, WIDTH, engine_gmac_s
from .int8_gain import KERNEL_FEATURES, int8_gain
from .probe import Machine, default_threads, probe
from .schema import Accelerator, Avoid, Budget, DeviceProfile, Memory, RuntimePreference, Task

Progress = Callable[[float, str], None]

_MIB = 1 << 20
# The import name of each runtime's engine. LiteRT goes first: of the three it takes the least memory, and with int8
# encoders the least time (benchmarks/classify.py).
_ENGINES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "litert": ("ai_edge_litert", "tflite_runtime")}
_ORDER = {"x86_64": ("litert", "openvino", "onnxruntime"), "aarch64": ("litert", "onnxruntime", "openvino")}

# Runs in a process of its own: BLAS reads its number of threads once, when numpy is imported.
_FLOAT_DENSE = f"""
import sys, time
import numpy as np
x, w = np.ones(({ROWS}, {WIDTH}), np.float32), np.ones(({WIDTH}, {WIDTH}), np.float32)
y = x @ w
best, end = float("inf"), time.perf_counter() + float(sys.argv[1])
while (start := time.perf_counter()) < end:
    np.matmul(x, w, out=y)
    best = min(best, time.perf_counter() - start)
print({MACS} / best / 1e9)
"""


def measure_profile(seconds: float = 10.0, progress: Progress | None = None) -> DeviceProfile:
    """Measure this machine; the profile's id is ``host``.

    Args:
        seconds: about how long to measure, 0.1 to 600; longer finds quieter moments on a busy machine.
        progress: called with the part done (0 to 1) and what comes next.

    Returns:
        A profile with ``measured`` set, whose ``sources`` say how each number was come by.

    Raises:
        EngineError: the machine does not tell what a profile needs (neither x86-64 nor 64-bit ARM, or no /proc).
    """
    seconds = min(max(seconds, 0.1), 600.0)
    report = progress or _silent
    machine = probe()
    if machine.isa not in ("x86_64", "aarch64"):
        raise EngineError(
            f"this machine is {machine.isa}; edgescribe measures x86_64 and aarch64. "
            f"On 64-bit ARM install a 64-bit operating system"
        )
    if machine.memory.total_mib <= 0:
        raise EngineError("the size of memory cannot be read from /proc/meminfo; is /proc mounted?")
    threads = default_threads(machine)
    report(0.0, "memory bandwidth")
    bandwidth, how_bandwidth = _read_bandwidth(machine, threads, seconds * 0.4)
    report(0.4, "float32 dense layer")
    fp32, how_fp32 = _float_rate(seconds * 0.3, machine)
    report(0.7, "int8 dense layer")
    int8, how_int8 = _int8_rate(seconds * 0.3, machine, fp32)
    report(1.0, "done")
    memory_source = "read from /proc/meminfo"
    if machine.memory.usable_mib < machine.memory.total_mib:
        memory_source = f"limit of this process: {machine.memory.limits[0].source}"
    clusters = {
        name: msgspec.structs.replace(
            cluster, features=tuple(f for f in cluster.features if f in KERNEL_FEATURES)
        )
        for name, cluster in machine.clusters.items()
    }
    return DeviceProfile(
        schema_version=1,
        id="host",
        name=_name(machine),
        kind="host",
        isa=machine.isa,  # type: ignore[arg-type]  # checked above
        clusters=clusters,
        memory=Memory(total_mib=machine.memory.usable_mib, bandwidth_gb_s=_rounded(bandwidth)),
        int8_gmac_s=_rounded(int8),
        fp32_gmac_s=_rounded(fp32),
        runtimes=_runtimes(machine, threads),
        budgets=_budgets(machine),
        accelerators=tuple(Accelerator(name=npu.name, kind="npu") for npu in machine.npus),
        measured=True,
        sources={
            "clusters": "read from /proc/cpuinfo and /sys/devices/system/cpu",
            "memory.total_mib": memory_source,
            "memory.bandwidth_gb_s": how_bandwidth,
            "fp32_gmac_s": how_fp32,
            "int8_gmac_s": how_int8,
            "runtimes": "chosen by edgescribe: physical cores of the fastest kind, at most 4",
            "budgets": "budget chosen by edgescribe: interactive use, at most a quarter of memory",
        },
        notes=(f"measured on {datetime.now(UTC):%Y-%m-%d} in {seconds:g} s, {machine.system or platform.system()}",),
    )


def _silent(_fraction: float, _what: str) -> None:
    return


def _name(machine: Machine) -> str:
    cores = " + ".join(f"{cluster.count} x {cluster.core}" for cluster in machine.clusters.values())
    return f"{machine.model} ({cores})" if machine.model else cores


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _read_bandwidth(machine: Machine, threads: int, seconds: float) -> tuple[float, str]:
    """10^9 bytes read a second: the largest element of an array far larger than the caches, in slices by thread."""
    wanted = max(64 * _MIB, 4 * machine.last_level_cache_kib * 1024)
    spare = min(machine.memory.available_mib or machine.memory.usable_mib, machine.memory.usable_mib) * _MIB // 4
    size = max(8 * _MIB, min(wanted, spare, 1024 * _MIB)) // (8 * threads) * 8 * threads
    # Written, so that the pages are real ones and not all the same page of zeros.
    slices = np.split(np.ones(size // 8, np.uint64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        end = time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.max, slices))
            best = min(best, time.perf_counter() - start)
    how = f"measured: {threads} threads reading {size // _MIB} MiB with numpy, best pass"
    if size <= machine.last_level_cache_kib * 1024:
        how += "; the buffer fits the cache for want of memory, so this is too high"
    return size / best / 1e9, how


def _float_rate(seconds: float, machine: Machine) -> tuple[float, str]:
    """One core's rate: the better of numpy's and an engine's, for either may lack kernels for this CPU."""
    rates = [_numpy_rate(seconds / 2, machine)]
    engine = engine_gmac_s(int8=False, seconds=seconds / 2)
    if engine is not None:
        rates.append((engine[0], _how(engine[1])))
    return max(rates)


def _how(engine: str) -> str:
    return f"measured: {ROWS} x {WIDTH} by {WIDTH} x {WIDTH} with {engine}, one thread, best call"


def _numpy_rate(seconds: float, machine: Machine) -> tuple[float, str]:
    """One core's rate by numpy, in a process of its own with one BLAS thread."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _FLOAT_DENSE, str(seconds)],
            env={**os.environ, **single},
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=True,
        )
        return float(done.stdout), _how(f"numpy {np.__version__}")
    except (OSError, subprocess.SubprocessError, ValueError):
        pass  # no process can be started here: measure in this one, with as many threads as BLAS has
    x, w = np.ones((ROWS, WIDTH), np.float32), np.ones((WIDTH, WIDTH), np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(x, w)
        best = min(best, time.perf_counter() - start)
    cores = max(1, int(min(machine.usable_cpus, machine.cores)))
    return MACS / best / 1e9 / cores, _how(f"numpy {np.__version__}").replace(
        "one thread", f"all threads, divided by {cores} cores"
    )


def _int8_rate(seconds: float, machine: Machine, fp32: float) -> tuple[float, str]:
    measured = engine_gmac_s(int8=True, seconds=seconds)
    if measured is not None:
        return measured[0], _how(measured[1])
    gain = int8_gain(machine.features)
    return fp32 * gain, f"derived by edgescribe: fp32_gmac_s times {gain:g} by the CPU's features, no engine here"


def _runtimes(machine: Machine, threads: int) -> tuple[RuntimePreference, ...]:
    installed = {name for name, modules in _ENGINES.items() if any(map(_installed, modules))}
    order = _ORDER[machine.isa]
    return tuple(
        RuntimePreference(name=name, threads=threads, avoid=_avoid(name, machine))  # type: ignore[arg-type]
        for name in order
        if name in installed or not installed
    )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _avoid(runtime: str, machine: Machine) -> tuple[Avoid, ...]:
    if runtime == "openvino" and machine.isa == "aarch64" and "asimdhp" in machine.features:
        return (Avoid(what="its default precision", why="it picks f16 on this CPU; set INFERENCE_PRECISION_HINT=f32"),)
    if runtime == "litert" and not _installed("ai_edge_litert") and _installed("tflite_runtime"):
        return (Avoid(what="dynamic int8 and int4 models", why="tflite_runtime computes zeros for them"),)
    return ()


def _budgets(machine: Machine) -> dict[Task, Budget]:
    quarter = float(max(1, machine.memory.usable_mib // 4))
    encoder = Budget(p90_ms=50.0, peak_rss_mib=min(250.0, quarter), disk_mib=50.0)
    decoder = Budget(ttft_ms=1000.0, tokens_per_s=20.0, peak_rss_mib=min(1000.0, quarter), disk_mib=250.0)
    return {"classify": encoder, "tag": encoder, "embed": encoder, "generate": decoder, "summarize": decoder}
