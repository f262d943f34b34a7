"""The topic tagger as a person starts it: its folders, its process, its log.

And for other samples a browser, and the commands of their READMEs.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).parents[2] / "samples/raspberry_pi/topic_tagger"
sys.path.insert(0, str(SAMPLE))  # its modules import each other by bare name, as they do on the device
PATIENCE = 60.0  # seconds to wait for something that has to happen
BROWSER_PATIENCE = 120.0

SUDO = """case "$1" in
apt-get | nano | useradd | userdel | usermod) echo "not run in the test: $*" ;;
install) shift; words=(); while [ $# -gt 0 ]; do case "$1" in -o | -g) shift ;; *) words+=("$1") ;; esac; shift; done
  exec install "${words[@]}" ;;
*) exec "$@" ;;
esac"""
SCP = """words=("$@"); last=$((${#words[@]} - 1))
[ "${words[$last]}" = pi@raspberrypi.local: ] || exit 1
words[$last]="$PI/"; exec cp "${words[@]}\""""
EDGESCRIBE = """[ "$1" = convert ] || exit 1
while [ "$1" != --out ]; do shift; done; exec cp -r "$BUNDLE" "$2\""""


@dataclass
class Tagger:
    """Folders of one topic tagger and the ways to run it."""

    root: Path
    bundle: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inbox.mkdir(parents=True)

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def outbox(self) -> Path:
        return self.root / "outbox"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected"

    def command(self, *options: str) -> list[str]:
        folders = [f"--{name}={getattr(self, name)}" for name in ("bundle", "inbox", "outbox", "rejected")]
        return [sys.executable, str(SAMPLE / "topic_tagger.py"), *folders, *options]

    def once(self, *options: str, settle: str = "0") -> subprocess.CompletedProcess[str]:
        """Run it over what is there."""
        command = self.command("--once", f"--settle={settle}", *options)
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, errors="replace", check=False)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start it for good; it is killed at the test's end."""
        process = subprocess.Popen(
            self.command("--interval=0.05", "--settle=0.2", *options), stderr=subprocess.PIPE, text=True
        )
        self.running.append(process)
        return process

    def files(self, folder: Path | None = None) -> set[str]:
        """Paths of all files below the root, or below a folder."""
        root = folder or self.root
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def tagger(tmp_path: Path, small_bundle: Path) -> Iterator[Tagger]:
    made = Tagger(tmp_path / "tagger", small_bundle)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition, failing after a long while."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.02)

    return wait


@pytest.fixture
def ended() -> Callable[[subprocess.Popen[str], signal.Signals], tuple[int, str]]:
    """Sends a signal, and gives the exit code and the log."""

    def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
        process.send_signal(number)
        _, log = process.communicate(timeout=PATIENCE)
        return process.returncode, log

    return end


def blocks(sample: Path, heading: str) -> list[str]:
    """The shell blocks of the section of a sample's README whose heading begins so."""
    text = (sample / "README.md").read_text(encoding="utf-8")
    (section,) = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(heading)]
    return re.findall(r"^```sh\n(.*?)^```", section, flags=re.M | re.S)


class Shell:
    """Runs blocks of a sample's README below ``root``: files of the system and the Pi stand there.

    ``changes``: what is replaced in blocks and units, as paths are.
    """

    def __init__(
        self, root: Path, sample: Path, bundle: Path, system_paths: Sequence[str], changes: Mapping[str, str]
    ) -> None:
        self.root, self.pi = root, root / "home"
        self._sample = sample
        self._changes = {path: f"{root}{path}" for path in system_paths} | dict(changes)
        self.bin = root / "bin"
        for folder in ("home", "bin", "etc/systemd/system", "boot/firmware", "opt", "srv"):
            (root / folder).mkdir(parents=True)
        (root / "boot/firmware/cmdline.txt").write_text("console=tty1 rootwait\n")
        stand_in = f"exec {sys.executable} {Path(__file__).with_name('systemctl_stand_in.py')}"
        programs = {
            "sudo": SUDO,
            "scp": SCP,
            "edgescribe": EDGESCRIBE,
            "python": f'exec {sys.executable} "$@"',
            "python3": f'exec {sys.executable} "$@"',
            "systemctl": f'{stand_in} systemctl "$@"',
            "journalctl": f'{stand_in} journalctl "$@"',
            "dpkg": "echo arm64",
        }
        for name, script in programs.items():
            (self.bin / name).write_text(f"#!/bin/bash\n{script}\n")
            (self.bin / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.pi), "ROOT": str(root), "PI": str(self.pi), "BUNDLE": str(bundle), "USER": "pi",
        }  # fmt: skip
        # pip's settings and downloads of whoever runs the test stay in use
        for name, value in (("PIP_CACHE_DIR", "~/.cache/pip"), ("PIP_CONFIG_FILE", "~/.config/pip/pip.conf")):
            if Path(value).expanduser().exists():
                self.environment.setdefault(name, str(Path(value).expanduser()))

    def run(self, block: str, folder: Path) -> str:
        """Run a block as someone who pastes it, but stop at the first command that fails; gives all output."""
        for old, new in self._changes.items():
            block = block.replace(old, new)
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", block],
            cwd=folder, env=self.environment, text=True, timeout=600, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def blocks(self, heading: str) -> list[str]:
        """The README's blocks below a heading."""
        return blocks(self._sample, heading)

    def section(self, heading: str, folder: Path | None = None) -> str:
        """Run all blocks of a section; gives all output."""
        found = self.blocks(heading)
        assert found
        return "".join(self.run(block, folder or self.pi) for block in found)


