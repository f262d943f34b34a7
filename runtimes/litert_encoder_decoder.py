"""LiteRT on the CPU for encoder-decoders: one ``.tflite`` file with a signature that reads and some that write.

All that is said of decoders in :mod:`~edgescribe.runtimes.litert_decoder` holds for the target. The source is filled up
to a multiple of so many tokens; the mask hides what was filled in, so that answers do not depend on it.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .checked_decoder import check_memory, checked_context
from .checked_encoder_decoder import CheckedEncoderDecoder, check_source_answers
from .code_pages import release_code
from .contract import Effective
from .decoder_contract import DecoderMemory
from .encoder_decoder_contract import EncoderDecoderOptions
from .engine_messages import without_info_lines
from .litert import NAME
from .litert_decoder import OnDecoderModel, compiled_model, effective_engine
from .litert_decoder_model import IN_MEMORY, UNRELATED, packed_weights
from .litert_encoder_decoder_file import memory_of, read_encoder_decoder_file
from .litert_encoder_decoder_model import EncoderDecoderModel, TargetCaches
from .mapped_weights import handing_back


class LiteRtEncoderDecoderSession(CheckedEncoderDecoder, OnDecoderModel):
    """An encoder-decoder opened in LiteRT; see
    :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderSession`."""

    _model: EncoderDecoderModel
    _caches: TargetCaches

    def __init__(self, model: EncoderDecoderModel, effective: Effective, source_context: int) -> None:
        super().__init__()
        self.source_context = source_context
        self._join(model, effective)

    def _read(self, tokens: NDArray[np.int32]) -> None:
        self._model.read_source(self._caches, tokens)

    def _take(self, other: CheckedEncoderDecoder) -> None:
        if not isinstance(other, LiteRtEncoderDecoderSession) or other._model is not self._model:
            raise InputError("a session takes the state of its own forks alone")
        self._source_length = self._length = 0  # and stay so if the engine fails
        self._model.take(self._caches, other._caches, other.length)

    def _forked(self) -> LiteRtEncoderDecoderSession:
        return LiteRtEncoderDecoderSession(self._model, self.effective, self.source_context)


class LiteRtEncoderDecoderRuntime:
    """The adapter of LiteRT for encoder-decoders."""

    name = NAME

    def open_encoder_decoder(self, artifact: Path, options: EncoderDecoderOptions) -> LiteRtEncoderDecoderSession:
        """Open an encoder-decoder's ``.tflite`` file on the CPU; see EncoderDecoderRuntime.

        ``options.spinning`` changes nothing: LiteRT's threads decide that themselves.
        """
        effective = effective_engine(options)
        file = read_encoder_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        source_context = checked_context(options.source_context, file.source_context, artifact)
        check_memory(memory_of(file, context, source_context), options.memory_limit, context, artifact)
        module = compiled_model(effective.engine_version)
        # What has packed weights keeps memory as large as the largest of them: it is opened anew with what it packed.
        for last in (False, True):
            with packed_weights(options.cache_dir, artifact, effective.engine_version) as packed:
                packs = packed != IN_MEMORY and not Path(packed).exists()
                model = EncoderDecoderModel(module, file, context, effective.threads, packed)
                session = LiteRtEncoderDecoderSession(model, effective, source_context)
                _run_first(session, model, Path(packed), options)
            if last or not packs:
                break
            session.close()
        release_code(Path(module.__file__).parent)
        return session

    def predicted_memory(
        self, artifact: Path, context: int | None = None, source_context: int | None = None
    ) -> DecoderMemory:
        """See EncoderDecoderRuntime."""
        file = read_encoder_decoder_file(artifact)
        return memory_of(
            file,
            checked_context(context, file.context, artifact),
            checked_context(source_context, file.source_context, artifact),
        )


def _run_first(
    session: LiteRtEncoderDecoderSession, model: EncoderDecoderModel, packed: Path, options: EncoderDecoderOptions
) -> None:
    """Have the engine pack weights, which it does (and announces) in the first runs, and check the known answers.

    A session's fork does that, so that no source was read in the session itself, which is closed if something fails.
    """
    artifact = model.file.path
    try:
        with closing(session._forked()) as first:
            with without_info_lines(*UNRELATED), handing_back((artifact, packed)):
                first.read([0])
                model.settle()
                first.step(0)
            check_source_answers(first, tuple(options.source_answers), artifact)
        model.settle()
    except BaseException:
        session.close()
        raise


ENCODER_DECODER = LiteRtEncoderDecoderRuntime()
