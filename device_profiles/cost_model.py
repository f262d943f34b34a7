"""Predicts latency and peak memory of a model on a device from its profile: a roofline with overheads.

The model::

    compute  = MACs / (rate of one core * gain of the threads)
    memory   = (weight bytes + activation bytes) / bandwidth
    latency  = max(compute, memory) + operators * overhead of one operator on this engine and clock
    p90      = latency * 1.15
    peak RSS = engine with Python and numpy + weights as loaded and packed + four activations of average size

The roofline is that of Williams, Waterman and Patterson (CACM 52/4, 2009). The gain of threads is Amdahl's law with
a serial part of 0.25. Base memory was measured on x86-64 in processes that import numpy, tokenizers and one engine and
run a tiny model; the overhead of an operator is an estimate of the same order as empty operators take there.

How well it does: eight dense layers of width 128, 256 and 512 (hidden 4 times that) at 128 tokens, int8 and float32,
one thread of ONNX Runtime and OpenVINO on x86-64 with AVX512-VNNI, two runs, quietest tenth of calls: the prediction
was 0.77 to 1.13 times the time. That machine was busy, so it says nothing of p90 or of two threads; attention, norms
and other CPUs were not in it. What the model leaves out: caches (a small model's weights stay there between calls, so
``memory`` is an upper bound), heat, other load. The stated error is therefore wide: half either way on a measured
machine, all of it on one known from published numbers. A budget is met by measurement, not by this.
"""

from __future__ import annotations

from dataclasses import dataclass

from .int8_gain import int8_gain
from .schema import DeviceProfile, RuntimeName

_MIB = 1 << 20
_SERIAL_PART = 0.25
P90_OVER_TYPICAL = 1.15
"""How much longer the 90th percentile of a call is taken to be than a typical call."""

_LIVE_ACTIVATIONS = 4
_REFERENCE_MHZ = 4000  # clock at which the overheads hold; a slower core takes proportionally longer
_UNKNOWN_MHZ = 2000


@dataclass(frozen=True)
class _Engine:
    base_mib: float
    weight_copies: float
    operator_us: float


# Base memory in MiB (41, 58 and 103 MB as measured); engines keep weights packed beside the file's own copy.
_ENGINES: dict[RuntimeName, _Engine] = {
    "litert": _Engine(base_mib=39.0, weight_copies=2.0, operator_us=3.0),
    "onnxruntime": _Engine(base_mib=55.0, weight_copies=2.0, operator_us=4.0),
    "openvino": _Engine(base_mib=98.0, weight_copies=2.0, operator_us=4.0),
}

ENGINE_BASE_MIB: dict[RuntimeName, float] = {name: engine.base_mib for name, engine in _ENGINES.items()}
"""Resident memory in MiB of a process that has imported numpy, tokenizers and the engine and run a tiny model."""


@dataclass(frozen=True)
class Workload:
    """One call of a model.

    Attributes:
        macs: multiply-accumulates of all dense layers and attention products.
        int8: whether they are done in int8 (float32 otherwise).
        weight_bytes: of all weights, in the width they have in the artifact.
        activation_bytes: read and written by all operators together.
        operators: nodes that the engine runs one after the other, after its own fusion.
    """

    macs: int
    int8: bool
    weight_bytes: int
    activation_bytes: int
    operators: int


@dataclass(frozen=True)
class Prediction:
    """p90 latency of one call in milliseconds, peak resident memory in MiB, and how far off either may be.

    ``error_fraction`` 0.5 means: the true value is expected between half and one and a half times the prediction.
    """

    p90_ms: float
    peak_rss_mib: float
    error_fraction: float


def predict(profile: DeviceProfile, work: Workload, runtime: RuntimeName, threads: int) -> Prediction:
    """Predict one call on the device's CPU.

    Args:
        threads: intra-operator threads; more than the device has cores count as its cores.

    Raises:
        ValueError: a negative size or fewer than one thread.
    """
    if threads < 1 or min(work.macs, work.weight_bytes, work.activation_bytes, work.operators) < 0:
        raise ValueError(f"sizes must not be negative and threads at least 1, got {work} and {threads} threads")
    engine = _ENGINES[runtime]
    rate = (profile.int8_gmac_s if work.int8 else profile.fp32_gmac_s) * 1e9
    compute = work.macs / (rate * _gain(profile, threads, work.int8))
    memory = (work.weight_bytes + work.activation_bytes) / (profile.memory.bandwidth_gb_s * 1e9)
    clock = next(iter(profile.clusters.values())).max_mhz or _UNKNOWN_MHZ
    overhead = work.operators * engine.operator_us * 1e-6 * _REFERENCE_MHZ / clock
    live = _LIVE_ACTIVATIONS * work.activation_bytes / max(1, work.operators)
    return Prediction(
        p90_ms=(max(compute, memory) + overhead) * P90_OVER_TYPICAL * 1e3,
        peak_rss_mib=engine.base_mib + (work.weight_bytes * engine.weight_copies + live) / _MIB,
        error_fraction=0.5 if profile.measured else 1.0,
    )


def _gain(profile: DeviceProfile, threads: int, int8: bool) -> float:
    """How much faster ``threads`` are than one thread on the first cluster's core.

    Threads go to the fastest cores first. A layer is cut into equal parts, so with cores of several speeds the
    slowest one used sets the pace; an engine with more threads than fast cores is never slower than with those alone.
    """
    first = next(iter(profile.clusters.values()))
    best, used = 1.0, 0
    for cluster in profile.clusters.values():
        if used < threads:
            used = min(used + cluster.count, threads)
            pace = (cluster.max_mhz or 1) / (first.max_mhz or 1) if cluster.max_mhz and first.max_mhz else 1.0
            if int8:
                pace *= int8_gain(cluster.features) / int8_gain(first.features)
            best = max(best, min(1.0, pace) / (_SERIAL_PART + (1 - _SERIAL_PART) / used))
    return best
