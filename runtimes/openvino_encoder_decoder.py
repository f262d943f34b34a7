"""Encoder-decoders in OpenVINO: two models over one file of weights, on the CPU or an NPU.

A source is read by a request of its own, whose outputs are bound to the inputs of the decoder's requests: the engine
reads keys and values where it wrote them. The target's cache is in state variables, as float32: a target is short, and
copies of it are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, InputError
from .checked_decoder import check_memory, checked_context
from .checked_encoder_decoder import CheckedEncoderDecoder, check_source_answers
from .code_pages import release_code
from .contract import Effective
from .decoder_contract import DecoderMemory
from .encoder_decoder_contract import EncoderDecoderOptions
from .mapped_weights import handing_back
from .openvino import NAME, _config, _device, _effective, _last_line, _version, engine
from .openvino_decoder import CHUNK, MOST_VERIFIED, WHOLE_ROWS, _is_arm
from .openvino_decoder_memory import widens_weights
from .openvino_encoder_decoder_caches import Source, TargetCache
from .openvino_encoder_decoder_file import EncoderDecoderFile, files_of, read_encoder_decoder_file
from .openvino_encoder_decoder_memory import memory_of
from .spare_memory import release_freed
from .threads import thread_count

TRIED_TOKENS = 24
"""Tokens of the text by which a session finds out whether it verifies alike."""

_REFUSALS = (RuntimeError, UnicodeDecodeError)


@dataclass(frozen=True)
class Engine:
    """What all forks share: the compiled models, and what they are."""

    module: Any
    reading: Any
    writing: Any
    file: EncoderDecoderFile
    effective: Effective


class OpenVinoEncoderDecoder(CheckedEncoderDecoder):
    """An encoder-decoder in OpenVINO; see
    :class:`~edgescribe.runtimes.encoder_decoder_contract.EncoderDecoderSession`."""

    most_verified = MOST_VERIFIED
    chunk = CHUNK

    def __init__(self, engine: Engine, context: int, source_context: int) -> None:
        super().__init__()
        self.effective, self.vocabulary = engine.effective, engine.file.vocabulary
        self.context, self.source_context = context, source_context
        self._engine: Engine | None = engine
        self._source: Source | None = None
        self._tensors: dict[str, Any] = {}
        self._cache: TargetCache | None = TargetCache(
            engine.module, engine.writing, engine.file, engine.effective.threads
        )
        self._wants_alike = True
        self._alike: bool | None = None if self._cache.can_be_alike else False

    @property
    def verifies_alike(self) -> bool:
        """See DecoderSession; found out by trying at the first question, with a few short runs. May be set to False."""
        if self._wants_alike and self._alike is None:
            self._alike = self._tried()
        return self._wants_alike and self._alike is True

    @verifies_alike.setter
    def verifies_alike(self, wanted: bool) -> None:
        self._wants_alike = wanted

    def _tried(self) -> bool:
        """Whether tokens alone, by threes and all at once get equal logits about a source and in a cache of their
        own."""
        most = min(TRIED_TOKENS, self.context)
        tokens = np.arange(most, dtype=np.int32) % self.vocabulary
        trial = self._forked()
        try:
            trial.read(tokens[: self.source_context])
            runs = []
            for count in (1, 3, min(most, MOST_VERIFIED)):
                trial.rewind(0)
                parts = [tokens[at : at + count] for at in range(0, most, count)]
                runs.append(np.concatenate([trial.verify(part) for part in parts]))
        finally:
            trial.close()
        return all(np.array_equal(run, runs[0]) for run in runs)

    def _read(self, tokens: NDArray[np.int32]) -> None:
        opened, cache = self._open()
        if self._source is None or self._source.is_shared:
            self._leave_source()
            self._source = Source(opened.module, opened.reading, opened.file.source_context)
        self._tensors = self._source.read(tokens)
        cache.bind_source(self._tensors)
        # Many short-lived arrays lay between the kernels that stay: over a long text, some 15 MB of nothing.
        release_freed()

    def _take(self, other: CheckedEncoderDecoder) -> None:
        opened, cache = self._open()
        if not isinstance(other, OpenVinoEncoderDecoder) or other._engine is not opened or other._cache is None:
            raise InputError("a session takes the state of its own forks alone, and this is none of them")
        if other._source is not self._source:
            self._leave_source()
            if other._source is not None:
                self._source, self._tensors = other._source.shared(), other._tensors
                cache.bind_source(self._tensors)
        cache.take(other._cache, other._length)

    def _leave_source(self) -> None:
        if self._source is not None:
            self._source.leave()
        self._source, self._tensors = None, {}

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        return self._open()[1].run(tokens, self._length, wanted, self._wants_alike)

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._open()[1].read(self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        self._open()[1].write(arrays, length)

    def _forked(self) -> OpenVinoEncoderDecoder:
        other = OpenVinoEncoderDecoder(self._open()[0], self.context, self.source_context)
        other._wants_alike, other._alike = self._wants_alike, self._alike
        return other

    def _free(self) -> None:
        self._open()[1].free()
        self._leave_source()
        self._cache = self._engine = None

    def _open(self) -> tuple[Engine, TargetCache]:
        if self._engine is None or self._cache is None:
            raise EngineError("this session was closed; open the artifact again")
        return self._engine, self._cache


class OpenVinoEncoderDecoders:
    """The adapter of OpenVINO for encoder-decoders."""

    name = NAME

    def open_encoder_decoder(self, artifact: Path, options: EncoderDecoderOptions) -> OpenVinoEncoderDecoder:
        """Compile an artifact's models for the CPU or the NPU; see EncoderDecoderRuntime.

        ``options.cache_dir`` keeps the compiled models. ``options.spinning`` changes nothing: OpenVINO's threads are
        TBB's, which decide that themselves.
        """
        threads = thread_count(options.threads)
        file = read_encoder_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        source_context = checked_context(options.source_context, file.source_context, artifact)
        check_memory(_memory(file, context, source_context), options.memory_limit, context, artifact)
        module = engine()
        core = module.Core()
        device = _device(core, options.device)
        config = _config(device, threads, options.cache_dir)
        if device == "CPU":
            config["KV_CACHE_PRECISION"] = "f32"
            if _is_arm() and file.precision != "fp32":
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = WHOLE_ROWS
        writing, reading, stored = files_of(artifact)
        with handing_back([stored, *([options.cache_dir] if options.cache_dir else [])]):
            compiled = [_compile(module, core, each, stored, device, config) for each in (reading, writing)]
            _check_inputs(compiled[0], {"source_ids", "source_length", "source_room"}, reading)
            _check_inputs(compiled[1], {"input_ids", "position_ids", "wanted", "beam_idx", "source.mask"}, writing)
            effective = _effective(module, compiled[1], threads)
            if effective.device != options.device:
                raise EngineError(f"OpenVINO runs {artifact} on {effective.provider} instead of {device}")
            session = OpenVinoEncoderDecoder(
                Engine(module, compiled[0], compiled[1], file, effective), context, source_context
            )
            try:
                session.read([0])  # the engine packs the weights in its first run
                session.step(0)
                check_source_answers(session, tuple(options.source_answers), artifact)
            except BaseException:
                session.close()
                raise
        release_code(Path(module.__file__).parent)  # what read and compiled the models
        return session

    def predicted_memory(
        self, artifact: Path, context: int | None = None, source_context: int | None = None
    ) -> DecoderMemory:
        """See EncoderDecoderRuntime."""
        file = read_encoder_decoder_file(artifact)
        return _memory(
            file,
            checked_context(context, file.context, artifact),
            checked_context(source_context, file.source_context, artifact),
        )


ENCODER_DECODER = OpenVinoEncoderDecoders()


def _compile(module: Any, core: Any, artifact: Path, stored: Path, device: str, config: dict[str, Any]) -> Any:
    try:
        model = core.read_model(str(artifact), str(stored))
    except _REFUSALS as error:
        raise BundleError(
            f"{artifact} with {stored.name} is not a readable OpenVINO model: {_last_line(error)}; copy the bundle anew"
        ) from error
    try:
        return core.compile_model(model, device, config)
    except _REFUSALS as error:
        raise EngineError(f"OpenVINO {_version(module)} refuses {artifact}: {_last_line(error)}") from error


def _check_inputs(compiled: Any, wanted: set[str], artifact: Path) -> None:
    found = {name for port in compiled.inputs for name in port.get_names()}
    if not wanted <= found:
        missing = ", ".join(sorted(wanted - found))
        raise BundleError(f"{artifact} has no inputs {missing}; copy the bundle anew, or convert the student anew")


def _memory(file: EncoderDecoderFile, context: int, source_context: int) -> DecoderMemory:
    return memory_of(file, context, source_context, CHUNK, MOST_VERIFIED, widens_weights())
