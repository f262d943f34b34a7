"""From an artifact of a bundle to a writer at work: opens the engine's session and gives it the bundle's words."""

from __future__ import annotations

from pathlib import Path

from ..runtimes.decoder_contract import DecoderOptions
from ..runtimes.registry import open_decoder
from ..runtimes.spare_memory import release_freed
from .bundle import TOKENIZER_LIMIT, Bundle
from .bundle_files import read_verified
from .manifest import ArtifactEntry, WritingEntry
from .prefix_cache import PrefixCache
from .sampling import Sampling
from .student import StudentInfo
from .text_codec import TextCodec
from .writer import Writer


def open_writer(bundle: Bundle, artifact: ArtifactEntry, options: DecoderOptions, prefix_dir: Path | None) -> Writer:
    """Open one artifact of a bundle whose task is ``generate``.

    Args:
        prefix_dir: folder for caches of system prompts; None keeps none.

    Raises:
        BundleError: the artifact, tokenizer or chat template cannot be used.
        EngineError: the engine is missing, fails or miscomputes it.
        OverBudgetError: it will not fit into the memory limit of ``options``.
    """
    manifest = bundle.manifest
    writing = manifest.writing
    if writing is None:
        raise ValueError("open_writer was given a bundle that does not write")
    # Reading a large vocabulary takes as much again for a moment, which should not come on top of the engine's memory.
    codec = TextCodec(read_verified(bundle.folder, manifest.tokenizer.file, TOKENIZER_LIMIT), bundle.tokenizer)
    release_freed()
    session = open_decoder(artifact.runtime, bundle.artifact_path(artifact), options)
    try:
        prefixes = None
        if prefix_dir is not None:
            used = session.effective
            hashes = [file.sha256 for file in artifact.files]
            identity = [*hashes, used.runtime, used.engine_version, used.device, str(session.context)]
            prefixes = PrefixCache(prefix_dir, identity)
        return Writer(
            session,
            codec,
            end_tokens=writing.end_ids,
            defaults=default_sampling(writing),
            chat_template=writing.chat_template,
            special_tokens=writing.special_tokens,
            prefixes=prefixes,
            info=StudentInfo(
                name=manifest.name,
                folder=bundle.folder,
                family=manifest.family,
                task=manifest.task,
                labels=(),
                max_tokens=session.context,
                runtime=artifact.runtime,
                precision=artifact.precision,
                disk_mib=bundle.artifact_mib(artifact),
            ),
        )
    except BaseException:
        session.close()
        raise


def default_sampling(writing: WritingEntry) -> Sampling:
    """How tokens are chosen where a call does not say: as the bundle has it, else greedily."""
    given = writing.defaults
    return Sampling(
        temperature=given.get("temperature", 0.0),
        top_k=int(given.get("top_k", 0)),
        top_p=given.get("top_p", 1.0),
        min_p=given.get("min_p", 0.0),
        repetition_penalty=given.get("repetition_penalty", 1.0),
    )
