"""LiteRT on the CPU for decoders: ``.tflite`` files with a signature ``decode_<T>`` for some numbers of tokens T.

Shapes are fixed while a session runs: the caches have room for its context, each signature appends T tokens. A session
cuts what it is given into pieces that fit, filling the last one up; what filling writes behind the tokens is hidden by
the mask and written over later. Caches are updated in place: one buffer is bound as both the input and the output.

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
from .contract import Effective
from .decoder_contract import DecoderMemory, DecoderOptions
from .engine_messages import without_info_lines
from .litert import FALLBACK, NAME, engine
from .litert_decoder_file import memory_of, read_decoder_file
from .litert_decoder_model import DecoderModel, kept, packed_weights
from .threads import thread_count


class LiteRtDecoderSession(CheckedDecoder):
    """A decoder opened in LiteRT; see :class:`~edgescribe.runtimes.decoder_contract.DecoderSession`."""

    verifies_alike = True

    def __init__(self, model: DecoderModel, effective: Effective) -> None:
        super().__init__()
        self._model, self.context, self.effective = model, model.file.room, effective
        self.vocabulary = model.file.vocabulary
        self.chunk = model.file.sizes[-1]
        self.most_verified = max(size for size in model.file.sizes if size not in model.file.last_only)
        self._caches = model.new_caches()
        # A session that nobody closed is closed with its last reference.
        self._release = weakref.finalize(self, model.release, self._caches)

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        results, at = [], 0
        every = wanted > 1
        while at < len(tokens):
            start = self._length + at
            size = self._model.file.size_of_run(len(tokens) - at, start, every)
            part = tokens[at : at + size]
            at += len(part)
            asked = len(part) if every else int(wanted == 1 and at == len(tokens))
            results.append(self._model.run(self._caches, part, start, size, asked))
        return np.concatenate(results) if every and len(results) > 1 else results[-1]

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._model.read(self._caches, self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        file = self._model.file
        for name, shape in file.caches.items():
            array = arrays.get(name)
            wanted = np.broadcast_to(np.float32(0), shape)[kept(name, length)].shape
            if array is None or array.dtype != np.float32 or array.shape != wanted or len(arrays) != len(file.caches):
                raise InputError(f"the saved cache is not one of {file.path.name}: it needs {name!r}, float32 {wanted}")
        self._model.write(self._caches, arrays, length)

    def _forked(self) -> CheckedDecoder:
        return LiteRtDecoderSession(self._model, self.effective)

    def _free(self) -> None:
        self._release()


class LiteRtDecoderRuntime:
    """The adapter of LiteRT for decoders."""

    name = NAME

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> LiteRtDecoderSession:
        """Open a decoder's ``.tflite`` file on the CPU; see DecoderRuntime.

        ``options.spinning`` changes nothing: LiteRT's threads decide that themselves.
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
        whole = read_decoder_file(artifact)
        context = checked_context(options.context, whole.room, artifact)
        file = whole.with_room(context)
        check_memory(memory_of(file), options.memory_limit, context, artifact)
        module = _compiled_model(found.version)
        packed = packed_weights(options.cache_dir, artifact, found.version)
        effective = Effective(NAME, found.package, found.version, "cpu", "XNNPACK", "float32", threads)
        session = LiteRtDecoderSession(DecoderModel(module, file, whole.room, threads, packed), effective)
        try:
            with without_info_lines():  # the engine packs weights and announces it in the first run
                session.step(0)
            session.rewind(0)
            check_answers(session, tuple(options.answers), artifact)
        except BaseException:
            session.close()
            raise
        return session

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """See DecoderRuntime."""
        file = read_decoder_file(artifact)
        return memory_of(file.with_room(checked_context(context, file.room, artifact)))


DECODER = LiteRtDecoderRuntime()


def _compiled_model(version: str) -> Any:
    try:
        return importlib.import_module("ai_edge_litert.compiled_model")
    except (ImportError, AttributeError, OSError) as error:
        raise EngineError(
            f"ai_edge_litert {version} has no usable CompiledModel ({error}); install version 2.3 or later"
        ) from error
