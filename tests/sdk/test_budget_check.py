"""A bundle against a device's budget: where the figures come from and what they are called."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from edgescribe.device_profiles.probe import probe
from edgescribe.device_profiles.profiles import load_profile
from edgescribe.device_profiles.schema import Budget, DeviceProfile, RuntimePreference
from edgescribe.errors import BundleError, EngineError, ProfileError
from edgescribe.sdk.budget_check import check_budget, of_same_kind
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.bundle_writer import write_bundle
from edgescribe.sdk.manifest import Measurement
from edgescribe.sdk.measure import Effort

BRIEF = Effort(samples=4, seconds=0.0, warmup=1)
change = msgspec.structs.replace


@pytest.fixture(scope="module")
def elsewhere() -> DeviceProfile:
    """A device that this machine is not."""
    profile = load_profile("raspberry-pi-5")
    return profile if not of_same_kind(profile, probe()) else load_profile("rk3588")


@pytest.fixture(scope="module")
def here(elsewhere: DeviceProfile) -> DeviceProfile:
    """A profile with this machine's cores under a name of its own."""
    machine = probe()
    return change(elsewhere, id="my-machine", isa=machine.isa, clusters=machine.clusters)


def limited(profile: DeviceProfile, budget: Budget) -> DeviceProfile:
    return change(profile, budgets={"classify": budget})


def test_measured_on_a_machine_of_the_kind(small_bundle: Path, here: DeviceProfile) -> None:
    report = check_budget(small_bundle, here, effort=BRIEF)
    assert report.met
    assert report.device == "my-machine"
    assert report.error_fraction is None
    assert report.basis.startswith("measured on this machine")
    assert {finding.how for finding in report.findings} == {"measured"}
    assert report.tokens == 32  # all that the student reads
    assert "32 tokens" in report.basis


def test_estimated_for_another_device(small_bundle: Path, elsewhere: DeviceProfile) -> None:
    report = check_budget(small_bundle, elsewhere, effort=BRIEF)
    how = {finding.key: finding.how for finding in report.findings}
    assert how == {"p90_ms": "estimated", "peak_rss_mib": "estimated", "disk_mib": "measured"}
    assert report.error_fraction is not None
    assert report.error_fraction > 0
    assert "estimated" in report.basis


def test_a_slower_device_is_estimated_slower(small_bundle: Path, elsewhere: DeviceProfile) -> None:
    slow = change(elsewhere, fp32_gmac_s=elsewhere.fp32_gmac_s / 1e3, int8_gmac_s=elsewhere.int8_gmac_s / 1e3)
    fast = change(elsewhere, fp32_gmac_s=elsewhere.fp32_gmac_s * 1e3, int8_gmac_s=elsewhere.int8_gmac_s * 1e3)
    latency = []
    for profile in (slow, fast):
        (finding,) = [f for f in check_budget(small_bundle, profile, effort=BRIEF).findings if f.key == "p90_ms"]
        assert finding.value is not None
        latency.append(finding.value)
    assert latency[0] > latency[1]


@pytest.mark.parametrize(
    ("budget", "over"),
    [
        (Budget(p90_ms=1e-9), "p90_ms"),
        (Budget(peak_rss_mib=1), "peak_rss_mib"),
        (Budget(disk_mib=1e-9), "disk_mib"),
    ],
)
def test_each_figure_can_be_over(small_bundle: Path, here: DeviceProfile, budget: Budget, over: str) -> None:
    report = check_budget(small_bundle, limited(here, budget), effort=BRIEF)
    assert not report.met
    assert [(finding.key, finding.verdict) for finding in report.findings] == [(over, "over")]


def test_a_budget_without_limits_is_met(small_bundle: Path, here: DeviceProfile) -> None:
    report = check_budget(small_bundle, limited(here, Budget()), effort=BRIEF)
    assert report.met
    assert report.findings == ()


def test_the_bundles_own_figures_for_the_device(small_bundle: Path, elsewhere: DeviceProfile, tmp_path: Path) -> None:
    bundle = read_bundle(small_bundle)
    taken = Measurement(
        device=elsewhere.id,
        machine="aarch64, a board on the desk, 4 x Cortex-A76",
        runtime="onnxruntime",
        precision="fp32",
        how="measured",
        tokens=32,
        samples=1024,
        threads=4,
        p50_ms=3.0,
        p90_ms=4.0,
        p99_ms=5.0,
        throughput_per_s=300.0,
        load_ms=50.0,
        peak_rss_mib=77.0,
        disk_mib=0.1,
    )
    files = {entry.path: (bundle.folder / entry.path) for a in bundle.manifest.artifacts for entry in a.files}
    files[bundle.manifest.tokenizer.file.path] = bundle.folder / bundle.manifest.tokenizer.file.path
    for how, expected in (("measured", {"measured"}), ("emulated", {"measured", "estimated"})):
        manifest = change(bundle.manifest, measurements=(change(taken, how=how),))
        write_bundle(manifest, files, tmp_path / how)
        report = check_budget(tmp_path / how, elsewhere, effort=BRIEF)
        assert {finding.how for finding in report.findings} == expected
        if how == "measured":
            assert "a board on the desk" in report.basis
            assert {f.key: f.value for f in report.findings}["p90_ms"] == 4.0


def test_what_cannot_be_checked(small_bundle: Path, elsewhere: DeviceProfile, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no budget for 'classify'"):
        check_budget(small_bundle, change(elsewhere, budgets={}), effort=BRIEF)
    with pytest.raises(BundleError, match="no artifact for litert"):
        check_budget(small_bundle, elsewhere, runtime="litert", effort=BRIEF)
    with pytest.raises(BundleError, match="no such folder"):
        check_budget(tmp_path / "missing", elsewhere, effort=BRIEF)
    only_litert = change(elsewhere, runtimes=(RuntimePreference(name="litert", threads=1),))
    with pytest.raises(EngineError, match="nothing fits"):
        check_budget(small_bundle, only_litert, effort=BRIEF)
    only_npu = change(elsewhere, runtimes=(RuntimePreference(name="onnxruntime", threads=1, device="npu"),))
    with pytest.raises(EngineError, match="cannot be estimated"):
        check_budget(small_bundle, only_npu, effort=BRIEF)
