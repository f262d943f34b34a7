"""The benchmark of writers in words: tables of what was measured, what was left out, and how to read it."""

from __future__ import annotations

from typing import Any

from bars import Bar
from edgescribe.sdk.console import table

HEADER = ("contender", "tok/s", "step ms", "prefill ms", "first token s", "peak MB", "size MB", "NLL", "KL", "Python",
          "of bandwidth")  # fmt: skip


def report_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = report["contenders"]
    parts = [table([_row(one) for one in lines], HEADER) if lines else "no contender could be run"]
    if report["left_out"]:
        parts.append("\n".join(f"left out: {one['name']}: {one['reason']}" for one in report["left_out"]))
    rewriting = [_rewriting_row(one) for one in lines if one["rewriting"]["plain_tok_s"]]
    if rewriting:
        parts.append(table(rewriting, ("rewriting and summarising", "tok/s", "with lookup", "copied", "same texts")))
    growth = [[one["name"], *point.values()] for one in lines for point in one["growth"]]
    if growth:
        parts.append(table(growth, ("context", "tokens", "prefill ms", "step ms", "peak MiB")))
    if report["bars"]:
        rows = [_bar_row(Bar(**bar)) for bar in report["bars"]]
        parts.append(table(rows, ("bar", "limit", "reached", "met", "")))
    return "\n\n".join([*parts, _surroundings(report)])


def _row(one: dict[str, Any]) -> list[object]:
    return [
        one["name"], one["decode_tok_s"], one["step_p50_ms"], one["prefill_ms"], one["first_token_s"],
        one["peak_rss_mb"], one["size_mb"], f"{one['nll']:.4f}", "" if one["kl"] is None else f"{one['kl']:.4f}",
        "" if one["python_share"] is None else f"{one['python_share']:.1%}", f"{one['of_bandwidth']:.0%}",
    ]  # fmt: skip


def _rewriting_row(one: dict[str, Any]) -> list[object]:
    found = one["rewriting"]
    looked_up = bool(found["lookup_tok_s"])
    return [
        one["name"],
        found["plain_tok_s"],
        f"{found['lookup_tok_s']:.1f}" if looked_up else "",
        f"{found['copied']:.0%}" if looked_up else "",
        f"{found['same_texts']:.0%}" if looked_up and found["same_texts"] is not None else "",
    ]


def _bar_row(bar: Bar) -> list[object]:
    sign = "≥" if bar.at_least else "≤"
    digits = 1 if bar.unit in ("MB", "%") else 2
    return [bar.what, f"{sign} {bar.limit:g} {bar.unit}", f"{bar.reached:.{digits}f}", "yes" if bar.met else "no",
            bar.detail]  # fmt: skip


def _surroundings(report: dict[str, Any]) -> str:
    machine, settings = report["machine"], report["settings"]
    effort = settings["effort"]
    features = ", ".join(machine["int8_features"]) or "no int8 instructions"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return "\n".join(
        [
            f"Student: {settings['student']}; {settings['threads']} threads, batch {settings['batch']}, a prompt of "
            f"{settings['tokens']} tokens, {effort['new_tokens']} new ones, caches for {settings['context']}.",
            f"Times are medians over {effort['rounds']} rounds in changing order, of {effort['times']} text(s) each. "
            f"First token: from the start of a process, median of {effort['starts']}; peak memory: largest of "
            f"{effort['memory_starts']} processes that wrote one text.",
            f"NLL in nats a token and KL from the float32 student, on {settings['scored_tokens']} held-out tokens "
            f"(counted as the unpruned student's for all), each by its own engine; float32 in torch "
            f"{settings['fp32_nll']:.4f}.",
            f"Memory is read at {settings['bandwidth_gb_s']:.0f} GB/s with {settings['threads']} threads; \"of "
            'bandwidth" is tok/s times the artifact\'s size over that. The threads of our engines '
            f"{settings['waiting']} while they wait, where that can be chosen.",
            f"Machine: {machine['cpu']}, {machine['cpus']} CPUs ({features}), {machine['system']}, Python "
            f"{machine['python']}.",
            f"Load average {machine['load_before']:.2f} before, {machine['load_after']:.2f} after; other processes "
            f"took {machine['others_cpus']:.2f} CPUs of the run's {machine['seconds']:.0f} s.",
            f"Versions: {versions}.",
        ]
    )
