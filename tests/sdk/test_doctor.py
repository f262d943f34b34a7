from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from edgescribe.runtimes.registry import RUNTIMES
from edgescribe.sdk.doctor import DoctorReport, doctor, npu_findings, render

MACHINES = Path(__file__).parents[1] / "device_profiles" / "machines"


def examine(name: str, folder: Path) -> DoctorReport:
    """The doctor's report on a machine of tests/device_profiles/machines, with this environment's engines."""
    sections = re.split(r"^== (.*)\n", (MACHINES / f"{name}.txt").read_text(), flags=re.MULTILINE)[1:]
    for path, content in zip(sections[::2], sections[1::2], strict=True):
        span = re.search(r"\{(\d+)-(\d+)\}", path)
        for number in range(int(span[1]), int(span[2]) + 1) if span else [0]:
            file = folder / (path.replace(span[0], str(number)) if span else path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content.replace("{}", str(number)))
    return doctor(folder)


def whats(report: DoctorReport) -> str:
    return "\n".join(f"{finding.level}: {finding.what}" for finding in report.findings)


def test_this_machine() -> None:
    report = doctor()
    assert [found.runtime for found in report.runtimes] == list(RUNTIMES)
    assert report.machine.memory.total_mib > 0
    text = render(report)
    for found in report.runtimes:
        assert found.runtime in text
        assert (found.version if found.available else "not usable") in text
    assert next(iter(report.machine.clusters.values())).core in text


def test_the_report_is_json() -> None:
    decoded = json.loads(msgspec.json.encode(doctor()))
    assert {"machine", "runtimes", "findings", "threads"} <= set(decoded)
    assert decoded["runtimes"][0]["runtime"] == RUNTIMES[0]


def test_raspberry_pi_5_has_nothing_to_complain_of(tmp_path: Path) -> None:
    report = examine("raspberry-pi-5", tmp_path)
    assert [finding for finding in report.findings if finding.level != "note"] == []
    text = render(report)
    assert "4 x Cortex-A76 at 2400 MHz" in text
    assert "asimddp" in text
    assert "Raspberry Pi 5 Model B" in text


@pytest.mark.parametrize(("name", "core"), [("raspberry-pi-4", "Cortex-A72"), ("raspberry-pi-zero-2-w", "Cortex-A53")])
def test_missing_dot_product_is_explained(tmp_path: Path, name: str, core: str) -> None:
    finding = next(f for f in examine(name, tmp_path).findings if "dot product" in f.what)
    assert core in finding.what
    assert "int8 models work" in finding.why


def test_a_memory_limit_below_an_engine_s_need_is_a_problem(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="only an engine that is installed can be too large")
    report = examine("raspberry-pi-zero-2-w", tmp_path)
    finding = next(f for f in report.findings if "openvino" in f.what)
    assert finding.level == "problem"
    assert "80 MiB" in finding.what
    assert "memory.max" in finding.why
    assert "0.5 of a CPU" in whats(report)
    assert report.findings[0].level == "problem"


def test_x86_without_vnni_is_warned_of_saturation(tmp_path: Path) -> None:
    report = examine("desktop-without-vnni", tmp_path)
    assert "saturate" in whats(report)
    assert "address space is limited to 1 GiB" in whats(report)


def test_npus_and_slow_cores_are_named(tmp_path: Path) -> None:
    report = examine("rk3588", tmp_path)
    assert "Rockchip NPU is not used" in whats(report)
    assert "4 x Cortex-A76 are the fastest" in whats(report)
    assert "Rockchip NPU at /dev/dri/renderD129 (driver RKNPU)" in render(report)


def test_a_closed_device_node_is_told(tmp_path: Path) -> None:
    machine = examine("intel-laptop", tmp_path).machine
    # Given as read by an ordinary user: the tests may run as root, to whom no node is closed.
    closed = msgspec.structs.replace(machine.npus[0], usable=False)
    findings = list(npu_findings(msgspec.structs.replace(machine, npus=(closed,))))
    assert findings[0].what == "Intel NPU at /dev/accel/accel0 is closed to this user"
    assert findings[0].level == "warning"


def test_a_32_bit_system_is_a_problem(tmp_path: Path) -> None:
    report = examine("raspberry-pi-32-bit", tmp_path)
    assert report.findings[0].level == "problem"
    assert "armv7l" in report.findings[0].what


def test_without_any_engine_the_extras_are_named() -> None:
    code = (
        "import sys\n"
        "for engine in ('onnxruntime', 'openvino', 'ai_edge_litert', 'tflite_runtime'): sys.modules[engine] = None\n"
        "from edgescribe.sdk.doctor import doctor, render\n"
        "print(render(doctor()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "PROBLEM: no engine can be used" in done.stdout
    assert "edgescribe[litert]" in done.stdout


def test_an_empty_machine_is_reported_without_a_crash(tmp_path: Path) -> None:
    report = doctor(tmp_path)
    assert "size of memory is unknown" in whats(report)
    assert render(report)
