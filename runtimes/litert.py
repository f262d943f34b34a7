"""LiteRT on the CPU: opens ``.tflite`` files that hold one signature per token count.

LiteRT's shapes are fixed, so an artifact has signatures ``tokens_<T>`` of batch 1 for some token counts, the
*buckets*. A session takes any batch and any token count up to the largest bucket: it runs row by row, each row
without its padding in the smallest bucket that it fits, and puts the results together.

``ai_edge_litert`` is used where it is installed, else ``tflite_runtime``, its predecessor. The latter computes
products of float activations with integer weights as zeros, without an error: such files are refused there.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, InputError, MissingExtraError
from .artifact_file import check_artifact_file
from .contract import Availability, Effective, Feeds, OpenOptions, Outputs, TensorSpec
from .engine_messages import without_info_lines
from .feeds import checked_feeds
from .known_answers import check_known_answers
from .tflite_file import check_tflite, float_activation_products, read_operators, small_or_blockwise_tensors
from .threads import thread_count

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
        return Engine(package, importlib.metadata.version(package), module)
    raise MissingExtraError("ai-edge-litert", NAME)


class LiteRtSession:
    """A ``.tflite`` file opened in LiteRT; see :class:`~edgescribe.runtimes.contract.GraphSession`.

    Attributes:
        buckets: the artifact's token counts, ascending. Longer rows are an InputError.
    """

    def __init__(self, interpreter: Any, effective: Effective, padding_side: str) -> None:
        self.effective = effective
        self._runners = _runners(interpreter)
        self.buckets = tuple(sorted(self._runners))
        self.inputs, self.outputs = _specs(self._runners)
        self._left = padding_side == "left"
        self._lock = threading.Lock()

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
                with_tokens = self._has_tokens(name)
                if name not in outputs:
                    tail = value.shape[2:] if with_tokens else value.shape[1:]
                    outputs[name] = np.zeros((batch, tokens, *tail) if with_tokens else (batch, *tail), np.float32)
                if with_tokens:
                    outputs[name][row, start:stop] = value[0]
                else:
                    outputs[name][row] = value[0]
        return outputs

    def close(self) -> None:
        """Let go of the engine's interpreter, after the call under way if there is one."""
        with self._lock:
            self._runners = {}

    def _span(self, feeds: Mapping[str, NDArray[np.int32]], row: int, tokens: int) -> tuple[int, int]:
        """The row's tokens from the first to the last that the mask keeps; at least one."""
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
        pad = (bucket - length, 0) if self._left else (0, bucket - length)
        padded = {name: np.pad(array, ((0, 0), pad)) for name, array in fed.items()}
        with self._lock:
            if not self._runners:
                raise EngineError("this session was closed; open the artifact again")
            try:
                results = self._runners[bucket](**padded)
            except (RuntimeError, ValueError) as error:
                raise InputError(f"LiteRT refuses the feeds: {_one_line(error)}") from error
        cut = slice(pad[0], bucket - pad[1])
        return {name: value[:, cut] if self._has_tokens(name) else value for name, value in results.items()}

    def _has_tokens(self, name: str) -> bool:
        return any(spec.name == name and len(spec.shape) > 2 and spec.shape[1] is None for spec in self.outputs)


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
        check_tflite(artifact)
        if found.package == FALLBACK:
            _refuse_miscomputed(artifact, found)
        effective = Effective(NAME, found.package, found.version, "cpu", "XNNPACK", "float32", threads)
        try:
            with without_info_lines():
                interpreter = found.interpreter.Interpreter(model_path=str(artifact), num_threads=threads)
                session = LiteRtSession(interpreter, effective, options.padding_side)
                session.run(_one_token(session))
        except BundleError as error:
            raise BundleError(f"{artifact}: {error}") from error
        except (RuntimeError, ValueError, InputError) as error:
            message = f"{found.package} {found.version} refuses {artifact}: {_one_line(error)}"
            raise EngineError(message) from error
        check_known_answers(session, options.known_answers, artifact)
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


def _runners(interpreter: Any) -> dict[int, Any]:
    """Signature runners by token count."""
    runners = {}
    for key in interpreter.get_signature_list():
        match = _SIGNATURE.fullmatch(key)
        if match:
            runners[int(match[1])] = interpreter.get_signature_runner(key)
    if not runners:
        raise BundleError("there is no signature named tokens_<T> in it; make the bundle anew")
    return runners


def _specs(runners: Mapping[int, Any]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a session takes and gives, whatever the bucket: the batch and token axes are free."""
    by_bucket = {bucket: (r.get_input_details(), r.get_output_details()) for bucket, r in sorted(runners.items())}
    first = min(by_bucket)
    found: list[tuple[TensorSpec, ...]] = []
    for side in (0, 1):
        if any(details[side].keys() != by_bucket[first][side].keys() for details in by_bucket.values()):
            raise BundleError("its signatures differ in the names of their inputs or outputs; make the bundle anew")
        specs = []
        for name, detail in by_bucket[first][side].items():
            shapes = {bucket: [int(n) for n in details[side][name]["shape"]] for bucket, details in by_bucket.items()}
            tokens_at_1 = all(len(shape) > 1 and shape[1] == bucket for bucket, shape in shapes.items())
            # Two axes are [1, labels] in an output, even if there happen to be as many labels as tokens.
            free = tokens_at_1 and (side == 0 or len(shapes[first]) > 2)
            rest = tuple(shapes[first][1:])
            shape = (None, None, *rest[1:]) if free else (None, *rest)
            specs.append(TensorSpec(name, np.dtype(detail["dtype"]).name, shape))
        found.append(tuple(specs))
    return found[0], found[1]


def _one_token(session: LiteRtSession) -> dict[str, NDArray[np.int32]]:
    """Feeds that make the engine build its kernels now, while its announcements are held back."""
    return {spec.name: np.ones((1, 1), np.int32) for spec in session.inputs}


def _one_line(error: Exception) -> str:
    # LiteRT adds every message to those of earlier failures.
    return " ".join(str(error).split())[-300:] or type(error).__name__
