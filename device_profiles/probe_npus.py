"""NPUs of this machine, found by the device nodes of their drivers."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .system_files import listing, read_text

# Drivers in the kernel's compute-accelerator subsystem (/dev/accel, Documentation/accel) and, for Rockchip's own
# kernel, in /dev/dri.
_ACCEL_DRIVERS = {
    "intel_vpu": "Intel NPU",
    "amdxdna": "AMD XDNA NPU",
    "rocket": "Rockchip NPU",
    "ethosu": "Arm Ethos-U",
    "qaic": "Qualcomm Cloud AI",
    "habanalabs": "Intel Gaudi",
    "rknpu": "Rockchip NPU",
}
# Nodes that drivers outside that subsystem make.
_NODES = (
    ("rknpu*", "Rockchip NPU", "rknpu"),
    ("ethosu*", "Arm Ethos-U", "ethosu"),
    ("hailo*", "Hailo", "hailo_pci"),
    ("apex_*", "Coral Edge TPU", "apex"),
    ("fastrpc-cdsp", "Qualcomm Hexagon", "fastrpc"),
    ("galcore", "VeriSilicon NPU or GPU", "galcore"),
)


class Npu(msgspec.Struct, frozen=True):
    """An accelerator: its driver, its node, and whether this process may open the node."""

    name: str
    driver: str
    node: str
    usable: bool


def probe_npus(root: Path = Path("/")) -> tuple[Npu, ...]:
    """NPUs whose driver is loaded. One without a driver has no node and is not found."""
    found = []
    for folder, pattern, subsystem in (("dev/accel", "accel*", "accel"), ("dev/dri", "renderD*", "drm")):
        for node in listing(root / folder, pattern):
            driver = _driver(root / "sys/class" / subsystem / node.name / "device")
            name = _ACCEL_DRIVERS.get(driver.lower(), "" if subsystem == "drm" else f"accelerator ({driver})")
            if name:
                found.append(_npu(root, node, name, driver))
    for pattern, name, driver in _NODES:
        found += [_npu(root, node, name, driver) for node in listing(root / "dev", pattern)]
    return tuple(found)


def _driver(device: Path) -> str:
    """The driver's name: the link that sysfs has, or the DRIVER line of ``uevent``."""
    try:
        return (device / "driver").readlink().name
    except OSError:
        lines = (read_text(device / "uevent") or "").splitlines()
        return next((line.removeprefix("DRIVER=") for line in lines if line.startswith("DRIVER=")), "unknown driver")


def _npu(root: Path, node: Path, name: str, driver: str) -> Npu:
    return Npu(name, driver, "/" + str(node.relative_to(root)), os.access(node, os.R_OK | os.W_OK))
