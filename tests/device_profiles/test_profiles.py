from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from edgescribe.device_profiles.profiles import (
    list_profiles,
    load_profile,
    parse_profile,
    profile_toml,
    unsourced_numbers,
)
from edgescribe.device_profiles.schema import Budget, DeviceProfile
from edgescribe.device_profiles.toml_text import toml_text
from edgescribe.errors import ProfileError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

PI = profile_toml(load_profile("raspberry-pi-5"))


def test_host_is_listed_last() -> None:
    assert list_profiles()[-1] == "host"


def test_a_profile_loads_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(PI.replace("raspberry-pi-5", "mine"))
    assert load_profile(file).id == load_profile(str(file)).id == "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raspberrypi5", ["did you mean raspberry-pi-5", "rk3588", "edgescribe devices measure"]),
        ("rk3566", ["did you mean rk3588"]),
        ("", ["Known: android-phone"]),
        ("../raspberry-pi-5", ["../raspberry-pi-5", "no such file"]),
        ("/nowhere/at/all.toml", ["/nowhere/at/all.toml", "no such file"]),
        ("raspberry-pi-5.toml", ["no such file", "did you mean raspberry-pi-5"]),
        ("nul\0.toml", ["cannot be read"]),
    ],
)
def test_unknown_names_and_paths(name: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as error:
        load_profile(name)
    for word in words:
        assert word in str(error.value)
    assert error.value.exit_code == 4


def test_a_folder_is_not_a_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("total_mib = 4096", "total_mb = 4096", ["unknown key 'total_mb'", "in memory", "did you mean total_mib"]),
        ("total_mib = 4096", "total_mib = -4", ["memory.total_mib"]),
        ("total_mib = 4096", "total_mib = 4.5", ["memory.total_mib"]),
        ("total_mib = 4096", 'total_mib = "4096"', ["memory.total_mib"]),
        ("total_mib = 4096", f"total_mib = {10**30}", ["memory.total_mib"]),
        ("total_mib = 4096\n", "", ["memory", "total_mib"]),
        ("bandwidth_gb_s = 9.4", "bandwidth_gb_s = nan", ["memory.bandwidth_gb_s"]),
        ("bandwidth_gb_s = 9.4", "bandwidth_gb_s = inf", ["memory.bandwidth_gb_s"]),
        ("schema_version = 1", "schema_version = 2", ["schema_version"]),
        ('name = "litert"', 'name = "tflite"', ["runtimes", "tflite"]),
        ("threads = 4", "threads = 5", ["runtimes[0].threads is 5", "4 cores"]),
        ("threads = 4", "threads = 4\nthread = 4", ["unknown key 'thread'", "did you mean threads"]),
        ('device = "cpu"', 'device = "npu"', ["npu", "accelerators"]),
        ('name = "onnxruntime"', 'name = "litert"', ["repeats litert"]),
        ('id = "raspberry-pi-5"', 'id = "Raspberry Pi"', ["id 'Raspberry Pi'"]),
        ("[memory]", "[memory", ["not TOML", "line"]),
    ],
)
def test_a_wrong_profile_names_its_file_and_key(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    file = tmp_path / "mine.toml"
    assert old in PI
    file.write_text(PI.replace(old, new, 1))
    with pytest.raises(ProfileError) as error:
        load_profile(file)
    assert str(file) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="not UTF-8 at byte 3"):
        parse_profile(b"a=1\xff", "x")
    with pytest.raises(ProfileError, match="too many"):
        parse_profile(b"#" * (2 << 20), "x")
    with pytest.raises(ProfileError):
        parse_profile(b"a=" + b"[" * 5000, "x")


def test_numbers_without_a_source_are_found() -> None:
    profile = load_profile("raspberry-pi-5")
    sources = {k: v for k, v in profile.sources.items() if k not in ("memory.total_mib", "runtimes")}
    bare = msgspec.structs.replace(profile, sources=sources)
    assert unsourced_numbers(bare) == [
        "memory.total_mib",
        "runtimes.0.threads",
        "runtimes.1.threads",
        "runtimes.2.threads",
    ]


@pytest.mark.parametrize("name", [name for name in list_profiles() if name != "host"])
def test_written_profiles_read_back_equal(name: str) -> None:
    profile = load_profile(name)
    assert parse_profile(profile_toml(profile).encode(), name) == profile


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_profiles_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    content = bytearray(PI.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 30)))
        content[start:end] = data.draw(
            st.one_of(
                st.binary(max_size=6),
                st.sampled_from([b"", b"1e400", b"-1", b"[[", b'"', b"\n[a]\n", b"nan", b"true", b"1979-05-27"]),
            )
        )
    try:
        profile = parse_profile(bytes(content), "mutated")
    except ProfileError:
        with pytest.raises(ProfileError, match=r"^mutated: "):
            parse_profile(bytes(content), "mutated")
    else:
        assert parse_profile(profile_toml(profile).encode(), "written") == profile


@settings(max_examples=100, deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    notes=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=4),
    sources=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.just("s"), max_size=4),
    number=st.floats(min_value=0, max_value=1e12, exclude_min=True),
    limit=st.none() | st.floats(min_value=0, max_value=1e12, exclude_min=True),
)
@example(name='a"\\\n\t\0\x7f\u2028é', notes=["]", "#"], sources={"a.b": "s", "": "s"}, number=5e-324, limit=1e12)
def test_any_profile_survives_writing(
    name: str, notes: list[str], sources: dict[str, str], number: float, limit: float | None
) -> None:
    profile: DeviceProfile = msgspec.structs.replace(
        load_profile("raspberry-pi-5"),
        name=name,
        notes=tuple(notes),
        sources=sources,
        fp32_gmac_s=number,
        budgets={"classify": Budget(p90_ms=limit)},
    )
    assert parse_profile(profile_toml(profile).encode(), "written") == profile


_SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab.-\" é\n", max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(document=st.dictionaries(st.text("ab.-\" é\n", max_size=4), _VALUES, max_size=5))
def test_any_document_survives_writing_as_toml(document: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(document)) == document


def test_toml_has_no_place_for_some_values() -> None:
    assert toml_text({"a": None, "b": 1}) == "b = 1\n"
    for value in (float("nan"), float("inf"), [None], object()):
        with pytest.raises(TypeError, match="TOML cannot hold"):
            toml_text({"a": value})
