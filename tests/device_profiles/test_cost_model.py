from __future__ import annotations

import dataclasses

import pytest
from edgescribe.device_profiles.cost_model import ENGINE_BASE_MIB, Workload, predict
from edgescribe.device_profiles.profiles import list_profiles, load_profile
from hypothesis import given
from hypothesis import strategies as st

STUDENT = Workload(macs=900_000_000, int8=True, weight_bytes=8 << 20, activation_bytes=20 << 20, operators=120)
PROFILES = {name: load_profile(name) for name in list_profiles() if name != "host"}


def p90(name: str, work: Workload = STUDENT, threads: int = 4) -> float:
    return predict(PROFILES[name], work, "litert", threads).p90_ms


def test_devices_come_out_in_their_known_order() -> None:
    order = ["raspberry-pi-zero-2-w", "raspberry-pi-4", "raspberry-pi-5", "rk3588", "desktop-avx512-vnni"]
    times = [p90(name) for name in order]
    assert times == sorted(times, reverse=True)


def test_int8_gains_less_without_a_dot_product() -> None:
    fp32 = dataclasses.replace(STUDENT, int8=False)
    assert 2 < p90("raspberry-pi-5", fp32) / p90("raspberry-pi-5") < 4
    assert 1 < p90("raspberry-pi-4", fp32) / p90("raspberry-pi-4") < 2


def test_threads_on_slower_cores_do_not_count_as_fast_ones() -> None:
    one, two, four, eight = (p90("android-phone", threads=n) for n in (1, 2, 4, 8))
    assert one > two >= four >= eight
    assert one / eight < 4
    assert p90("raspberry-pi-5", threads=64) == p90("raspberry-pi-5", threads=4)


def test_memory_is_the_engine_with_the_weights() -> None:
    small = dataclasses.replace(STUDENT, weight_bytes=1 << 20)
    for runtime, base in ENGINE_BASE_MIB.items():
        got = predict(PROFILES["raspberry-pi-5"], STUDENT, runtime, 1).peak_rss_mib
        assert base + 8 < got < base + 24
        assert got > predict(PROFILES["raspberry-pi-5"], small, runtime, 1).peak_rss_mib


def test_a_model_bound_by_memory_takes_as_long_as_reading_it() -> None:
    work = Workload(macs=1000, int8=True, weight_bytes=940_000_000, activation_bytes=0, operators=0)
    assert p90("raspberry-pi-5", work) == pytest.approx(100 * 1.15, rel=1e-6)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        predict(PROFILES["raspberry-pi-5"], STUDENT, "litert", threads)


@given(
    name=st.sampled_from(sorted(PROFILES)),
    macs=st.integers(0, 10**13),
    size=st.integers(0, 10**10),
    operators=st.integers(0, 10**5),
    threads=st.integers(1, 64),
    int8=st.booleans(),
)
def test_more_work_never_takes_less(
    name: str, macs: int, size: int, operators: int, threads: int, int8: bool
) -> None:
    work = Workload(macs, int8, size, size, operators)
    more = Workload(macs + 10**6, int8, size + 10**5, size + 10**5, operators + 1)
    got, bigger = (predict(PROFILES[name], w, "onnxruntime", threads) for w in (work, more))
    assert 0 <= got.p90_ms < bigger.p90_ms
    assert predict(PROFILES[name], work, "onnxruntime", threads + 1).p90_ms <= got.p90_ms
    assert got.error_fraction > 0