@pytest.fixture
def readme_blocks() -> Callable[..., list[str]]:
    """Reads the shell blocks out of a sample's README."""
    return blocks


@pytest.fixture
def readme_shell(tmp_path: Path) -> Iterator[Callable[..., Shell]]:
    """Makes a shell for the commands of a sample's README; a service that it started is killed at the end.

    What is not the real thing: ``sudo`` runs without changing users (package manager and users are left alone), files
    stand below a folder of the test's, the Pi is another folder and ``scp`` copies there, systemd is
    ``systemctl_stand_in.py``, and ``edgescribe convert`` gives the bundle that the test has.
    """
    made = []

    def make(
        sample: Path, bundle: Path, system_paths: Sequence[str], changes: Mapping[str, str] | None = None
    ) -> Shell:
        made.append(Shell(tmp_path / "root", sample, bundle, system_paths, changes or {}))
        return made[-1]

    yield make
    for shell in made:
        pid = shell.root / "pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)


class Browser:
    """Headless Chromium, driven through its DevTools protocol over a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            # as with the network cable out: no name leads anywhere, no address but this machine's
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        # the browser reads from descriptor 3 and writes to 4
        script = f"exec {shlex.join(command)} 3<&{read_end} 4>&{write_end}"
        self._process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(read_end, write_end), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and give its result; events meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + BROWSER_PATIENCE
        while True:
            found = self._receive(end)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])
            if "method" in found:
                self.events.append(found)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true, and give its value."""
        end = time.monotonic() + BROWSER_PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return value

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something outside the page is true."""
        end = time.monotonic() + BROWSER_PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never came about"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        """Open a sample's page."""
        self.call("Page.navigate", url=address)
        self.wait("document.body?.dataset.ready === 'yes'")

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        named: dict[str, Any] = {"key": key, "code": key if text != " " else "Space", "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def click(self, selector: str) -> None:
        """Click into the middle of an element with the mouse."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        middle = "({x, y, width, height}) => [x + width / 2, y + height / 2]"
        box = self.run(f"({middle})({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def addresses(self) -> set[str]:
        """Every address that the page asked for."""
        self.run("0")  # what happened until now is read with the answer
        return {
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        }

    def complaints(self) -> list[str]:
        """What the console shows: exceptions, errors, violations of the policy."""
        self.run("0")
        names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in names]

    def close(self) -> None:
        """End the browser with all its processes."""
        os.close(self._out)
        os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A fresh browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Debian's package chromium")
    made = Browser(program, tmp_path / "profile")
    yield made
    made.close()
