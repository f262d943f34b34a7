from __future__ import annotations

import pytest
from edgescribe.device_profiles.cpu_names import core_name, core_name_from_midr


@pytest.mark.parametrize(
    ("midr", "name"),
    [
        (0x410FD034, "Cortex-A53"),
        (0x410FD083, "Cortex-A72"),
        (0x414FD0B1, "Cortex-A76"),
        (0x412FD050, "Cortex-A55"),
        (0x411FD410, "Cortex-A78"),
        (0x411FD440, "Cortex-X1"),
        (0x413FD0C1, "Neoverse-N1"),
        (0x611F0221, "Apple M1 Icestorm"),
        (0x41000FF0, "Arm part 0x0ff"),
        (0x99000010, "implementer 0x99 part 0x001"),
    ],
)
def test_names_of_cores(midr: int, name: str) -> None:
    assert core_name_from_midr(midr) == name


def test_by_implementer_and_part() -> None:
    assert core_name(0x41, 0xD0B) == "Cortex-A76"
