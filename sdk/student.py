"""A student at work: texts in, typed results out, whatever the engine underneath."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, WrongAnswerError
from ..runtimes.contract import Effective, GraphSession
from .bundle import Bundle
from .manifest import ArtifactEntry
from .tags import Tag, Tags, are_entity_labels, join_entities, word_tags
from .tokenizer import TokenizedText, Tokenizer, check_texts

__all__ = ["Classification", "Student", "StudentInfo", "Tag", "Tags"]

BATCH_SIZE = 16
_BATCHES_AT_ONCE = 8  # texts are tokenized and sorted by length this many batches at a time: bounds memory

Texts: TypeAlias = list[str] | tuple[str, ...]
"""Several texts; any other iterable of str works too."""


@dataclass(frozen=True, slots=True)
class Classification:
    """What a text was classified as.

    Attributes:
        label: the likeliest label.
        score: its softmax probability.
        scores: softmax probability by label, in the order of the student's labels; with ``top_k``, the likeliest
            ones, best first.
        truncated: the text was longer than the student reads, and its end was left out.
    """

    label: str
    score: float
    scores: dict[str, float]
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class StudentInfo:
    """What is loaded: the bundle's name and folder, what it does, and which artifact runs.

    ``max_tokens``: longest input, special tokens included; ``disk_mib``: the artifact with its tokenizer.
    """

    name: str
    folder: Path
    family: str
    task: str
    labels: tuple[str, ...]
    max_tokens: int
    runtime: str
    precision: str
    disk_mib: float


class Student:
    """An opened student. Made by :func:`edgescribe.load`; safe to use from several threads at once.

    Use it as a context manager, or call :meth:`close`, to free the engine's memory.
    """

    def __init__(self, bundle: Bundle, artifact: ArtifactEntry, session: GraphSession) -> None:
        self._session: GraphSession | None = session
        self._tokenizer = bundle.tokenizer
        self._labels = bundle.manifest.labels
        self._entities = are_entity_labels(self._labels)
        self._input_names = [tensor.name for tensor in artifact.inputs]
        self._output = artifact.outputs[0]
        self._effective = session.effective
        self._info = StudentInfo(
            name=bundle.manifest.name,
            folder=bundle.folder,
            family=bundle.manifest.family,
            task=bundle.manifest.task,
            labels=bundle.manifest.labels,
            max_tokens=bundle.manifest.tokenizer.max_tokens,
            runtime=artifact.runtime,
            precision=artifact.precision,
            disk_mib=bundle.artifact_mib(artifact),
        )

    @property
    def info(self) -> StudentInfo:
        """What is loaded."""
        return self._info

    @property
    def effective(self) -> Effective:
        """What the engine really uses: its version, device, precision and threads."""
        return self._effective

    @property
    def tokenizer(self) -> Tokenizer:
        """The student's tokenizer."""
        return self._tokenizer

    @overload
    def classify(self, text: str, top_k: int | None = None, *, batch_size: int = ...) -> Classification: ...
    @overload
    def classify(self, text: Texts, top_k: int | None = None, *, batch_size: int = ...) -> list[Classification]: ...
    def classify(
        self, text: str | Texts, top_k: int | None = None, *, batch_size: int = BATCH_SIZE
    ) -> Classification | list[Classification]:
        """Classify one text, or each of a list in its order.

        Args:
            text: a text or a list of them; the end of one that is too long is left out (``truncated``).
            top_k: how many labels ``scores`` is to hold; None for all.
            batch_size: texts run at once.

        Raises:
            UsageError: the student does not classify, is closed, or an option is out of range.
            InputError: something else than texts was given.
            WrongAnswerError: the engine gave something that is not a number.
        """
        if top_k is not None:
            _check_count("top_k", top_k)
        results = [
            _classification(softmax(row), self._labels, top_k, tokens.truncated)
            for _, tokens, row in self._rows("classify", _listed(text), batch_size)
        ]
        return results[0] if isinstance(text, str) else results

    def logits(self, texts: Texts, *, batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """A classifier's raw outputs for a list of texts, float32 ``[B, labels]``: what an evaluation needs.

        Raises:
            UsageError, InputError, WrongAnswerError: as :meth:`classify`.
        """
        rows = [row for _, _, row in self._rows("classify", texts, batch_size)]
        return np.stack(rows) if rows else np.zeros((0, len(self._labels)), np.float32)

    @overload
    def tag(self, text: str, *, join: bool = ..., batch_size: int = ...) -> Tags: ...
    @overload
    def tag(self, text: Texts, *, join: bool = ..., batch_size: int = ...) -> list[Tags]: ...
    def tag(self, text: str | Texts, *, join: bool = True, batch_size: int = BATCH_SIZE) -> Tags | list[Tags]:
        """Tag one text, or each of a list in its order, with places in characters.

        A word (as the tokenizer splits text) has the label of its first token. Where the labels are BIO, BILOU or
        the like, words are joined to entities and ``O`` is left out (see :mod:`edgescribe.sdk.tags`).

        Args:
            text: a text or a list of them; the end of one that is too long is left out (``truncated``).
            join: join entities; False gives every word with its own label.
            batch_size: texts run at once.

        Raises:
            UsageError: the student does not tag, is closed, or an option is out of range.
            InputError: something else than texts was given.
            WrongAnswerError: the engine gave something that is not a number.
        """
        results = []
        for whole, tokens, row in self._rows("tag", _listed(text), batch_size, offsets=True):
            words = tokens.words
            tags = word_tags(whole, words, softmax(row[[word.token for word in words]]), self._labels)
            results.append(Tags(join_entities(whole, tags) if join and self._entities else tags, tokens.truncated))
        return results[0] if isinstance(text, str) else results

    def embed(self, text: str | Texts, *, batch_size: int = BATCH_SIZE) -> NDArray[np.float32]:
        """Embed one text as float32 ``[D]``, or a list as ``[B, D]``.

        The end of a text that is too long is left out; ``student.tokenizer.encode([text]).truncated`` tells.

        Raises:
            UsageError: the student does not embed, is closed, or an option is out of range.
            InputError: something else than texts was given.
            WrongAnswerError: the engine gave something that is not a number.
        """
        rows = [row for _, _, row in self._rows("embed", _listed(text), batch_size)]
        if isinstance(text, str):
            return rows[0]
        return np.stack(rows) if rows else np.zeros((0, self._output.shape[-1] or 0), np.float32)

    def close(self) -> None:
        """Free the engine's memory. Closing twice is allowed; calls under way in other threads still end well."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Student:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        info = self._info
        state = "" if self._session is not None else ", closed"
        return f"<Student {info.name!r}: {info.task}, {info.runtime} in {info.precision}{state}>"

    def _rows(
        self, task: str, texts: Texts, batch_size: int, offsets: bool = False
    ) -> Iterator[tuple[str, TokenizedText, NDArray[np.float32]]]:
        """Each text in its order, its tokens, its row of the output: ``[labels]``, ``[tokens, labels]`` or ``[D]``."""
        if task != self._info.task:
            raise UsageError(
                f"this student's task is {self._info.task!r}: call student.{self._info.task}(), not {task}()"
            )
        _check_count("batch_size", batch_size)
        checked = check_texts(texts)
        for start in range(0, len(checked), batch_size * _BATCHES_AT_ONCE):
            part = checked[start : start + batch_size * _BATCHES_AT_ONCE]
            tokens = self._tokenizer.tokenize(part, offsets=offsets)
            rows = self._run(tokens, batch_size)
            yield from zip(part, tokens, rows, strict=True)

    def _run(self, texts: list[TokenizedText], batch_size: int) -> list[NDArray[np.float32]]:
        """The output's row of each text, run in batches of like lengths so that little is padding."""
        rows: dict[int, NDArray[np.float32]] = {}
        for batch in _batches([len(text.ids) for text in texts], batch_size):
            encoded = self._tokenizer.pad([texts[index] for index in batch])
            session = self._session
            if session is None:
                raise UsageError("this student was closed; load the bundle again")
            output = session.run(encoded.feeds(self._input_names))[self._output.name]
            if not np.isfinite(output).all():
                raise WrongAnswerError(
                    f"{self._effective.engine} {self._effective.engine_version} gave values that are not numbers in "
                    f"{self._output.name!r}; load another runtime or precision of the bundle"
                )
            for row, index in enumerate(batch):
                rows[index] = output[row]
                if self._info.task == "tag":
                    rows[index] = output[row, self._tokenizer.kept(len(texts[index].ids), encoded.input_ids.shape[1])]
        return [rows[index] for index in range(len(texts))]


def _batches(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of each batch, texts of like lengths together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _classification(
    probabilities: NDArray[np.float64], labels: tuple[str, ...], top_k: int | None, truncated: bool
) -> Classification:
    best = int(probabilities.argmax())
    order = range(len(labels)) if top_k is None else np.argsort(-probabilities, kind="stable")[:top_k]
    scores = {labels[index]: float(probabilities[index]) for index in order}
    return Classification(labels[best], float(probabilities[best]), scores, truncated)


def _listed(text: str | Texts) -> Texts:
    return [text] if isinstance(text, str) else text


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is {value!r}; give a whole number of at least 1")
