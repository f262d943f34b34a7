"""``edgescribe doctor``: what works on this machine and what does not."""

from __future__ import annotations

from ..console import Result, command


@command()
def doctor() -> Result:
    """Tell what works on this machine and what does not: CPU, memory, engines, NPUs."""
    from ..doctor import doctor as examine
    from ..doctor import render

    report = examine()
    return Result(data=report, text=render(report))
