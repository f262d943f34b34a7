"""A plan as words and as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...sdk.console import paint, table

if TYPE_CHECKING:
    from ..plan import Plan, Step


def plan_data(plan: Plan) -> dict[str, Any]:
    """For ``--json``."""
    steps = [{**_fields(step), "fits": step.fits, "findings": step.findings} for step in plan.steps]
    return {"recipe": plan.recipe.name, "fits": plan.fits, "steps": steps}


def plan_text(plan: Plan) -> str:
    """The ladder, a row for each recipe and device, and what was chosen."""
    rows = []
    for step in plan.steps:
        granted = {finding.key: finding.granted for finding in step.findings}
        over = {finding.key for finding in step.findings if finding.verdict == "over"}
        cells = []
        for key in ("p90_ms", "peak_rss_mib", "disk_mib"):
            value = f"{getattr(step, key):.3g}" + (f" of {granted[key]:g}" if key in granted else "")
            cells.append(paint(value, "red") if key in over else value)
        mark = "*" if step.recipe == plan.recipe.name else ""
        verdict = paint("fits", "green") if step.fits else paint("over", "red")
        rows.append((mark, step.recipe, step.device, f"{step.runtime} x {step.threads}", *cells, verdict))
    header = ("", "recipe", "device", "on", "p90 ms", "memory MiB", "disk MiB", "predicted")
    error = max(step.error_fraction for step in plan.steps)
    chosen = f"{plan.recipe.name} is chosen: the gentlest that is predicted to fit."
    if not plan.fits:
        chosen = f"No recipe is predicted to fit; {plan.recipe.name}, the harshest, is chosen."
    tokens = max(step.tokens for step in plan.steps)
    tail = f"Predicted for {tokens} tokens, and may be off by {error:.0%}; only measuring on the device can tell."
    return f"{table(rows, header)}\n{chosen} {tail}"


def _fields(step: Step) -> dict[str, Any]:
    names = (
        "recipe", "device", "runtime", "threads", "tokens", "p90_ms", "peak_rss_mib", "disk_mib", "error_fraction"
    )  # fmt: skip
    return {name: getattr(step, name) for name in names}
