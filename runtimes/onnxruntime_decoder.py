"""Decoders in ONNX Runtime on the CPU: sessions whose KV cache is one block of memory that never moves.

Each layer's keys and values are bound as the graph's input and output at once: the engine writes new tokens where
they belong. All other inputs and the logits are bound too, so that a step costs Python a few microseconds.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, InputError
from .checked_decoder import CheckedDecoder, check_answers, check_memory, checked_context
from .contract import Effective
from .decoder_contract import DecoderMemory, DecoderOptions, DecoderSession
from .onnxruntime import NAME, PROVIDER, engine
from .onnxruntime_decoder_file import DecoderFile, data_file, read_decoder_file
from .onnxruntime_decoder_pages import release_read_pages
from .threads import thread_count

CHUNK = 128
"""Tokens of one run of prefill."""

MOST_VERIFIED = 16

ENGINE_BYTES = 60 << 20
"""What Python, numpy and ONNX Runtime 1.31 take on x86-64 Linux with a session of no weights."""

FLOAT_BYTES = 4
SPARE = 1
"""Rows that a step of one token has attention compute beside its own: see the exporter's graph, input ``spare``."""

_TRIED_TOKENS = 7
_DAMAGED = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel", "UnicodeDecodeError")
_FATAL_ONLY = 4


