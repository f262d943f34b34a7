"""LiteRT on the CPU: opens ``.tflite`` files that hold one signature per token count.

LiteRT's shapes are fixed, so an artifact has signatures ``tokens_<T>`` of batch 1 for some token counts, the
*buckets*. A session takes any batch and any token count up to the largest bucket: it runs row by row, each row
without its padding in the smallest bucket that it fits, and puts the results together.
See :mod:`.litert_interpreters` for what that costs in memory.

``ai_edge_litert`` is used where it is installed, else ``tflite_runtime``, its predecessor. The latter computes
products of float activations with integer weights as zeros, without an error: such files are refused there.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, InputError, MissingExtraError
from .artifact_file import check_artifact_file
from .code_pages import release_code
from .contract import Availability, Effective, Feeds, KnownAnswer, OpenOptions, Outputs, TensorSpec
from .feeds import checked_feeds
from .known_answers import check_known_answers
from .litert_interpreters import BucketInterpreters
from .tflite_file import (
    FLOAT32,
    INT32,
    TfliteSignature,
    float_activation_products,
    read_operators,
    read_signatures,
    small_or_blockwise_tensors,
)
from .threads import thread_count
from .token_padding import TokenPadding, token_outputs

NAME = "litert"
PREFERRED, FALLBACK = "ai_edge_litert", "tflite_runtime"
MASK = "attention_mask"
_SIGNATURE = re.compile(r"tokens_([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Engine:
    """The package that is used, its version, and its ``interpreter`` module."""

    package: str
    version: str
    interpreter: Any


def engine() -> Engine:
    """``ai_edge_litert``, or ``tflite_runtime`` where only that is installed.

    Raises:
        MissingExtraError: neither is installed.
        EngineError: one is installed and cannot be imported.
    """
    for package in (PREFERRED, FALLBACK):
        try:
            module = importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if error.name == package:
                continue
            raise EngineError(f"{package} cannot be imported: {error}; install it anew") from error
        except (ImportError, AttributeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            advice = "it needs numpy below 2" if package == FALLBACK else "install it anew"
            raise EngineError(f"{package} cannot be imported: {reason}; {advice}") from error
        return Engine(package, str(importlib.import_module(package).__version__), module)
    raise MissingExtraError("ai-edge-litert", NAME)


class LiteRtSession:
    """A ``.tflite`` file opened in LiteRT; see :class:`~edgescribe.runtimes.contract.GraphSession`.

    Attributes:
        buckets: the artifact's token counts, ascending. Longer rows are an InputError.
    """

    def __init__(self, found: Engine, artifact: Path, threads: int, left: bool) -> None:
        signatures = _bucket_signatures(artifact)
        self.buckets = tuple(sorted(signatures))
        self.inputs, self.outputs = _specs(artifact, {bucket: s for bucket, (_, s) in signatures.items()})
        self._with_tokens = token_outputs(self.outputs)
        self._artifact, self._left = artifact, left
        self._lock = threading.Lock()
        self._closed = False
        self._interpreters = BucketInterpreters(found.interpreter.Interpreter, artifact, signatures, threads)
        self.effective = Effective(NAME, found.package, found.version, "cpu", "", "float32", threads)

    def run(self, feeds: Feeds) -> Outputs:
        """Run each row in its bucket. Threads take turns.

        Where an output has a token axis, its elements for padding are 0.
        """
        checked = checked_feeds(feeds, self.inputs)
        batch, tokens = next(iter(checked.values())).shape
        spans = [self._span(checked, row, tokens) for row in range(batch)]
        outputs: Outputs = {}
        for row, (start, stop) in enumerate(spans):
            fed = {name: array[row : row + 1, start:stop] for name, array in checked.items()}
            for name, value in self._run_row(fed, stop - start).items():
                if name in self._with_tokens:
                    whole = outputs.setdefault(name, np.zeros((batch, tokens, *value.shape[2:]), np.float32))
                    whole[row, start:stop] = value[0]
                else:
                    outputs.setdefault(name, np.zeros((batch, *value.shape[1:]), np.float32))[row] = value[0]
        return outputs

    def check(self, answers: Sequence[KnownAnswer]) -> None:
        """Run the engine for the first time, on the known answers or on one token, and keep one bucket in memory.

        Raises:
            WrongAnswerError: a known answer came out wrong.
            EngineError: the engine cannot run the file.
            BundleError: a known answer is of another artifact.
        """
        with self._interpreters.one_at_a_time():
            check_known_answers(self, answers, self._artifact)
            if not answers:
                self.run({spec.name: np.ones((1, 1), np.int32) for spec in self.inputs})
        self.effective = replace(self.effective, provider=self._interpreters.provider)

    def close(self) -> None:
        """Let go of the engine's interpreters, after the call under way if there is one."""
        with self._lock:
            self._closed = True
            self._interpreters.close()

    def _span(self, feeds: Mapping[str, NDArray[np.int32]], row: int, tokens: int) -> tuple[int, int]:
        """The row's tokens without the padding on its padding side; at least one."""
        kept = np.flatnonzero(feeds[MASK][row]) if MASK in feeds else np.arange(tokens)
        if self._left:
            start, stop = (int(kept[0]) if kept.size else tokens - 1), tokens
        else:
            start, stop = 0, (int(kept[-1]) + 1 if kept.size else 1)
        if stop - start > self.buckets[-1]:
            raise InputError(
                f"row {row} has {stop - start} tokens; the artifact takes at most {self.buckets[-1]}: "
                "truncate the text to the bundle's limit"
            )
        return start, stop

    def _run_row(self, fed: Mapping[str, NDArray[np.int32]], length: int) -> Outputs:
        bucket = next(size for size in self.buckets if size >= length)
        padding = TokenPadding(length, bucket, self._left)
        padded = {name: padding.add(array) for name, array in fed.items()}
        with self._lock:
            if self._closed:
                raise EngineError("this session was closed; open the artifact again")
            try:
                self._interpreters.prepare(bucket)
            except (RuntimeError, ValueError) as error:
                used = f"{self.effective.engine} {self.effective.engine_version}"
                raise EngineError(f"{used} refuses {self._artifact}: {_one_line(error)}") from error
            try:
                results = self._interpreters.run(bucket, padded)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"LiteRT refuses the feeds: {_one_line(error)}") from error
        return {name: padding.remove(v) if name in self._with_tokens else v for name, v in results.items()}


