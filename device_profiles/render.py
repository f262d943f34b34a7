"""Device profiles as plain text for terminals: aligned columns, no colours, lines of at most about 100 characters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from .profiles import unsourced_numbers
from .schema import Budget, CpuCluster, DeviceProfile

_WIDTH = 100


def render_list(profiles: Iterable[DeviceProfile]) -> str:
    """One line for each profile: id, cores, memory, accelerators, preferred runtime, name."""
    rows = [("DEVICE", "CORES", "MEMORY", "NPU", "RUNTIME", "NAME")]
    rows += [
        (
            profile.id,
            "+".join(str(cluster.count) for cluster in profile.clusters.values()),
            memory_text(profile.memory.total_mib),
            ", ".join(f"{a.tops:g} TOPS" if a.tops else a.kind for a in profile.accelerators) or "-",
            profile.runtimes[0].name,
            profile.name,
        )
        for profile in profiles
    ]
    return columns(rows)


def render_profile(profile: DeviceProfile, *, with_sources: bool = True) -> str:
    """Everything in one profile, with where each number comes from unless ``with_sources`` is false."""
    how = "measured on the device" if profile.measured else "from published sources; not measured by edgescribe"
    facts = [("id", profile.id), ("kind", f"{profile.kind}, {profile.isa}"), ("numbers", how)]
    facts += [(f"cores ({name})", cluster_text(cluster)) for name, cluster in profile.clusters.items()]
    facts += [
        ("memory", f"{memory_text(profile.memory.total_mib)}, {profile.memory.bandwidth_gb_s:g} GB/s"),
        ("dense layers", f"int8 {profile.int8_gmac_s:g} GMAC/s, float32 {profile.fp32_gmac_s:g} GMAC/s, one core"),
    ]
    for accelerator in profile.accelerators:
        tops = f"{accelerator.tops:g} TOPS int8" if accelerator.tops else "TOPS not stated by its maker"
        sram = f", {accelerator.sram_kib} KiB on chip" if accelerator.sram_kib else ""
        facts.append((accelerator.kind, f"{accelerator.name}: {tops}{sram}"))
    parts = [profile.name, columns(facts), "Runtimes, best first"]
    for place, runtime in enumerate(profile.runtimes, 1):
        parts.append(f"  {place}. {runtime.name} on {runtime.device}, threads: {runtime.threads}")
        parts += [wrapped(f"avoid {avoid.what}: {avoid.why}", "     ") for avoid in runtime.avoid]
    parts += ["Budgets", _budget_table(profile)]
    if profile.notes:
        parts += ["Notes", *(wrapped(note, "  ", bullet=True) for note in profile.notes)]
    if with_sources:
        parts += ["Sources", *(wrapped(f"{path}: {text}", "  ", bullet=True) for path, text in profile.sources.items())]
        missing = unsourced_numbers(profile)
        if missing:
            parts.append(wrapped(f"without a source: {', '.join(missing)}", "  ", bullet=True))
    return "\n".join(parts)


def cluster_text(cluster: CpuCluster) -> str:
    """``4 x Cortex-A76 at 2400 MHz (asimd, asimddp)``."""
    clock = f" at {cluster.max_mhz} MHz" if cluster.max_mhz else ""
    features = f" ({', '.join(cluster.features)})" if cluster.features else ""
    return f"{cluster.count} x {cluster.core}{clock}{features}"


def memory_text(mib: int) -> str:
    """``512 MiB`` or ``7.8 GiB``."""
    return f"{mib} MiB" if mib < 1024 else f"{mib / 1024:.3g} GiB"


def columns(rows: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Rows of texts as left-aligned columns; a last column that does not fit is wrapped under itself."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)] if rows else []
    lines = []
    for row in rows:
        head = "".join(text.ljust(width + gap) for text, width in zip(row[:-1], widths, strict=True))
        tail = textwrap.wrap(row[-1], max(30, _WIDTH - len(head)), break_on_hyphens=False) or [""]
        lines.append(head + tail[0])
        lines += [" " * len(head) + more for more in tail[1:]]
    return "\n".join(line.rstrip() for line in lines)


def wrapped(text: str, indent: str, *, bullet: bool = False) -> str:
    """Text wrapped under an indent, with a hyphen before its first line if asked."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=indent + ("- " if bullet else ""),
        subsequent_indent=indent + ("  " if bullet else ""),
        break_on_hyphens=False,
        break_long_words=False,
    )


def _budget_table(profile: DeviceProfile) -> str:
    if not profile.budgets:
        return "  none"
    head = ("  TASK", "TOKENS", "P90 MS", "TTFT MS", "TOKENS/S", "RSS MIB", "DISK MIB")
    return columns([head, *((f"  {task}", *_budget_row(budget)) for task, budget in profile.budgets.items())])


def _budget_row(budget: Budget) -> tuple[str, ...]:
    limits = (budget.p90_ms, budget.ttft_ms, budget.tokens_per_s, budget.peak_rss_mib, budget.disk_mib)
    return (str(budget.tokens), *("-" if limit is None else f"{limit:g}" for limit in limits))
