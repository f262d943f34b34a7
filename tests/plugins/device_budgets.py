"""Device profiles that grant a tiny student all it takes, or next to nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def easy_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device profile that grants more than any tiny student takes."""
    return _profile(tmp_path_factory.mktemp("profiles") / "easy.toml", p90_ms=10000, peak_rss_mib=4000, disk_mib=400)


@pytest.fixture(scope="session")
def tight_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device profile that grants a megabyte of memory and next to no time."""
    return _profile(tmp_path_factory.mktemp("profiles") / "tight.toml", p90_ms=1e-6, peak_rss_mib=1, disk_mib=400)


def _profile(path: Path, **budget: float) -> Path:
    catalogue = Path(__file__).parents[2] / "device_profiles" / "catalogue"
    text = (catalogue / "raspberry-pi-5.toml").read_text()
    text = re.sub(r'(?m)^id = ".*"$', f'id = "{path.stem}"', text, count=1)
    for name, value in budget.items():
        text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    path.write_text(text)
    return path
