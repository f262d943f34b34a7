from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from edgescribe.device_profiles.probe import default_threads, probe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Root = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "isa", "core", "count", "mhz", "dot"),
    [
        ("raspberry-pi-5", "aarch64", "Cortex-A76", 4, 2400, True),
        ("raspberry-pi-4", "aarch64", "Cortex-A72", 4, 1800, False),
        ("raspberry-pi-zero-2-w", "aarch64", "Cortex-A53", 4, 1000, False),
        ("desktop-without-vnni", "x86_64", "AMD Ryzen 5 5600X", 2, 3600, False),
    ],
)
def test_machines_with_one_kind_of_core(
    machine_root: Root, name: str, isa: str, core: str, count: int, mhz: int, dot: bool
) -> None:
    machine = probe(machine_root(name))
    assert machine.isa == isa
    (cluster,) = machine.clusters.values()
    assert (cluster.core, cluster.count, cluster.max_mhz) == (core, count, mhz)
    assert ("asimddp" in machine.features) is dot


def test_big_and_little_cores_are_told_apart_and_the_big_ones_come_first(machine_root: Root) -> None:
    machine = probe(machine_root("rk3588"))
    assert [(n, c.core, c.count, c.max_mhz) for n, c in machine.clusters.items()] == [
        ("big", "Cortex-A76", 4, 2208),
        ("little", "Cortex-A55", 4, 1800),
    ]
    assert default_threads(machine) == 4


def test_hybrid_x86_splits_by_kind_and_not_by_the_clock_of_each_core(machine_root: Root) -> None:
    machine = probe(machine_root("intel-laptop"))
    assert [(c.core, c.count, c.max_mhz) for c in machine.clusters.values()] == [
        ("Intel Core Ultra 7 258V P-core", 2, 4800),
        ("Intel Core Ultra 7 258V E-core", 2, 3700),
    ]


def test_model_system_and_caches(machine_root: Root) -> None:
    machine = probe(machine_root("raspberry-pi-5"))
    assert machine.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.system == "Debian GNU/Linux 12 (bookworm)"
    assert machine.kernel == "6.6.51+rpt-rpi-2712"
    assert [(c.level, c.kind, c.kib, c.instances) for c in machine.caches] == [
        (1, "Data", 64, 4),
        (3, "Unified", 2048, 1),
    ]
    assert machine.last_level_cache_kib == 2048
    assert (machine.memory.total_mib, machine.memory.available_mib, machine.memory.swap_mib) == (4050, 3342, 99)
    assert machine.memory.limits == ()


def test_limits_of_control_groups_version_2(machine_root: Root) -> None:
    machine = probe(machine_root("raspberry-pi-zero-2-w"))
    (limit,) = machine.memory.limits
    assert limit.mib == 80
    assert "version 2" in limit.source
    assert "tagger.service/memory.max" in limit.source
    assert machine.memory.usable_mib == 80
    assert machine.usable_cpus == 0.5
    assert default_threads(machine) == 1


def test_limits_of_control_groups_version_1_inside_a_container(machine_root: Root) -> None:
    machine = probe(machine_root("intel-laptop"))
    (limit,) = machine.memory.limits
    assert limit.mib == 2048
    assert "version 1" in limit.source
    assert machine.usable_cpus == 1.5
    assert default_threads(machine) == 1


def test_limit_of_the_process_on_its_address_space(machine_root: Root) -> None:
    machine = probe(machine_root("desktop-without-vnni"))
    assert [(limit.mib, "address space" in limit.source) for limit in machine.memory.limits] == [(1024, True)]


def test_npus(machine_root: Root) -> None:
    (rockchip,) = probe(machine_root("rk3588")).npus
    assert (rockchip.name, rockchip.node, rockchip.usable) == ("Rockchip NPU", "/dev/dri/renderD129", True)
    (intel,) = probe(machine_root("intel-laptop")).npus
    assert (intel.name, intel.driver) == ("Intel NPU", "intel_vpu")
    assert probe(machine_root("raspberry-pi-5")).npus == ()


def test_npu_of_arm_ethos(machine_root: Root) -> None:
    root = machine_root("raspberry-pi-4")
    (root / "dev").mkdir()
    (root / "dev/ethosu0").touch()
    assert [npu.name for npu in probe(root).npus] == ["Arm Ethos-U"]


def test_a_32_bit_userland_is_not_taken_for_aarch64(machine_root: Root) -> None:
    assert probe(machine_root("raspberry-pi-32-bit")).isa == "armv7l"


def test_core_not_in_the_table_keeps_its_numbers(machine_root: Root) -> None:
    root = machine_root("raspberry-pi-4")
    info = root / "proc/cpuinfo"
    info.write_text(info.read_text().replace("0xd08", "0xfff"))
    (cluster,) = probe(root).clusters.values()
    assert cluster.core == "Arm part 0xfff"


def test_an_empty_root_is_described_as_unknown(tmp_path: Path) -> None:
    machine = probe(tmp_path)
    (cluster,) = machine.clusters.values()
    assert (cluster.core, cluster.max_mhz, machine.memory.total_mib, machine.npus) == ("unknown", None, 0, ())


def test_this_machine() -> None:
    machine = probe()
    assert machine.isa in ("x86_64", "aarch64")
    assert 1 <= default_threads(machine) <= min(4, machine.logical_cpus)
    assert 0 < machine.memory.usable_mib <= machine.memory.total_mib
    assert machine.clusters
    assert msgspec.json.decode(msgspec.json.encode(machine))["memory"]["total_mib"] == machine.memory.total_mib
    assert sys.maxsize > 2**32


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_raise(machine_root: Root, data: st.DataObject) -> None:
    root = machine_root(data.draw(st.sampled_from(["raspberry-pi-zero-2-w", "intel-laptop", "rk3588"])))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=5)):
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut] + data.draw(st.binary(max_size=20)) + content[cut + 3 :])
    machine = probe(root)
    assert machine.cores >= 1
    assert default_threads(machine) >= 1
