"""From an artifact of a bundle to a summariser at work: opens the engine's session, gives it the bundle's words."""

from __future__ import annotations

from ..runtimes.encoder_decoder_contract import EncoderDecoderOptions
from ..runtimes.registry import open_encoder_decoder
from .bundle import TOKENIZER_LIMIT, Bundle
from .bundle_files import read_verified
from .manifest import ArtifactEntry
from .student import StudentInfo
from .summarizer import Summarizer


def open_summarizer(bundle: Bundle, artifact: ArtifactEntry, options: EncoderDecoderOptions) -> Summarizer:
    """Open one artifact of a bundle whose task is ``summarize``.

    Raises:
        BundleError: the artifact or tokenizer cannot be used.
        EngineError: the engine is missing, fails or miscomputes it.
        OverBudgetError: it will not fit into the memory limit of ``options``.
        UsageError: a context is more than the artifact's, or does not hold what starts a summary.
    """
    manifest = bundle.manifest
    summarizing = manifest.summarizing
    if summarizing is None:
        raise ValueError("open_summarizer was given a bundle that does not summarise")
    session = open_encoder_decoder(artifact.runtime, bundle.artifact_path(artifact), options)
    try:
        return Summarizer(
            session,
            read_verified(bundle.folder, manifest.tokenizer.file, TOKENIZER_LIMIT),
            start_tokens=summarizing.start_ids,
            end_tokens=summarizing.end_ids,
            prefix=summarizing.prefix,
            defaults=summarizing.defaults,
            info=StudentInfo(
                name=manifest.name,
                folder=bundle.folder,
                family=manifest.family,
                task=manifest.task,
                labels=(),
                max_tokens=session.source_context,
                runtime=artifact.runtime,
                precision=artifact.precision,
                disk_mib=bundle.artifact_mib(artifact),
            ),
        )
    except BaseException:
        session.close()
        raise
