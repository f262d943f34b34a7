"""A stand-in for systemctl and journalctl where no systemd runs: starts and stops the one unit that it is given.

Reads ExecStart out of the unit as installed, with paths put below ROOT, waits for READY=1 as ``Type=notify`` asks,
stops by SIGTERM and a nonzero exit code is a failure. Needs ROOT in the environment.
"""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["ROOT"])
JOURNAL, PID, EXIT = ROOT / "journal", ROOT / "pid", ROOT / "exit"
PATIENCE = 60.0


def start(unit: Path) -> None:
    service = configparser.RawConfigParser(strict=False)
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read(unit)
    command = service["Service"]["ExecStart"].replace(" /", f" {ROOT}/")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, JOURNAL.open("ab") as journal:
        address = ROOT / "notify"
        address.unlink(missing_ok=True)
        channel.bind(str(address))
        channel.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(address), "JOURNAL_STREAM": "8:1", "PATH": "/usr/bin:/bin"}
        # a shell between, so that the exit code is there for whoever stops the service
        script = f'{shlex.quote(str(ROOT))}{command} & echo $! > "{PID}"; wait $!; echo $? > "{EXIT}"'
        subprocess.Popen(
            ["bash", "-c", script], env=environment, stdout=journal, stderr=journal, start_new_session=True
        )
        if channel.recv(100) != b"READY=1":
            sys.exit("the service did not say that it is ready")


def stop() -> None:
    os.kill(int(PID.read_text()), signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while not EXIT.exists() or not EXIT.read_text().strip():
        if time.monotonic() > end:
            sys.exit("the service did not stop")
        time.sleep(0.05)
    code = EXIT.read_text().strip()
    EXIT.unlink()
    PID.unlink()
    if code != "0":
        sys.exit(f"the service ended with {code}")


def main(program: str, words: list[str]) -> None:
    if program == "journalctl":
        sys.stdout.write(JOURNAL.read_text())
        return
    verb, *rest = [word for word in words if word not in ("--now", "--no-pager")]
    if verb == "daemon-reload":
        return
    unit = ROOT / f"etc/systemd/system/{rest[0]}.service"
    if not unit.exists():
        sys.exit(f"no unit {unit}")
    if verb in ("start", "enable"):
        start(unit)
    elif verb in ("stop", "disable"):
        stop()
    elif verb == "restart":
        stop()
        start(unit)
    elif verb == "status":
        os.kill(int(PID.read_text()), 0)
    else:
        sys.exit(f"not known here: systemctl {verb}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
