"""``edgescribe inspect``: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..console import Result, command, figure, table
from .choices import bundle_argument

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..manifest import Manifest

_LABELS_SHOWN = 8


@command()
@bundle_argument
def inspect(bundle: Path) -> Result:
    """Check every file of BUNDLE and tell what is in it."""
    from ..bundle import read_bundle

    found = read_bundle(bundle)
    data = {"folder": found.folder, "disk_mib": found.disk_mib, "manifest": found.manifest}
    return Result(data, _text(found))


def _limits(manifest: Manifest, labels: str) -> list[tuple[str, str]]:
    writing, summarizing = manifest.writing, manifest.summarizing
    if summarizing is not None:
        defaults = ", ".join(f"{name} {value:g}" for name, value in summarizing.defaults.items())
        return [
            ("reads at once", f"{summarizing.source_context} tokens; longer texts in parts"),
            ("writes", f"{summarizing.context} tokens at most, {len(summarizing.start_ids)} that start it included"),
            ("prefix", repr(summarizing.prefix) if summarizing.prefix else "none"),
            ("search", defaults or "greedy"),
        ]
    if writing is None:
        return [
            ("longest input", f"{manifest.tokenizer.max_tokens} tokens"),
            ("labels", f"{len(manifest.labels)}: {labels}" if manifest.labels else "none"),
        ]
    defaults = ", ".join(f"{name} {value:g}" for name, value in writing.defaults.items())
    return [
        ("context", f"{writing.context} tokens, prompt and text together"),
        ("conversations", "yes" if writing.chat_template is not None else "no, it goes on from a text"),
        ("sampling", defaults or "greedy"),
    ]


def _text(bundle: Bundle) -> str:
    manifest = bundle.manifest
    labels = ", ".join(manifest.labels[:_LABELS_SHOWN])
    if len(manifest.labels) > _LABELS_SHOWN:
        labels += ", …"
    made = manifest.provenance
    facts = [
        ("name", manifest.name),
        ("family, task", f"{manifest.family}, {manifest.task}"),
        *_limits(manifest, labels),
        ("size", f"{figure(bundle.disk_mib)} MiB in all"),
        ("made", f"{made.created} from {made.source} (sha256 {made.source_sha256[:12]}…), seed {made.seed}"),
    ]
    parts = [table(facts)]
    artifacts = [
        (
            artifact.runtime,
            artifact.precision,
            bundle.artifact_mib(artifact),
            ", ".join(map(str, artifact.buckets)) or "any",
            artifact.files[0].path,
        )
        for artifact in manifest.artifacts
    ]
    parts.append(table(artifacts, ("runtime", "precision", "MiB with tokenizer", "token counts", "file")))
    if manifest.quality:
        names = sorted({metric for values in manifest.quality.values() for metric in values})
        rows = [
            (stage, *(f"{values[name]:.4f}" if name in values else "–" for name in names))
            for stage, values in manifest.quality.items()
        ]
        parts.append(table(rows, ("quality", *names)))
    if manifest.measurements:
        speed = [
            (m.device, m.runtime, m.precision, m.tokens, m.threads, m.p50_ms, m.p90_ms, m.p99_ms, m.peak_rss_mib, m.how)
            for m in manifest.measurements
        ]
        header = ("device", "runtime", "precision", "tokens", "threads", "p50 ms", "p90 ms", "p99 ms", "MiB", "how")
        parts.append(table(speed, header))
    return "\n\n".join(parts)