class SharedWeights:
    """An engine's session with the number of decoder sessions that use it; freed with the last.

    ``alike``: whether a step gives the bits of a verification on this machine; None while nobody asked.
    """

    def __init__(self, module: Any, session: Any) -> None:
        self.module, self.session = module, session
        self.alike: bool | None = None
        self._users, self._lock = 0, threading.Lock()

    def enter(self) -> None:
        """Count one user more."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self.session = None


class OnnxRuntimeDecoder(CheckedDecoder):
    """A decoder opened in ONNX Runtime; see :class:`~edgescribe.runtimes.decoder_contract.DecoderSession`."""

    most_verified = MOST_VERIFIED
    chunk = CHUNK

    def __init__(self, weights: SharedWeights, file: DecoderFile, context: int, effective: Effective) -> None:
        super().__init__()
        self.effective, self.context, self.vocabulary = effective, context, file.vocabulary
        self._weights, self._file = weights, file
        self._wants_alike = True
        weights.enter()
        module = weights.module
        self._value = module.OrtValue.ortvalue_from_numpy
        self._binding: Any = weights.session.io_binding()
        # Memory that is never written is never taken, so a long context costs nothing before it is used.
        shape = (1, file.cache_heads, context + SPARE, file.cache_width)
        self._number: type[np.float32 | np.int8] = np.float32 if file.cache_bytes == FLOAT_BYTES else np.int8
        self._cache: dict[str, NDArray[Any]] = {}
        self._bound: list[Any] = []
        for layer in range(file.layers):
            for part in ("key", "value"):
                memory = self._cache[f"{layer}.{part}"] = np.empty(shape, self._number)
                value = self._bind_input(f"past.{layer}.{part}", memory)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._ids = np.zeros((1, CHUNK), np.int32)
        self._first, self._last, self._total = np.zeros((), np.int32), np.zeros(1, np.int32), np.zeros((), np.int32)
        self._wanted_from, self._spare = np.zeros(1, np.int64), np.zeros(6, np.int64)
        self._logits = np.empty((1, MOST_VERIFIED, file.vocabulary), np.float32)
        self._bind_input("first", self._first)
        self._bind_input("last", self._last)
        self._bind_input("total", self._total)
        self._bind_input("wanted_from", self._wanted_from)
        if file.cache_bytes == FLOAT_BYTES:
            self._bind_input("spare", self._spare)
        self._ids_of: dict[int, Any] = {}
        self._logits_of: dict[int, Any] = {}
        self._bound_tokens = self._bound_rows = 0

    def _bind_input(self, name: str, array: NDArray[Any]) -> Any:
        value = self._value(array)
        self._bound.append(value)
        self._binding.bind_ortvalue_input(name, value)
        return value

    @property
    def verifies_alike(self) -> bool:
        """See DecoderSession; found out by trying at the first question, with four short runs.

        May be set to False: steps then take a few hundredths less time (a quarter at 1,000 tokens), and give other
        last bits than ``verify``.
        """
        if self._wants_alike and self._weights.alike is None:
            self._check_open()
            # With an int8 cache and a thread to spare, one token's attention is divided along the text.
            divided = self._file.cache_bytes != FLOAT_BYTES and self.effective.threads > self._file.heads
            self._weights.alike = self._file.precision != "fp32" and not divided and self._tried()
        return self._wants_alike and self._weights.alike is True

    @verifies_alike.setter
    def verifies_alike(self, wanted: bool) -> None:
        self._wants_alike = wanted

    def _tried(self) -> bool:
        """Whether a token among others and the same one alone get equal logits in a session of its own."""
        most = min(_TRIED_TOKENS, self._file.context)
        tokens = np.arange(most, dtype=np.int32) % self.vocabulary
        trial = OnnxRuntimeDecoder(self._weights, self._file, most, self.effective)
        try:
            whole = trial.verify(tokens)
            for count in range(1, min(4, most)):
                trial.rewind(most - count)
                alone = trial.verify(tokens[-count:])
                if not np.array_equal(alone, whole[-count:]):
                    return False
        finally:
            trial.close()
        return True

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        count, rows = len(tokens), max(1, wanted)
        self._ids[0, :count] = tokens
        spare = SPARE if count == 1 and self._takes_spare() else 0
        total = self._length + count + spare
        self._first[()] = self._length
        self._last[0] = total - 1
        self._total[()] = total
        self._spare[4] = spare
        self._wanted_from[0] = count - rows
        if count != self._bound_tokens:
            if count not in self._ids_of:
                self._ids_of[count] = self._value(self._ids[:, :count])
            self._binding.bind_ortvalue_input("input_ids", self._ids_of[count])
            self._bound_tokens = count
        if rows != self._bound_rows:
            if rows not in self._logits_of:
                self._logits_of[rows] = self._value(self._logits[:, :rows])
            self._binding.bind_ortvalue_output("logits", self._logits_of[rows])
            self._bound_rows = rows
        try:
            self._weights.session.run_with_iobinding(self._binding)
        except Exception as error:  # the engine's classes share no root of their own
            raise EngineError(f"ONNX Runtime failed while running: {_first_line(error)}") from error
        return self._logits[0, rows - wanted : rows].copy()

    def _takes_spare(self) -> bool:
        """Whether a step of one token brings a spare row along."""
        # Float products of one row and of several differ, so that a spare row of attention would not help.
        return self._wants_alike and self._file.cache_bytes == FLOAT_BYTES and self._file.precision != "fp32"

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return {name: memory[0, :, : self._length].copy() for name, memory in self._cache.items()}

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        shape = (self._file.cache_heads, length, self._file.cache_width)
        if arrays.keys() != self._cache.keys():
            raise InputError("the saved cache is not of this artifact: it has other layers")
        for name, array in arrays.items():
            if array.shape != shape or array.dtype != self._number:
                raise InputError(
                    f"the saved cache is not of this artifact: {name} is {array.dtype} {list(array.shape)} "
                    f"instead of {np.dtype(self._number)} {list(shape)}"
                )
        for name, array in arrays.items():
            self._cache[name][0, :, :length] = array

    def _forked(self) -> OnnxRuntimeDecoder:
        return OnnxRuntimeDecoder(self._weights, self._file, self.context, self.effective)

    def _free(self) -> None:
        self._binding = None
        self._bound.clear()
        self._ids_of.clear()
        self._logits_of.clear()
        self._cache.clear()
        self._logits = np.empty((1, 0, 0), np.float32)
        self._weights.leave()


class OnnxRuntimeDecoders:
    """The adapter of ONNX Runtime for decoders."""

    name = NAME

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> DecoderSession:
        """See :class:`~edgescribe.runtimes.decoder_contract.DecoderRuntime`."""
        threads = thread_count(options.threads)
        file = read_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        check_memory(_memory(file, context), options.memory_limit, context, artifact)
        module = engine()
        if options.device != "cpu":
            providers = ", ".join(module.get_available_providers())
            raise EngineError(
                f"the runtime onnxruntime has no device {options.device!r}: it runs on the CPU here "
                f"(providers of this build: {providers}); ask for device 'cpu', or take the runtime openvino for an NPU"
            )
        session = _open(module, artifact, threads, options.spinning)
        release_read_pages(data_file(artifact))
        decoder = OnnxRuntimeDecoder(SharedWeights(module, session), file, context, _effective(module, session))
        try:
            check_answers(decoder, tuple(options.answers), artifact)
        except BaseException:
            decoder.close()
            raise
        return decoder

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """See :class:`~edgescribe.runtimes.decoder_contract.DecoderRuntime`."""
        file = read_decoder_file(artifact)
        return _memory(file, checked_context(context, file.context, artifact))


DECODER = OnnxRuntimeDecoders()


def _memory(file: DecoderFile, context: int) -> DecoderMemory:
    # The engine's arena keeps up to twice of what the largest chunk's tensors take at a time.
    scratch = 8 * CHUNK * (6 * file.hidden + 3 * file.neurons) + 8 * file.vocabulary
    return DecoderMemory(file.weight_bytes, (context + SPARE) * file.token_bytes, scratch, ENGINE_BYTES)


def _open(module: Any, artifact: Path, threads: int, spinning: bool) -> Any:
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    # What fails is raised as well, so its log line would say it twice.
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    try:
        return module.InferenceSession(
            str(artifact), options, providers=[PROVIDER], enable_fallback=0, read_config_from_model=0
        )
    except Exception as error:  # the engine's classes share no root of their own
        if type(error).__name__ in _DAMAGED:
            raise BundleError(
                f"{artifact} is not a readable ONNX file: {_first_line(error)}; copy the bundle anew"
            ) from error
        raise EngineError(f"ONNX Runtime {module.__version__} refuses {artifact}: {_first_line(error)}") from error


def _effective(module: Any, session: Any) -> Effective:
    providers = session.get_providers()
    if providers != [PROVIDER]:
        raise EngineError(f"ONNX Runtime took the providers {', '.join(providers)} instead of {PROVIDER}")
    return Effective(
        runtime=NAME,
        engine="onnxruntime",
        engine_version=module.__version__,
        device="cpu",
        provider=PROVIDER,
        precision="float32",
        threads=session.get_session_options().intra_op_num_threads,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
