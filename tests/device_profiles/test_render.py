from __future__ import annotations

import pytest
from edgescribe.device_profiles.profiles import list_profiles, load_profile
from edgescribe.device_profiles.render import columns, memory_text, render_list, render_profile

PROFILES = [load_profile(name) for name in list_profiles() if name != "host"]


def test_the_list_has_a_line_for_each_device_in_columns() -> None:
    lines = render_list(PROFILES).splitlines()
    starts = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in starts] == ["DEVICE", *(profile.id for profile in PROFILES)]
    place = starts[0].index("MEMORY")
    assert all(line[place - 1] == " " and line[place] != " " for line in starts)
    assert "512 MiB" in render_list(PROFILES)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.id)
def test_a_profile_shows_everything_that_it_holds(profile: object) -> None:
    text = " ".join(render_profile(profile).split())  # type: ignore[arg-type]
    for runtime in profile.runtimes:  # type: ignore[attr-defined]
        assert runtime.name in text
        for avoid in runtime.avoid:
            assert f"avoid {avoid.what}: {avoid.why}" in text
    for path, source in profile.sources.items():  # type: ignore[attr-defined]
        assert f"{path}: {source}" in text
    for note in profile.notes:  # type: ignore[attr-defined]
        assert note in text
    assert "not measured by edgescribe" in text


def test_sources_can_be_left_out() -> None:
    assert "https://" not in render_profile(PROFILES[0], with_sources=False)


def test_columns_align_and_wrap() -> None:
    text = columns([("a", "bb", "x " * 80), ("aaaa", "b", "y")])
    lines = text.splitlines()
    assert lines[-1] == "aaaa  b   y"
    assert all(len(line) <= 100 for line in lines)
    assert columns([]) == ""


def test_memory_is_told_in_the_unit_that_reads_best() -> None:
    assert [memory_text(mib) for mib in (80, 512, 1024, 24105)] == ["80 MiB", "512 MiB", "1 GiB", "23.5 GiB"]