class LiteRtRuntime:
    """The adapter of LiteRT."""

    name = NAME
    extra = NAME

    def availability(self) -> Availability:
        """Whether LiteRT (or its predecessor) can be imported here."""
        try:
            found = engine()
        except EngineError as error:
            return Availability(NAME, False, PREFERRED, "", (), str(error))
        return Availability(NAME, True, found.package, found.version, ("cpu",), "")

    def open(self, artifact: Path, options: OpenOptions) -> LiteRtSession:
        """Open a ``.tflite`` file on the CPU.

        ``options.cache_dir`` has nothing to keep here (the interpreter offers no cache), ``options.spinning``
        changes nothing: LiteRT's threads decide that themselves.

        Raises:
            MissingExtraError: LiteRT is not installed.
            EngineError: a device other than the CPU was asked for, the engine refuses the file, or it is one
                that ``tflite_runtime`` is known to compute wrongly.
            WrongAnswerError: it miscomputes a known answer.
            BundleError: the file is missing, damaged, not LiteRT's, or has no signatures ``tokens_<T>``.
        """
        threads = thread_count(options.threads)
        found = engine()
        if options.device != "cpu":
            raise EngineError(
                f"the runtime litert has no device {options.device!r}: {found.package} runs on the CPU here; "
                "ask for device 'cpu', or take the runtime openvino for an NPU"
            )
        check_artifact_file(artifact, ".tflite", "LiteRT")
        if found.package == FALLBACK:
            _refuse_miscomputed(artifact, found)
        libraries = Path(found.interpreter.__file__).parent
        release_code(libraries)  # what ran when the engine was imported
        session = LiteRtSession(found, artifact, threads, options.padding_side == "left")
        session.check(options.known_answers)
        release_code(libraries)  # what opened the file
        return session


RUNTIME = LiteRtRuntime()


def _refuse_miscomputed(artifact: Path, found: Engine) -> None:
    operators = read_operators(artifact)
    wrong = float_activation_products(operators) + small_or_blockwise_tensors(operators)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise EngineError(
            f"{artifact} multiplies float activations by integer weights or holds int4 weights ({wrong[0]}{more}); "
            f"tflite_runtime {found.version} gives zeros for that without an error, so it was not opened: "
            "take the bundle's w8a8-static artifact, or install ai-edge-litert with pip install 'edgescribe[litert]'"
        )


def _bucket_signatures(artifact: Path) -> dict[int, tuple[str, TfliteSignature]]:
    """Signatures by token count, with their names."""
    matches = [(_SIGNATURE.fullmatch(key), signature) for key, signature in read_signatures(artifact).items()]
    found = {int(match[1]): (match[0], signature) for match, signature in matches if match}
    if not found:
        raise BundleError(f"{artifact} has no signature named tokens_<T>; make the bundle anew")
    return found


def _specs(
    artifact: Path, signatures: Mapping[int, TfliteSignature]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a session takes and gives, whatever the bucket: the batch and token axes are free."""
    first = signatures[min(signatures)]
    for bucket, signature in signatures.items():
        fits = (
            signature.inputs.keys() == first.inputs.keys()
            and signature.outputs.keys() == first.outputs.keys()
            and all(tensor == (INT32, (1, bucket)) for tensor in signature.inputs.values())
            and all(kind == FLOAT32 and shape[:1] == (1,) for kind, shape in signature.outputs.values())
        )
        if not fits or not first.inputs:
            raise BundleError(
                f"{artifact}: the signature tokens_{bucket} does not take int32 [1, {bucket}] and give float32 [1, …] "
                "under the names of the others; make the bundle anew"
            )
    inputs = tuple(TensorSpec(name, "int32", (None, None)) for name in first.inputs)
    outputs = []
    for name, (_, shape) in first.outputs.items():
        # Two axes are [1, labels] in an output, even if there happen to be as many labels as tokens.
        tokens = len(shape) > 2 and all(s.outputs[name][1][1:2] == (bucket,) for bucket, s in signatures.items())
        outputs.append(TensorSpec(name, "float32", (None, None, *shape[2:]) if tokens else (None, *shape[1:])))
    return inputs, tuple(outputs)


def _one_line(error: Exception) -> str:
    # LiteRT adds every message to those of earlier failures.
    return " ".join(str(error).split())[-300:] or type(error).__name__
