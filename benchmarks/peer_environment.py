"""Packages that only peers need, kept apart from the workbench inside the checkout, in pinned versions.

NNCF gets an environment of its own. torch's ONNX exporter needs two small packages beside the workbench's own torch;
they go into a folder that only that one step has on its path.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

NNCF_REQUIREMENTS = Path(__file__).with_name("nncf-requirements.txt")
EXPORTER_PACKAGES = ("onnxscript==0.7.2", "onnx-ir==1.1.0")


def nncf_python(folder: Path) -> Path:
    """The interpreter of the environment with NNCF, made where it is not there yet or its pins have changed."""
    wanted = NNCF_REQUIREMENTS.read_text(encoding="utf-8")
    python, made = folder / "bin/python", folder / "made-from.txt"
    if not (made.is_file() and made.read_text(encoding="utf-8") == wanted):
        venv.create(folder, clear=True, with_pip=True)
        _pip(python, "install", "--requirement", str(NNCF_REQUIREMENTS))
        made.write_text(wanted, encoding="utf-8")
    return python


def exporter_packages(folder: Path) -> Path:
    """A folder with what torch's ONNX exporter needs, to go on the path after the workbench's packages."""
    wanted = "\n".join(EXPORTER_PACKAGES)
    made = folder / "made-from.txt"
    if not (made.is_file() and made.read_text(encoding="utf-8") == wanted):
        # Without dependencies: all of them are in the workbench already, in versions of its own.
        _pip(Path(sys.executable), "install", "--no-deps", "--upgrade", "--target", str(folder), *EXPORTER_PACKAGES)
        made.write_text(wanted, encoding="utf-8")
    return folder


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(f"pip could not install the peers' packages (status {done.returncode}); it said why above")
