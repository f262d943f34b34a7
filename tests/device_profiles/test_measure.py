from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
from edgescribe.device_profiles import dense_speed
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


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_engine_computes_the_layer_that_is_timed(engine: str, int8: bool) -> None:
    pytest.importorskip(engine, reason=f"the engine {engine} is not installed")
    call, name = getattr(dense_speed, f"{engine}_call")(int8)
    (got,) = call()
    expected = dense_speed.activations(int8).astype(np.int64) @ dense_speed.weights(int8).astype(np.int64)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1)
    assert dense_speed.best_rate(call, 0.02) > 0
    assert name.split()[-1][0].isdigit()


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
