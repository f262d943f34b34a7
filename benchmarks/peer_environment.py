"""Packages that only peers need, kept apart from the workbench inside the checkout, in pinned versions.

NNCF, llama.cpp and the engines' own generation libraries get environments of their own. torch's ONNX exporter and
CTranslate2 need nothing that the workbench has not got; they go into folders that only those who use them have on their
path.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

NNCF_REQUIREMENTS = Path(__file__).with_name("nncf-requirements.txt")
LLAMA_REQUIREMENTS = Path(__file__).with_name("llama-requirements.txt")
GENAI_REQUIREMENTS = Path(__file__).with_name("genai-requirements.txt")
CTRANSLATE2_PACKAGES = ("ctranslate2==4.8.5",)
EXPORTER_PACKAGES = ("onnxscript==0.7.2", "onnx-ir==1.1.0")
LLAMA_BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
"""llama.cpp is compiled for this very machine, which is its default; its part for images is left out."""


def nncf_python(folder: Path) -> Path:
    """The interpreter of the environment with NNCF, made where it is not there yet or its pins have changed."""
    return _environment(folder, NNCF_REQUIREMENTS)


def llama_python(folder: Path) -> Path:
    """The same with llama.cpp, which is compiled from source, at low priority: some ten minutes and a C++ compiler."""
    return _environment(folder, LLAMA_REQUIREMENTS, **LLAMA_BUILD)


def genai_python(folder: Path) -> Path:
    """The same with ONNX Runtime GenAI and OpenVINO GenAI, and what converts for them."""
    # Without dependencies: the pins are whole, and Optimum Intel asks for torchvision, which it does not use for texts
    # and whose build must be of torch's own kind.
    return _environment(folder, GENAI_REQUIREMENTS, "--no-deps")


def exporter_packages(folder: Path) -> Path:
    """A folder with what torch's ONNX exporter needs, to go on the path after the workbench's packages."""
    return _folder(folder, EXPORTER_PACKAGES)


def ctranslate2_packages(folder: Path) -> Path:
    """The same with CTranslate2."""
    return _folder(folder, CTRANSLATE2_PACKAGES)


def _folder(folder: Path, packages: tuple[str, ...]) -> Path:
    wanted = "\n".join(packages)
    made = folder / "made-from.txt"
    if not (made.is_file() and made.read_text(encoding="utf-8") == wanted):
        # Without dependencies: all of them are in the workbench already, in versions of its own.
        _pip(Path(sys.executable), "install", "--no-deps", "--upgrade", "--target", str(folder), *packages)
        made.write_text(wanted, encoding="utf-8")
    return folder


def _environment(folder: Path, requirements: Path, *options: str, **settings: str) -> Path:
    wanted = requirements.read_text(encoding="utf-8")
    python, made = folder / "bin/python", folder / "made-from.txt"
    if not (made.is_file() and made.read_text(encoding="utf-8") == wanted):
        venv.create(folder, clear=True, with_pip=True)
        _pip(python, "install", *options, "--requirement", str(requirements), **settings)
        made.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, *arguments: str, **settings: str) -> None:
    command = ["nice", "-n", "19", str(python), "-m", "pip", "-qq", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=sys.stderr, check=False, env=os.environ | settings)
    if done.returncode:
        raise RuntimeError(
            f"pip could not install the peers' packages (status {done.returncode}); it said why above"
        )
