"""What every engine's adapter gives for a decoder (a causal language model): a session with its KV cache inside.

A session is one conversation with one opened artifact: it holds the tokens seen so far (``length``) as a KV cache in
the engine's own memory, which never passes through Python while decoding. It is used by one thread at a time; its
forks share weights and may be used from other threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .contract import Effective

Tokens = Sequence[int] | NDArray[np.int32]


@dataclass(frozen=True)
class DecoderAnswer:
    """What an artifact must answer: after prefill of ``prompt``, the logits of ``tokens`` are ``expected``.

    ``prompt`` int32 ``[n]``; ``tokens`` int32 ``[k]`` (the reference's best ones); ``expected`` float32 ``[k]``;
    ``tolerance``: the largest absolute difference allowed, in logits.
    """

    prompt: NDArray[np.int32]
    tokens: NDArray[np.int32]
    expected: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True)
class DecoderOptions:
    """How to open a decoder's artifact.

    Attributes:
        device: what must run it: ``"cpu"`` or ``"npu"``. Never silently replaced.
        threads: intra-operator threads; 0 takes the number of physical cores, at most 4.
        cache_dir: folder for the engine's own compiled-model or packed-weight cache; None turns it off.
        spinning: let waiting threads spin (faster alone on an idle machine, slower on a busy one).
        context: the most tokens the session shall hold, at most the artifact's own limit; None takes that limit.
        memory_limit: bytes that the session may take in all (:meth:`DecoderRuntime.predicted_memory`); None: no limit.
        answers: checked once on open; a wrong answer raises :class:`~edgescribe.errors.WrongAnswerError`.
    """

    device: str = "cpu"
    threads: int = 0
    cache_dir: Path | None = None
    spinning: bool = False
    context: int | None = None
    memory_limit: int | None = None
    answers: Sequence[DecoderAnswer] = field(default=(), repr=False)


@dataclass(frozen=True)
class DecoderMemory:
    """What a session is predicted to take, in bytes: ``weights`` (resident), ``cache`` (all layers' keys and values at
    the context asked for), ``scratch`` (activations of the largest chunk) and ``engine`` (libraries, before any model).
    """

    weights: int
    cache: int
    scratch: int
    engine: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.cache + self.scratch + self.engine


@dataclass(frozen=True)
class CacheState:
    """A copy of a session's KV cache, for keeping on disk: the tokens it stands for, and arrays by name.

    Only a session of the same artifact on the same runtime takes it back.
    """

    tokens: NDArray[np.int32]
    arrays: Mapping[str, NDArray[np.generic]]


@runtime_checkable
class DecoderSession(Protocol):
    """An opened decoder with its KV cache. All logits are float32 arrays that belong to the caller.

    Every method but ``close`` raises :class:`~edgescribe.errors.EngineError` on a closed session or when the engine
    fails, :class:`~edgescribe.errors.InputError` for token ids outside the vocabulary, for no tokens, and for more
    tokens than ``context`` has room for; the session is then as it was before the call.

    Attributes:
        effective: what really runs.
        vocabulary: number of tokens V.
        context: the most tokens that it holds.
        length: tokens in the cache now.
        verifies_alike: whether ``verify`` computes each token's logits bit for bit as ``step`` would, so that
            prompt lookup gives greedy's very text.
        most_verified: the most tokens that one ``verify`` takes.
    """

    effective: Effective
    vocabulary: int
    context: int
    verifies_alike: bool
    most_verified: int

    @property
    def length(self) -> int:
        """Tokens in the cache now."""
        ...

    def prefill(self, tokens: Tokens) -> NDArray[np.float32]:
        """Append tokens, in chunks as suits the engine; the last one's logits ``[V]``."""
        ...

    def step(self, token: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Append one token; its logits ``[V]``, perhaps in ``out`` (float32 ``[V]``), where that is given.

        A row of a large vocabulary is memory that the system hands out anew each time, page by page: who takes many
        steps, and is through with each row before the next, saves that by giving the same array.
        """
        ...

    def verify(self, tokens: Tokens) -> NDArray[np.float32]:
        """Append 1 to ``most_verified`` tokens in one run; the logits of each ``[n, V]``."""
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens behind the first ``length``.

        Raises:
            InputError: ``length`` is negative or more than there are.
        """
        ...

    def fork(self) -> DecoderSession:
        """Another session with a copy of this one's cache and the same weights, which are not loaded again."""
        ...

    def save_cache(self) -> CacheState:
        """A copy of the cache's arrays, cut to ``length``; the caller fills in ``tokens``, which are empty here."""
        ...

    def load_cache(self, state: CacheState) -> None:
        """Replace the cache by a saved one; ``length`` becomes ``len(state.tokens)``.

        Raises:
            InputError: it is not of this artifact (names, dtypes or shapes), or longer than ``context``.
        """
        ...

    def close(self) -> None:
        """Free this session's cache, and the weights with the last session that shares them. Twice is allowed."""
        ...


class DecoderRuntime(Protocol):
    """An engine's adapter for decoders; :mod:`~edgescribe.runtimes.registry` finds it by name."""

    name: str

    def open_decoder(self, artifact: Path, options: DecoderOptions) -> DecoderSession:
        """Open one artifact, after its predicted memory was held against the limit, and check its answers.

        Raises:
            MissingExtraError: the engine is not installed.
            EngineError: the device asked for is not there, or the engine refuses or miscomputes this artifact.
            BundleError: the file is not a decoder artifact of this runtime.
            OverBudgetError: ``memory_limit`` is less than what is predicted.
            UsageError: the context is more than the artifact's limit.
        """
        ...

    def predicted_memory(self, artifact: Path, context: int | None = None) -> DecoderMemory:
        """What a session of ``context`` tokens (None: the artifact's limit) will take, without opening it.

        Raises:
            BundleError: the file is not a decoder artifact of this runtime.
            UsageError: the context is more than the artifact's limit.
        """
        ...
