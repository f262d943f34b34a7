"""Announcements are dropped, everything else reaches standard error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from edgescribe.runtimes.engine_messages import without_info_lines


def test_only_info_lines_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with without_info_lines():
        os.write(2, b"INFO: Created delegate\nERROR: lost\n")
        os.write(2, b"INFO: more\nunfinished line")
    os.write(2, b"\nINFO: after\n")
    assert capfd.readouterr().err == "ERROR: lost\nunfinished line\nINFO: after\n"


def test_lines_are_written_when_the_block_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with without_info_lines():
            os.write(2, b"INFO: x\nlast words\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capfd.readouterr().err == "last words\n"


def test_it_works_without_a_standard_error() -> None:
    code = (
        "import os; os.close(2)\n"
        "from edgescribe.runtimes.engine_messages import without_info_lines\n"
        "with without_info_lines(): print('ran')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "ran\n"
