"""Raspberry Pi boards as their kernels describe them in /proc/cpuinfo and /sys, for programs under emulation.

Engines look there for the core's kind and caches, and some crash where nothing is found. Values as read on the
boards with Raspberry Pi OS (64-bit): implementer, part and revision from the MIDR, features from /proc/cpuinfo,
cache sizes from the SoC's datasheets (BCM2837, BCM2711, BCM2712).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CORES = 4


@dataclass(frozen=True)
class Board:
    """A board with four equal cores. ``emulated`` is QEMU's name of the core; caches in KiB, the clock in kHz."""

    model: str
    core: str
    emulated: str
    part: int
    revision: int
    features: str
    level_1: int
    level_2: int
    khz: int

    @property
    def has_dot_product(self) -> bool:
        """Whether the core multiplies int8 by the dot product instructions."""
        return "asimddp" in self.features.split()


BOARDS = (
    Board("Raspberry Pi Zero 2 W Rev 1.0", "Cortex-A53", "cortex-a53", 0xD03, 4, "fp asimd evtstrm crc32 cpuid",
          32, 512, 1_000_000),
    Board("Raspberry Pi 4 Model B Rev 1.5", "Cortex-A72", "cortex-a72", 0xD08, 3, "fp asimd evtstrm crc32 cpuid",
          32, 1024, 1_800_000),
    Board("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", "cortex-a76", 0xD0B, 1,
          "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
          64, 512, 2_400_000),
)  # fmt: skip


def write_board(board: Board, root: Path) -> None:
    """Write the board's ``proc`` and ``sys`` below ``root``."""
    _write(root / "proc/cpuinfo", _cpuinfo(board))
    base = root / "sys/devices/system"
    every = f"0-{CORES - 1}"
    for name in ("possible", "present", "online"):
        _write(base / "cpu" / name, every)
    _write(base / "cpu/kernel_max", str(CORES - 1))
    _write(base / "node/online", "0")
    _write(base / "node/node0/cpulist", every)
    _write(base / "node/node0/cpumap", f"{(1 << CORES) - 1:x}")
    for cpu in range(CORES):
        _write_core(board, cpu, base / f"cpu/cpu{cpu}")


def _write_core(board: Board, cpu: int, folder: Path) -> None:
    alone, together = (f"{1 << cpu:x}", str(cpu)), (f"{(1 << CORES) - 1:x}", f"0-{CORES - 1}")
    variant = 4 if board.part == 0xD0B else 0
    midr = 0x41 << 24 | variant << 20 | 0xF << 16 | board.part << 4 | board.revision
    _write(folder / "regs/identification/midr_el1", f"0x{midr:016x}")
    for name, number in (("core_id", cpu), ("physical_package_id", 0), ("cluster_id", 0)):
        _write(folder / "topology" / name, str(number))
    for names, (mask, numbers) in (
        (("core_siblings", "package_cpus", "cluster_cpus"), together),
        (("thread_siblings", "core_cpus"), alone),
    ):
        for name in names:
            _write(folder / "topology" / name, mask)
            _write(folder / f"topology/{name}_list", numbers)
    for name, khz in (("max", board.khz), ("min", 600_000)):
        _write(folder / f"cpufreq/cpuinfo_{name}_freq", str(khz))
        _write(folder / f"cpufreq/scaling_{name}_freq", str(khz))
    caches = ((1, "Data", board.level_1, alone), (1, "Instruction", board.level_1, alone),
              (2, "Unified", board.level_2, together))  # fmt: skip
    for index, (level, kind, kib, (mask, numbers)) in enumerate(caches):
        for name, value in (
            ("level", level), ("type", kind), ("size", f"{kib}K"), ("coherency_line_size", 64),
            ("ways_of_associativity", 4), ("number_of_sets", kib * 1024 // 256),
            ("shared_cpu_map", mask), ("shared_cpu_list", numbers),
        ):  # fmt: skip
            _write(folder / f"cache/index{index}" / name, str(value))


def _cpuinfo(board: Board) -> str:
    variant = "0x4" if board.part == 0xD0B else "0x0"
    core = "".join(
        f"processor\t: {cpu}\nBogoMIPS\t: 108.00\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {variant}\nCPU part\t: {board.part:#x}\n"
        f"CPU revision\t: {board.revision}\n\n"
        for cpu in range(CORES)
    )
    return f"{core}Model\t\t: {board.model}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
