"""LiteRT on the CPU for decoders: ``.tflite`` files with a signature for some numbers of tokens T.

Each signature appends T tokens. A session cuts what it is given into pieces that fit, filling the last one up; what
filling writes behind the tokens is hidden by the mask and written over later. Caches are updated in place: one buffer
is bound as both the input and the output.

XNNPACK rounds each row of activations to int8 by itself and adds up in the same order whatever the number of rows, so
that a token's logits come out bit for bit the same from every signature.

Weights are packed once for all signatures: into a file under ``cache_dir``, which later sessions map instead of
packing, or else into shared memory that goes with the session.
"""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from .checked_decoder import CheckedDecoder, check_answers, check_memory, checked_context
from .code_pages import release_code
from .contract import Effective
from .decoder_contract import DecoderMemory, DecoderOptions
from .engine_messages import without_info_lines
from .litert import FALLBACK, NAME, engine
from .litert_decoder_file import memory_of, read_decoder_file
from .litert_decoder_model import UNRELATED, DecoderModel, packed_weights
from .threads import thread_count


class OnDecoderModel(CheckedDecoder):
    """What sessions on a :class:`~edgescribe.runtimes.litert_decoder_model.DecoderModel` have in common."""

    verifies_alike = True
    _model: DecoderModel

    def _join(self, model: DecoderModel, effective: Effective) -> None:
        """Become one of the model's sessions."""
        file = model.file
        self._model, self.context, self.effective = model, model.context, effective
        self.vocabulary = file.vocabulary
        self.chunk = file.sizes[-1]
        self.most_verified = max(size for size in file.sizes if size not in file.last_only)
        self._caches = model.join()
        # A session that nobody closed is closed with its last reference.
        self._leave = weakref.finalize(self, model.leave, self._caches)

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        results, at = [], 0
        while at < len(tokens):
            taken, logits = self._model.run(self._caches, tokens[at:], self._length + at, wanted > 1, wanted == 1)
            at += taken
            if logits is not None:
                results.append(logits)
        if len(results) == 1:
            return results[0]
        return np.concatenate([np.zeros((0, self.vocabulary), np.float32), *results])

    def _step(self, token: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return self._model.step(self._caches, token, self._length, out)

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._model.read(self._caches, self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        file = self._model.file
        for name, shape in file.cache_shapes(length).items():
            array = arrays.get(name)
            if array is None or array.dtype != np.float32 or array.shape != shape or len(arrays) != len(file.caches):
                raise InputError(f"the saved cache is not one of {file.path.name}: it needs {name!r}, float32 {shape}")
        self._model.write(self._caches, arrays, length)

    def _free(self) -> None:
        self._leave()


class LiteRtDecoderSession(OnDecoderModel):
    """A decoder opened in LiteRT; see :class:`~edgescribe.runtimes.decoder_contract.DecoderSession`."""

    def __init__(self, model: DecoderModel, effective: Effective) -> None:
        super().__init__()
        self._join(model, effective)

    def _forked(self) -> CheckedDecoder:
        return LiteRtDecoderSession(self._model, self.effective)


class LiteRtDecoderRuntime:
    """The adapter of LiteRT for decoders."""

    name = NAME

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> LiteRtDecoderSession:
        """Open a decoder's ``.tflite`` file on the CPU; see DecoderRuntime.

        ``options.spinning`` changes nothing: LiteRT's threads decide that themselves.
        """
        effective = effective_engine(options)
        file = read_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        check_memory(memory_of(file, context), options.memory_limit, context, artifact)
        module = compiled_model(effective.engine_version)
        with packed_weights(options.cache_dir, artifact, effective.engine_version) as packed:
            model = DecoderModel(module, file, context, effective.threads, packed)
            session = LiteRtDecoderSession(model, effective)
            try:
                with without_info_lines(*UNRELATED):  # the engine packs weights and announces it in the first run
                    session.step(0)
                session.rewind(0)
                check_answers(session, tuple(options.answers), artifact)
            except BaseException:
                session.close()
                raise
        model.settle()
        release_code(Path(module.__file__).parent)
        return session

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """See DecoderRuntime."""
        file = read_decoder_file(artifact)
        return memory_of(file, checked_context(context, file.context, artifact))


DECODER = LiteRtDecoderRuntime()


def effective_engine(options: DecoderOptions) -> Effective:
    """What will run an artifact.

    Raises:
        MissingExtraError: LiteRT is not installed.
        EngineError: only its predecessor is, or a device other than the CPU was asked for.
    """
    threads = thread_count(options.threads)
    found = engine()
    if found.package == FALLBACK:
        raise EngineError(
            f"tflite_runtime {found.version} computes dynamically quantised weights as zeros and has no int4, "
            "so no decoder is opened with it: install ai-edge-litert with pip install 'edgescribe[litert]'"
        )
    if options.device != "cpu":
        raise EngineError(
            f"the runtime litert has no device {options.device!r}: {found.package} runs on the CPU here; "
            "ask for device 'cpu', or take the runtime openvino for an NPU"
        )
    return Effective(NAME, found.package, found.version, "cpu", "XNNPACK", "float32", threads)


def compiled_model(version: str) -> Any:
    """The engine's module that runs decoders.

    Raises:
        EngineError: there is none, or it cannot be imported.
    """
    try:
        return importlib.import_module("ai_edge_litert.compiled_model")
    except (ImportError, AttributeError, OSError) as error:
        raise EngineError(
            f"ai_edge_litert {version} has no usable CompiledModel ({error}); install version 2.3 or later"
        ) from error
