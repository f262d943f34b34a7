from __future__ import annotations

import re

import pytest
from edgescribe.device_profiles.int8_gain import int8_gain
from edgescribe.device_profiles.profiles import HOST, dangling_sources, list_profiles, load_profile, unsourced_numbers

CATALOGUE = [name for name in list_profiles() if name != HOST]
PUBLISHED = re.compile(r"https://[\w.-]+\.\w+/")
OWN = re.compile(r"(budget )?(chosen|derived|estimated) by edgescribe\b.{10,}", re.DOTALL)


def test_every_promised_device_is_there() -> None:
    assert {
        "raspberry-pi-5",
        "raspberry-pi-4",
        "raspberry-pi-zero-2-w",
        "desktop-avx2",
        "desktop-avx512-vnni",
        "intel-laptop-npu",
        "rk3588",
        "android-phone",
        "ethos-u",
    } == set(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_number_has_a_source_and_every_source_a_number(name: str) -> None:
    profile = load_profile(name)
    assert unsourced_numbers(profile) == []
    assert dangling_sources(profile) == []


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_source_is_published_or_says_that_the_number_is_ours(name: str) -> None:
    for path, source in load_profile(name).sources.items():
        assert PUBLISHED.search(source) or OWN.match(source), f"{path}: {source}"
        if path.startswith("budgets"):
            assert source.startswith("budget chosen by edgescribe")


@pytest.mark.parametrize("name", CATALOGUE)
def test_profile_is_plausible(name: str) -> None:
    profile = load_profile(name)
    assert profile.id == name
    assert not profile.measured
    assert {"classify", "tag", "embed"} <= set(profile.budgets)
    clusters = list(profile.clusters.values())
    assert clusters[0].max_mhz == max(cluster.max_mhz or 0 for cluster in clusters)
    assert profile.int8_gmac_s == pytest.approx(profile.fp32_gmac_s * int8_gain(clusters[0].features), rel=0.02)
    for budget in profile.budgets.values():
        assert budget.peak_rss_mib is not None
        assert budget.peak_rss_mib < profile.memory.total_mib / 3


def test_openvino_is_kept_from_the_smallest_board_and_warned_of_on_cortex_a76() -> None:
    assert "openvino" not in [runtime.name for runtime in load_profile("raspberry-pi-zero-2-w").runtimes]
    openvino = next(r for r in load_profile("raspberry-pi-5").runtimes if r.name == "openvino")
    assert any("f16" in avoid.why for avoid in openvino.avoid)


def test_tflite_runtime_is_warned_of_on_every_board_of_raspberry_pi() -> None:
    for name in ("raspberry-pi-5", "raspberry-pi-4", "raspberry-pi-zero-2-w"):
        litert = next(r for r in load_profile(name).runtimes if r.name == "litert")
        assert any("zeros" in avoid.why for avoid in litert.avoid)


def test_x86_profiles_prefer_runtimes_as_measured() -> None:
    """docs/benchmarks.md: LiteRT is fastest; without VNNI OpenVINO's int8 is out of the question."""
    for name in ("desktop-avx512-vnni", "intel-laptop-npu"):
        assert [runtime.name for runtime in load_profile(name).runtimes] == ["litert", "openvino", "onnxruntime"]
    assert [runtime.name for runtime in load_profile("desktop-avx2").runtimes] == ["litert", "onnxruntime", "openvino"]
