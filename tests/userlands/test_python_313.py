"""On Debian trixie for x86-64, with Python 3.13, the device side works and answers as it does here."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the userland's programs are for x86-64"),
]

Finished = subprocess.CompletedProcess[str]


def test_the_userland_has_its_own_python(native_userland: Any) -> None:
    code = "import platform; print(platform.python_version(), *platform.libc_ver())"
    done = native_userland.native_python(["-c", code])
    version, libc, number = done.stdout.split()
    assert version.startswith("3.13.")
    assert (libc, number) == ("glibc", "2.41")


@pytest.mark.parametrize("precision", ["w8a8-static", "w8a8-dynamic"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "litert"])
def test_answers_are_those_of_this_environment(
    runtime: str,
    precision: str,
    native_userland: Any,
    arguments: Callable[[str, str], list[str]],
    here: Callable[[str, str], Finished],
    probabilities: Callable[[Finished], np.ndarray],
) -> None:
    done, done_here = native_userland.native_python(arguments(runtime, precision)), here(runtime, precision)
    np.testing.assert_allclose(probabilities(done), probabilities(done_here), atol=1e-6)
    assert done.stderr == done_here.stderr


def test_all_runtimes_are_found(native_userland: Any) -> None:
    done = native_userland.native_python(["-m", "edgescribe", "doctor", "--json"])
    assert done.returncode == 0, done.stderr
    found = {each["runtime"] for each in json.loads(done.stdout)["runtimes"] if each["available"]}
    assert found == {"onnxruntime", "openvino", "litert"}
