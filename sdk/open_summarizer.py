"""From an artifact of a bundle to a summariser at work: opens the engine's session, gives it the bundle's words."""

from __future__ import annotations

from ..errors import BundleError
from ..runtimes.encoder_decoder_contract import EncoderDecoderOptions, EncoderDecoderSession
from ..runtimes.registry import open_encoder_decoder
from ..runtimes.spare_memory import release_freed
from .bundle import TOKENIZER_LIMIT, Bundle
from .bundle_files import read_verified
from .manifest import ArtifactEntry, SummarizingEntry
from .student import StudentInfo
from .summarizer import Summarizer
from .text_codec import TextCodec


def open_summarizer(bundle: Bundle, artifact: ArtifactEntry, options: EncoderDecoderOptions) -> Summarizer:
    """Open one artifact of a bundle whose task is ``summarize``.

    Raises:
        BundleError: the artifact or tokenizer cannot be used, or the artifact is not of the sizes that the bundle says.
        EngineError: the engine is missing, fails or miscomputes it.
        OverBudgetError: it will not fit into the memory limit of ``options``.
        UsageError: a context is more than the artifact's, or does not hold what starts a summary.
    """
    manifest = bundle.manifest
    summarizing = manifest.summarizing
    if summarizing is None:
        raise ValueError("open_summarizer was given a bundle that does not summarise")
    # Before the engine takes memory: see open_writer.
    codec = TextCodec(read_verified(bundle.folder, manifest.tokenizer.file, TOKENIZER_LIMIT), bundle.tokenizer)
    release_freed()
    session = open_encoder_decoder(artifact.runtime, bundle.artifact_path(artifact), options)
    try:
        _check_sizes(session, summarizing, options, f"{bundle.folder}, {artifact.files[0].path}")
        return Summarizer(
            session,
            codec,
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


def _check_sizes(
    session: EncoderDecoderSession, said: SummarizingEntry, options: EncoderDecoderOptions, where: str
) -> None:
    for name, found, wanted in (
        ("vocabulary", session.vocabulary, said.vocabulary),
        ("context", session.context, said.context if options.context is None else session.context),
        (
            "source_context",
            session.source_context,
            said.source_context if options.source_context is None else session.source_context,
        ),
    ):
        if found != wanted:
            raise BundleError(
                f"{where}: its {name} is {found}, and bundle.json says {wanted}; convert the student again"
            )
