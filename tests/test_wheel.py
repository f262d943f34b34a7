"""The wheel holds the package and nothing else: built from a copy of the checkout, then looked into and installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("device_profiles", "runtimes", "sdk", "converters")
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "*.safetensors", "node_modules",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SOURCE)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "checkout")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_holds_only_the_package(wheel: Path, names: set[str]) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"edgescribe"}
    inside = {name.split("/")[1] for name in names if name.startswith("edgescribe/")}
    folders = {part for part in inside if "." not in part}
    assert folders == set(PACKAGES)
    assert inside - folders == {path.name for path in ROOT.glob("*.py")} | {"py.typed"}


def test_lacks_nothing_of_it(names: set[str]) -> None:
    wanted = {"edgescribe/" + path.relative_to(ROOT).as_posix() for p in PACKAGES for path in (ROOT / p).rglob("*.py")}
    wanted |= {"edgescribe/" + p.relative_to(ROOT).as_posix() for p in (ROOT / "device_profiles").rglob("*.toml")}
    wanted |= {"edgescribe/" + p.relative_to(ROOT).as_posix() for p in (ROOT / "converters").rglob("*.jinja")}
    missing = wanted - names
    assert not missing, f"not in the wheel (is the package in pyproject's list?): {sorted(missing)}"


def test_has_its_licence_and_command(wheel: Path, names: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        assert "edgescribe = edgescribe.__main__:main" in archive.read(entry).decode()


def test_device_side_works_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import edgescribe; print(edgescribe.__file__); "
        "from edgescribe.__main__ import run; sys.exit(run(['devices', 'list']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "raspberry-pi-5" in done.stdout


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_nothing_has_to_be_compiled_for_a_device(wheel: Path, tmp_path: Path, python: str, machine: str) -> None:
    """For every Python and machine that the README names, all that pip would install are wheels."""
    # glibc up to Debian bookworm's, 2.36.
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(17, 37)]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:",
            "--report", str(report), "--target", str(tmp_path / "site"), "--implementation=cp",
            f"--python-version={python}", *platforms, f"--platform=manylinux2014_{machine}",
            f"edgescribe[onnxruntime,openvino,litert] @ {wheel.as_uri()}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"] for each in json.loads(report.read_text())["install"]}
    assert {"numpy", "tokenizers", "msgspec", "click", "onnxruntime", "openvino", "ai-edge-litert"} <= names
    assert not {"torch", "transformers", "onnx"} & names
