"""Decoders in OpenVINO: ``.xml`` files with their ``.bin``, on the CPU or an NPU.

On x86-64 sessions hold their keys and values in blocks (:mod:`~edgescribe.runtimes.openvino_decoder_caches`), in
float16, or float32 where weights are: the plugin's own choice, int8, rounds a block's keys anew with each token, so
that a token's logits would depend on the way to it.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError
from .checked_decoder import CheckedDecoder, check_answers, check_memory, checked_context
from .code_pages import release_code
from .contract import Effective
from .decoder_contract import DecoderMemory, DecoderOptions
from .mapped_weights import handing_back
from .openvino import NAME, _config, _device, _effective, _last_line, _version, engine
from .openvino_decoder_caches import BLOCK, DecoderCache, GrowingCache, PagedCache
from .openvino_decoder_file import DecoderFile, read_decoder_file
from .openvino_decoder_memory import memory_of, widens_weights
from .spare_memory import release_freed
from .threads import thread_count

CHUNK = 128
"""Tokens of one run of prefill."""

MOST_VERIFIED = 16

TRIED_TOKENS = 24
"""Tokens of the texts by which a session finds out whether it verifies alike."""

WHOLE_ROWS = str(2**64 - 1)
"""Activations rounded to int8 by whole rows: what the CPU plugin's integer products on Arm need (KleidiAI, cores with
dot products). Without it they run on weights that were widened to float32."""

_REFUSALS = (RuntimeError, UnicodeDecodeError)


class OpenVinoDecoder(CheckedDecoder):
    """A decoder opened in OpenVINO; see :class:`~edgescribe.runtimes.decoder_contract.DecoderSession`.

    Args:
        new_cache: makes an empty cache on the weights; called again for each fork.
        mapped: files whose pages are let go of while many tokens are read: for a number of rows that is new to it, the
            engine looks through weights that it packed long ago.
    """

    most_verified = MOST_VERIFIED
    chunk = CHUNK

    def __init__(
        self,
        new_cache: Callable[[], DecoderCache],
        file: DecoderFile,
        context: int,
        effective: Effective,
        mapped: Sequence[Path] = (),
    ) -> None:
        super().__init__()
        self._mapped = mapped
        self._counts: set[int] = set()  # of tokens that runs had
        self.effective, self.context, self.vocabulary = effective, context, file.vocabulary
        self._file = file
        self._new_cache: Callable[[], DecoderCache] | None = new_cache
        self._cache: DecoderCache | None = new_cache()
        self._wants_alike = True
        self._alike: bool | None = None if self._cache.can_be_alike else False

    @property
    def verifies_alike(self) -> bool:
        """See DecoderSession; found out by trying at the first question, with a few short runs.

        May be set to False: steps then take a twentieth less time, a quarter at 1,800 tokens, and give other last bits
        than ``verify``.
        """
        if self._wants_alike and self._alike is None:
            self._alike = self._tried()
        return self._wants_alike and self._alike is True

    @verifies_alike.setter
    def verifies_alike(self, wanted: bool) -> None:
        self._wants_alike = wanted

    def _tried(self) -> bool:
        """Whether tokens alone, by threes and all at once get equal logits in a cache of their own."""
        most = min(TRIED_TOKENS, self.context)
        tokens = np.arange(most, dtype=np.int32) % self.vocabulary
        trial = self._forked()
        try:
            trial.prefill(tokens)
            last = most - most // 2
            runs = []
            for count in (1, 3, most // 2):
                trial.rewind(last)
                parts = [tokens[at : min(at + count, most)] for at in range(last, most, max(1, count))]
                runs.append([trial.verify(part) for part in parts])
        finally:
            trial.close()
        return all(np.array_equal(np.concatenate(run), np.concatenate(runs[0])) for run in runs if run)

    def _run(self, tokens: NDArray[np.int32], wanted: int) -> NDArray[np.float32]:
        cache, count = self._open_cache(), len(tokens)
        if count <= MOST_VERIFIED and count in self._counts:
            return cache.run(tokens, self._length, wanted, self._wants_alike)
        self._counts.add(count)
        self._counts.discard(1)  # the next step looks through the weights again
        with handing_back(self._mapped):
            return cache.run(tokens, self._length, wanted, self._wants_alike)

    def _step(self, token: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        tokens, cache = np.array([token], np.int32), self._open_cache()
        if 1 in self._counts:
            return self._only(cache.run(tokens, self._length, 1, self._wants_alike, out))
        self._counts.add(1)
        with handing_back(self._mapped):
            return self._only(cache.run(tokens, self._length, 1, self._wants_alike, out))

    def _read_cache(self) -> dict[str, NDArray[np.generic]]:
        return self._open_cache().read(self._length)

    def _write_cache(self, arrays: dict[str, NDArray[np.generic]], length: int) -> None:
        self._open_cache().write(arrays, length)

    def _forked(self) -> OpenVinoDecoder:
        if self._new_cache is None:
            raise EngineError("this session was closed; open the artifact again")
        other = OpenVinoDecoder(self._new_cache, self._file, self.context, self.effective, self._mapped)
        other._wants_alike, other._alike = self._wants_alike, self._alike
        return other

    def _free(self) -> None:
        self._open_cache().free()
        self._cache = self._new_cache = None

    def _open_cache(self) -> DecoderCache:
        if self._cache is None:
            raise EngineError("this session was closed; open the artifact again")
        return self._cache


class OpenVinoDecoders:
    """The adapter of OpenVINO for decoders. ``paged``: whether sessions hold their cache in blocks; None: as the
    processor allows."""

    name = NAME

    def __init__(self, paged: bool | None = None) -> None:
        self._paged = paged

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> OpenVinoDecoder:
        """Compile an ``.xml`` file for the CPU or the NPU; see DecoderRuntime.

        ``options.cache_dir`` keeps the compiled model where the cache is not paged: the engine cannot read a model
        with ``PagedAttention`` back. ``options.spinning`` changes nothing: OpenVINO's threads are TBB's, which decide
        that themselves.
        """
        threads = thread_count(options.threads)
        file = read_decoder_file(artifact)
        context = checked_context(options.context, file.context, artifact)
        check_memory(_memory(file, context), options.memory_limit, context, artifact)
        module = engine()
        core = module.Core()
        device = _device(core, options.device)
        paged = device == "CPU" and (_has_paged_attention() if self._paged is None else self._paged)
        config = _config(device, threads, None if paged else options.cache_dir)
        if device == "CPU":
            config["KV_CACHE_PRECISION"] = f"f{file.cache_bits}"
            if _is_arm() and file.precision != "fp32":
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = WHOLE_ROWS
        weights = [artifact.with_suffix(".bin"), *([options.cache_dir] if options.cache_dir else [])]
        with handing_back(weights):
            compiled = _compile(module, core, artifact, device, config, paged)
            release_freed()
            release_code(Path(module.__file__).parent)  # what read and compiled the model
            effective = _effective(module, compiled, threads)
            if effective.device != options.device:
                raise EngineError(f"OpenVINO runs {artifact} on {effective.provider} instead of {device}")

            def new_cache() -> DecoderCache:
                if paged:
                    return PagedCache(module, compiled, file, context, effective.threads)
                return GrowingCache(module, compiled, file)

            session = OpenVinoDecoder(new_cache, file, context, effective, weights)
            try:
                session.step(0)  # the engine packs the weights in its first run
                session.rewind(0)
                check_answers(session, tuple(options.answers), artifact)
            except BaseException:
                session.close()
                raise
        release_freed()
        release_code(Path(module.__file__).parent)  # what packed the weights
        return session

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """See DecoderRuntime."""
        file = read_decoder_file(artifact)
        return _memory(file, checked_context(context, file.context, artifact))


DECODER = OpenVinoDecoders()


def _has_paged_attention() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def _compile(module: Any, core: Any, artifact: Path, device: str, config: dict[str, Any], paged: bool) -> Any:
    try:
        if not paged:
            return core.compile_model(str(artifact), device, config)
        model = core.read_model(str(artifact))
    except _REFUSALS as error:
        raise BundleError(
            f"{artifact} with its .bin is not a readable OpenVINO model: {_last_line(error)}; copy the bundle anew"
        ) from error
    try:
        transformations = importlib.import_module("openvino._offline_transformations")
        transformations.paged_attention_transformation(model)
        return core.compile_model(model, device, config)
    except (*_REFUSALS, ImportError, AttributeError) as error:
        raise EngineError(f"OpenVINO {_version(module)} refuses {artifact}: {_last_line(error)}") from error



def _memory(file: DecoderFile, context: int) -> DecoderMemory:
    whole = -(-context // BLOCK) * BLOCK
    return memory_of(file, whole, CHUNK, MOST_VERIFIED, widens_weights())
