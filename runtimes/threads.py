"""How many threads a session uses."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError


def thread_count(asked: int = 0, root: Path = Path("/")) -> int:
    """``asked`` itself, or for 0 what :func:`~edgescribe.device_profiles.probe.default_threads` says of this machine.

    ``root`` is where the machine's /proc and /sys lie.

    Raises:
        UsageError: ``asked`` is negative.
    """
    if asked < 0:
        raise UsageError(f"threads is {asked}; give the number of threads, or 0 to take the number of physical cores")
    if asked:
        return asked
    from ..device_profiles.probe import default_threads, probe

    return default_threads(probe(root))
