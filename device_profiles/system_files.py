"""Reading the small text files by which Linux describes a machine, under any root (a test's fake tree, or ``/``)."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The file's text without surrounding white space and null bytes; None when it is absent or unreadable."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \t\r\n")
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    """The file's text as a whole number, decimal or ``0x``; None when it is absent or not a number."""
    text = read_text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def listing(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder that match, in order of name; empty when the folder is absent or closed to us."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def cpu_list(text: str | None) -> set[int]:
    """CPU numbers of a list such as ``0-3,6``; parts that are not numbers are passed over."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            cpus.update(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return cpus
