from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
from edgescribe.device_profiles import int8_speed
from edgescribe.device_profiles.measure import measure_profile
from edgescribe.device_profiles.profiles import dangling_sources, load_profile, parse_profile, profile_toml
from edgescribe.device_profiles.profiles import unsourced_numbers as unsourced


def test_this_machine_is_measured_and_every_number_says_how() -> None:
    steps: list[tuple[float, str]] = []
    profile = measure_profile(0.3, lambda fraction, what: steps.append((fraction, what)))
    assert profile.measured
    assert (profile.id, profile.kind) == ("host", "host")
    assert unsourced(profile) == []
    assert dangling_sources(profile) == []
    for key in ("memory.bandwidth_gb_s", "fp32_gmac_s"):
        assert profile.sources[key].startswith("measured: ")
    assert [step[0] for step in steps] == sorted(step[0] for step in steps)
    assert steps[-1] == (1.0, "done")
    assert 1 <= profile.runtimes[0].threads <= 4
    assert parse_profile(profile_toml(profile).encode(), "host") == profile


def test_host_is_a_name_of_a_profile() -> None:
    assert load_profile("host").measured


@pytest.mark.parametrize(("module", "start"), [("onnxruntime", "_onnxruntime"), ("openvino", "_openvino")])
def test_each_engine_computes_the_int8_layer(module: str, start: str) -> None:
    pytest.importorskip(module, reason=f"the engine {module} is not installed")
    call, engine = getattr(int8_speed, start)()
    assert int8_speed.best_rate(call, 0.02) > 0
    assert engine.split()[-1][0].isdigit()


def test_the_int8_layer_of_onnxruntime_gives_the_exact_product() -> None:
    import numpy as np

    ort = pytest.importorskip("onnxruntime", reason="the engine onnxruntime is not installed")
    session = ort.InferenceSession(int8_speed._dense_onnx(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": int8_speed._activations()})
    expected = int8_speed._activations().astype(np.int32) @ int8_speed._weights().astype(np.int32)
    np.testing.assert_array_equal(got, expected)


def test_without_an_engine_int8_is_derived_from_the_cpu() -> None:
    code = (
        "import sys\n"
        "for engine in ('onnxruntime', 'openvino', 'ai_edge_litert'): sys.modules[engine] = None\n"
        "from edgescribe.device_profiles.measure import measure_profile\n"
        "p = measure_profile(0.2)\n"
        "print(p.sources['int8_gmac_s']); print(p.int8_gmac_s / p.fp32_gmac_s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    source, ratio = done.stdout.splitlines()
    assert source.startswith("derived by edgescribe")
    assert float(ratio) == pytest.approx(1.5, rel=0.05) or float(ratio) == pytest.approx(3, rel=0.05)


def test_reading_profiles_imports_no_engine() -> None:
    code = (
        "import sys, edgescribe.device_profiles.profiles as p, edgescribe.device_profiles.measure\n"
        "p.load_profile('raspberry-pi-5')\n"
        "print([m for m in ('onnxruntime', 'openvino', 'ai_edge_litert', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.import_module("edgescribe.device_profiles.profiles")
