"""What systemd wants of a service: log lines that the journal understands, and word of how it goes.

Outside systemd, lines get a time of their own and the words go nowhere.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _JournalFormatter(logging.Formatter):
    """One line a message, with its priority in front as sd-daemon(3) has it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"


def log_to_stderr(verbose: bool) -> None:
    """Send the program's log to stderr, which systemd hands to the journal."""
    handler = logging.StreamHandler(sys.stderr)
    in_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(
        _JournalFormatter("%(message)s") if in_journal else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def notify(state: str) -> None:
    """Tell systemd, as sd_notify(3) does: ``READY=1``, ``STOPPING=1``, ``STATUS=...``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall(state.encode())
    except OSError as error:
        logging.getLogger(__name__).warning("systemd cannot be told %s: %s", state, error)
