"""Whether a bundle keeps the budget that a device grants its task, and where each figure comes from.

A budget is met by measurement: on this machine where it is the device or of its kind, or by what the bundle says
was measured on the device. Failing both, latency is estimated: the artifact is timed here on one thread and scaled
to the device by the cost model; memory is that of the process here. An estimate is called that beside each figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..device_profiles import budgets
from ..device_profiles.budgets import Figure, Finding
from ..device_profiles.probe import Machine, probe
from ..device_profiles.schema import DeviceProfile
from ..errors import EngineError, ProfileError
from .bundle import Bundle, read_bundle
from .load import HOST, Candidate, by_preference
from .manifest import Measurement
from .measure import QUICK, Effort, OnProgress, ProcessReport, machine_text, measure, measure_process


@dataclass(frozen=True)
class BudgetReport:
    """A bundle against a device's budget.

    Attributes:
        device: the profile's id.
        task: the bundle's task.
        runtime: runtime of the artifact that runs there.
        precision: its precision.
        threads: threads that the profile gives it.
        tokens: tokens of each call.
        basis: in words, where the figures come from.
        error_fraction: how far off an estimate may be (0.5: by half); None where nothing is estimated.
        findings: each granted figure against what was found.
    """

    device: str
    task: str
    runtime: str
    precision: str
    threads: int
    tokens: int
    basis: str
    error_fraction: float | None
    findings: tuple[Finding, ...]

    @property
    def met(self) -> bool:
        """Whether no figure is over budget."""
        return not budgets.over(self.findings)


def check_budget(
    bundle: str | Path,
    profile: DeviceProfile,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    effort: Effort = QUICK,
    on_progress: OnProgress | None = None,
) -> BudgetReport:
    """Check the artifact that :func:`edgescribe.load` takes on a device against the device's budget.

    Args:
        bundle: the bundle's folder.
        profile: the device; ``host`` is this machine.
        runtime: check this runtime's artifact instead.
        precision: check the artifact of this precision instead.
        effort: how long to measure, where it is measured here.

    Raises:
        ProfileError: the profile grants the bundle's task no budget.
        BundleError: the bundle is damaged or has no such artifact.
        EngineError: the engine is missing here, or the profile has none for this bundle.
    """
    found = read_bundle(bundle)
    task = found.manifest.task
    budget = profile.budgets.get(task)
    if budget is None:
        granted = ", ".join(profile.budgets) or "none"
        raise ProfileError(
            f"the profile {profile.id!r} has no budget for {task!r} (it has: {granted}); "
            f"write [budgets.{task}] into a copy of it and give the copy's path"
        )
    candidates = by_preference(found.artifacts(runtime, precision), profile, explicit=precision is not None)
    candidate = candidates[0]
    # A writer needs room behind the prompt for what it writes; a summariser has it in a context of its own.
    longest = found.manifest.tokenizer.max_tokens // (2 if found.manifest.writing is not None else 1)
    tokens = min(budget.tokens, max(1, longest))
    machine = probe()
    told = _measured_there(found, candidate, profile, tokens)
    error: float | None = None
    if profile.id == HOST or of_same_kind(profile, machine):
        figures = _here(found, candidate, tokens, effort, on_progress)
        basis = f"measured on this machine ({machine_text(machine)})"
    elif told is not None:
        figures = _measured_figures(told)
        basis = f"the bundle's own figures, measured on {told.machine}"
    else:
        candidate = _on_cpu(candidates, profile)
        figures, error = _estimated(found, candidate, profile, tokens, effort, on_progress)
        basis = f"estimated: timed on this machine ({machine_text(machine)}) and scaled to the device"
    if tokens < budget.tokens:
        basis += f"; at {tokens} tokens, all that the student reads, where the budget speaks of {budget.tokens}"
    figures["disk_mib"] = Figure(found.artifact_mib(candidate.artifact), "measured")
    return BudgetReport(
        device=profile.id,
        task=task,
        runtime=candidate.artifact.runtime,
        precision=candidate.artifact.precision,
        threads=candidate.threads,
        tokens=tokens,
        basis=basis,
        error_fraction=error,
        findings=tuple(budgets.check(budget, figures)),
    )


def of_same_kind(profile: DeviceProfile, machine: Machine) -> bool:
    """Whether a machine has the profile's instruction set and the very cores, so that times hold for both."""

    def cores(clusters: object) -> list[tuple[str, int]]:
        values = clusters.values() if isinstance(clusters, dict) else ()
        return sorted((cluster.core.casefold(), cluster.count) for cluster in values)

    return profile.isa == machine.isa and cores(profile.clusters) == cores(machine.clusters)


