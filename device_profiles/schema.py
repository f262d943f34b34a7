"""The schema of a device profile: what a device has, and the budget it grants each task.

Profiles are TOML files (``catalogue/*.toml``, or any path), decoded strictly with msgspec: an unknown key,
a wrong type or a number out of range is an error that names the key.
Every number carries its source in ``sources`` under its dotted path (``memory.total_mib``,
``clusters.big.max_mhz``, ``budgets.classify.p90_ms``); a source that covers a table names the table.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PositiveInt = Annotated[int, msgspec.Meta(gt=0, le=2**40)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Task = Literal["classify", "tag", "embed", "generate", "summarize"]
RuntimeName = Literal["onnxruntime", "openvino", "litert"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table of a profile: immutable, and strict about its keys."""


class CpuCluster(Table, kw_only=True, frozen=True):
    """Physical cores of one kind. ``features`` are the kernel's names (``asimddp``, ``avx512_vnni``).

    ``max_mhz`` is None where the machine does not tell (virtual machines).
    """

    core: str
    count: PositiveInt
    max_mhz: PositiveInt | None = None
    features: tuple[str, ...] = ()


class Memory(Table, kw_only=True, frozen=True):
    """Main memory. ``bandwidth_gb_s`` is what one process can read in 10^9 bytes a second."""

    total_mib: PositiveInt
    bandwidth_gb_s: PositiveFloat


class Accelerator(Table, kw_only=True, frozen=True):
    """An NPU or the like: ``tops`` are int8 operations in 10^12 a second as its maker states, None where it does not.

    ``sram_kib``: memory on the chip that it can use.
    """

    name: str
    kind: Literal["npu", "gpu", "dsp"]
    tops: PositiveFloat | None = None
    sram_kib: PositiveInt | None = None


class Avoid(Table, kw_only=True, frozen=True):
    """What a runtime must not be used for on this device, and why."""

    what: str
    why: str


class RuntimePreference(Table, kw_only=True, frozen=True):
    """A runtime that works on the device; the order in the file is the order of preference."""

    name: RuntimeName
    threads: PositiveInt
    device: Literal["cpu", "npu"] = "cpu"
    avoid: tuple[Avoid, ...] = ()


class Budget(Table, kw_only=True, frozen=True):
    """What the device grants one task; None grants without limit.

    ``p90_ms``: 90th percentile latency of one call in milliseconds at ``tokens`` input tokens, batch 1;
    ``ttft_ms``: time to first token in milliseconds; ``tokens_per_s``: least decode rate;
    ``peak_rss_mib``: peak resident memory of the process; ``disk_mib``: the artifact with its tokenizer.
    """

    tokens: PositiveInt = 128
    p90_ms: PositiveFloat | None = None
    ttft_ms: PositiveFloat | None = None
    tokens_per_s: PositiveFloat | None = None
    peak_rss_mib: PositiveFloat | None = None
    disk_mib: PositiveFloat | None = None


class DeviceProfile(Table, kw_only=True, frozen=True):
    """A device. ``id`` is its file name without ``.toml``; ``kind`` says what sort of thing it is.

    ``int8_gmac_s`` and ``fp32_gmac_s``: 10^9 multiply-accumulates a second that one core of the first cluster
    reaches in dense layers, for the cost model. ``clusters`` begins with the fastest one.
    ``measured`` tells whether the numbers were read on the device.
    """

    schema_version: Literal[1]
    id: str
    name: str
    kind: Literal["board", "phone", "laptop", "desktop", "npu", "host"]
    isa: Literal["x86_64", "aarch64", "armv8-m"]
    clusters: dict[str, CpuCluster]
    memory: Memory
    int8_gmac_s: PositiveFloat
    fp32_gmac_s: PositiveFloat
    runtimes: tuple[RuntimePreference, ...]
    budgets: dict[Task, Budget]
    sources: dict[str, str]
    accelerators: tuple[Accelerator, ...] = ()
    measured: bool = False
    notes: tuple[str, ...] = ()
