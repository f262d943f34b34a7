"""A Debian userland in a folder: for arm64 (Raspberry Pi OS's base) under QEMU's user emulation, for amd64 as it is.

Nothing is installed and no right of root is needed: packages are resolved by an apt of its own, downloaded and
unpacked; Python packages are wheels for the userland that the host's pip picks and unpacks at the host's speed.
QEMU's system calls go to the host's kernel, so times and memory figures under it mean nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boards import Board, write_board

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
WHEELS = ("numpy", "tokenizers", "msgspec", "click", "onnxruntime", "ai-edge-litert", "openvino")
QEMU = "qemu-aarch64-static"
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class Release:
    """A release of Debian: its Python, and the minor version of its glibc (wheels for older ones run there)."""

    suite: str
    python: str
    glibc: int

    @property
    def packages(self) -> tuple[str, ...]:
        return ("python3-minimal", f"libpython{self.python}-stdlib", "libstdc++6", "libgomp1")


BOOKWORM = Release("bookworm", "3.11", 36)
TRIXIE = Release("trixie", "3.13", 41)


class Userland:
    """A release's userland in ``folder``; :meth:`prepare` makes it, or takes up what an earlier run made."""

    def __init__(self, folder: Path, release: Release, architecture: str = "arm64") -> None:
        self.folder, self.release, self.architecture = folder, release, architecture
        self.machine = MACHINES[architecture]
        self.root = folder / "root"
        self.wheels = folder / "wheels"
        self.package = folder / "package"

    def prepare(self) -> None:
        """Download and unpack the Debian packages, the wheels and QEMU, unless the same ones are there."""
        stamp = self.folder / "made_of.json"
        wanted = json.dumps(
            [self.release.suite, self.architecture, *self.release.packages, *self._versions(), _own_hash()]
        )
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._unpack_debian()
        self._pip_install(self.wheels, self._versions())
        stamp.write_text(wanted)

    def install(self, wheel: Path) -> None:
        """Put a wheel of ours into the userland, in place of an earlier one."""
        shutil.rmtree(self.package, ignore_errors=True)
        self._pip_install(self.package, ["--no-deps", str(wheel)])

    def add_board(self, board: Board) -> Path:
        """A root for one board: its own ``proc`` and ``sys`` beside the userland's folders."""
        top = self.folder / board.emulated
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        for entry in self.root.iterdir():
            (top / entry.name).symlink_to(entry)
        write_board(board, top)
        return top

    def python(self, board: Board, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run the arm64 userland's Python as on ``board``, whose root :meth:`add_board` made."""
        top = self.folder / board.emulated
        return self._run_python([str(self._qemu()), "-L", str(top)], {"QEMU_CPU": board.emulated}, arguments)

    def native_python(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run the userland's Python on this machine, by the userland's own loader and libraries."""
        libraries = self.root / f"usr/lib/{self.machine}-linux-gnu"
        (loader,) = libraries.glob("ld-linux-*.so.*")
        home = {"PYTHONHOME": str(self.root / "usr")}
        return self._run_python([str(loader), "--library-path", str(libraries)], home, arguments)

    def _run_python(
        self, start: list[str], more: dict[str, str], arguments: Sequence[str]
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": f"{self.package}:{self.wheels}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        } | more
        command = [*start, str(self.root / f"usr/bin/python{self.release.python}"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)

    @staticmethod
    def _versions() -> list[str]:
        """The very versions that the host runs, so that answers differ by the processor alone."""
        return [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]

    def _qemu(self) -> Path:
        installed = shutil.which(QEMU)
        return Path(installed) if installed else self.folder / "qemu" / QEMU

    def _unpack_debian(self) -> None:
        if not KEYRING.exists():
            raise FileNotFoundError(f"{KEYRING} is missing; install it with: apt-get install debian-archive-keyring")
        apt = self.folder / "apt"
        for name in ("state/lists/partial", "cache/archives/partial"):
            (apt / name).mkdir(parents=True)
        (apt / "status").touch()
        source = f"deb [signed-by={KEYRING}] {_debian_archive()} {self.release.suite} main\n"
        (apt / "sources.list").write_text(source)
        settings = {
            "APT::Architecture": self.architecture, "APT::Architectures::": "amd64", "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "", "Dir::State": apt / "state", "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache", "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "-",
            "Debug::NoLocking": "1", "Acquire::Languages": "none",
        }  # fmt: skip
        options = [f"-o{key}={value}" for key, value in settings.items()]
        _run("apt-get", "-qq", *options, "update")
        _run("apt-get", "-qq", "-y", *options, "--download-only", "install", *self.release.packages)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / "usr" / name).mkdir(parents=True)
            (self.root / name).symlink_to(f"usr/{name}")
        for archive in sorted((apt / "cache/archives").glob("*.deb")):
            _unpack(archive, self.root)
        if self.architecture == "arm64" and shutil.which(QEMU) is None:
            _run("apt-get", "-qq", *options, "download", "qemu-user-static:amd64", cwd=apt)
            (self.folder / "qemu").mkdir()
            (archive,) = apt.glob("qemu-user-static_*.deb")
            _unpack(archive, self.folder / "qemu", "--strip-components=3", f"./usr/bin/{QEMU}")
        shutil.rmtree(apt)

    def _pip_install(self, target: Path, what: Sequence[str]) -> None:
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in range(17, self.release.glibc + 1)]
        tags = [f"--platform={platform}" for platform in (*platforms, f"manylinux2014_{self.machine}")]
        tags += [f"--abi={abi}" for abi in (f"cp{self.release.python.replace('.', '')}", "abi3", "none")]
        _run(
            sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--only-binary=:all:",
            "--target", str(target), "--implementation=cp", f"--python-version={self.release.python}", *tags, *what,
        )  # fmt: skip


def _debian_archive() -> str:
    """Address of Debian's archive: EDGESCRIBE_DEBIAN_MIRROR, or where the system's own apt fetches from."""
    if named := os.environ.get("EDGESCRIBE_DEBIAN_MIRROR"):
        return named
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for address in listed:
        if address.rstrip("/").endswith("/debian"):
            return address
    raise RuntimeError("apt's sources name no archive of Debian; name one in EDGESCRIBE_DEBIAN_MIRROR")


def _unpack(archive: Path, into: Path, *options: str) -> None:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as reader:
        command = ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", f"--directory={into}"]
        subprocess.run([*command, *options], stdin=reader.stdout, check=True)
    if reader.returncode:
        raise subprocess.CalledProcessError(reader.returncode, "dpkg-deb")


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _own_hash() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