def _measured_there(
    bundle: Bundle, candidate: Candidate, profile: DeviceProfile, tokens: int
) -> Measurement | None:
    artifact = candidate.artifact
    for measurement in bundle.manifest.measurements:
        if (
            measurement.how == "measured"
            and measurement.device == profile.id
            and (measurement.runtime, measurement.precision) == (artifact.runtime, artifact.precision)
            and measurement.tokens == tokens
        ):
            return measurement
    return None


def _here(
    bundle: Bundle, candidate: Candidate, tokens: int, effort: Effort, on_progress: OnProgress | None
) -> dict[str, Figure]:
    taken = measure(
        bundle.folder,
        candidate.artifact.runtime,
        candidate.artifact.precision,
        device=candidate.device,
        threads=candidate.threads,
        tokens=tokens,
        effort=effort,
        on_progress=on_progress,
    )
    return _measured_figures(taken)


def _on_cpu(candidates: list[Candidate], profile: DeviceProfile) -> Candidate:
    for candidate in candidates:
        if candidate.device == "cpu":
            return candidate
    raise EngineError(
        f"only the NPU of {profile.id!r} runs this, and that cannot be estimated from here; run the check on the device"
    )


def _estimated(
    bundle: Bundle,
    candidate: Candidate,
    profile: DeviceProfile,
    tokens: int,
    effort: Effort,
    on_progress: OnProgress | None,
) -> tuple[dict[str, Figure], float]:
    from ..device_profiles.cost_model import Workload, predict
    from ..device_profiles.measure import measure_profile

    artifact = candidate.artifact
    report = measure_process(
        bundle.folder,
        artifact.runtime,
        artifact.precision,
        threads=1,
        tokens=tokens,
        effort=effort,
        on_progress=on_progress,
    )
    host = measure_profile(seconds=1.0)
    if report.ttft_ms is not None:
        return _estimated_writing(report, profile, host, candidate, bundle.manifest.summarizing is not None)
    int8 = artifact.precision != "fp32"
    rate = host.int8_gmac_s if int8 else host.fp32_gmac_s
    # The work that this machine's rate explains: overheads of the engine scale with the clock as arithmetic does.
    macs = int(report.percentile(50) / 1e3 * rate * 1e9)
    weights = sum(file.bytes for file in artifact.files)
    work = Workload(macs=macs, int8=int8, weight_bytes=weights, activation_bytes=0, operators=0)
    predicted = predict(profile, work, artifact.runtime, max(1, candidate.threads))
    return _figures(predicted.p90_ms, report.peak_rss_mib, "estimated"), predicted.error_fraction


def _estimated_writing(
    report: ProcessReport, profile: DeviceProfile, host: DeviceProfile, candidate: Candidate, summarizes: bool
) -> tuple[dict[str, Figure], float]:
    """A decode step and the way to the first token, each scaled to the device; both read every weight once at most."""
    from ..device_profiles.cost_model import P90_OVER_TYPICAL, Prediction, Workload, predict
    from .measured_summarizing import TOKENS

    artifact = candidate.artifact
    int8 = artifact.precision != "fp32"
    rate = (host.int8_gmac_s if int8 else host.fp32_gmac_s) * 1e9
    weights = sum(file.bytes for file in artifact.files)

    def there(milliseconds: float) -> Prediction:
        work = Workload(int(milliseconds / 1e3 * rate), int8, weight_bytes=weights, activation_bytes=0, operators=0)
        return predict(profile, work, artifact.runtime, max(1, candidate.threads))

    step, prefill = there(report.percentile(50)), there(report.ttft_ms or 0.0)
    figures = _figures(step.p90_ms, report.peak_rss_mib, "estimated")
    figures["ttft_ms"] = Figure(prefill.p90_ms, "estimated")
    token_ms = (prefill.p90_ms + (TOKENS - 1) * step.p90_ms) / TOKENS if summarizes else step.p90_ms
    figures["tokens_per_s"] = Figure(1000 * P90_OVER_TYPICAL / token_ms, "estimated")
    return figures, step.error_fraction


def _measured_figures(taken: Measurement) -> dict[str, Figure]:
    figures = _figures(taken.p90_ms, taken.peak_rss_mib, "measured")
    for key, value in (("ttft_ms", taken.ttft_ms), ("tokens_per_s", taken.tokens_per_s)):
        if value is not None:
            figures[key] = Figure(value, "measured")
    return figures


def _figures(p90_ms: float, peak_rss_mib: float, how: budgets.How) -> dict[str, Figure]:
    return {"p90_ms": Figure(p90_ms, how), "peak_rss_mib": Figure(peak_rss_mib, how)}
