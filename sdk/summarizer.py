"""A summariser at work: texts in, summaries out, whatever the engine underneath."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypedDict, Unpack, overload

from ..errors import InputError, UsageError
from ..runtimes.contract import Effective
from ..runtimes.encoder_decoder_contract import EncoderDecoderSession
from .beam_search import EarlyStopping
from .constraints import Constraints
from .long_text import LongProgress, LongSummary, summarize_long
from .sampling import Sampler, Sampling
from .session_turns import Turn
from .source_turns import SourceTurns
from .stop_strings import StopStrings
from .student import StudentInfo
from .summary_run import Summary, SummaryPlan, SummaryRun
from .text_codec import TextCodec
from .text_stream import AsyncWriting, Writing
from .transcripts import read_transcript
from .turn import Turn as SpokenTurn

MOST_BEAMS = 32
DEFAULTS: Mapping[str, float] = {
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": 0,
    "no_repeat_ngram_size": 0,
    "max_new_tokens": 128,
    "min_new_tokens": 0,
}
"""What holds where neither a call nor the bundle says otherwise; these are what a bundle may say."""


class SummaryOptions(TypedDict, total=False):
    """Keywords of :meth:`Summarizer.summarize` and its kin. What is left out, or None, is as the bundle says.

    Attributes:
        max_new_tokens: tokens to write at most; it ends at the end of the context in any case.
        min_new_tokens: tokens before which the summary may not end.
        num_beams: summaries to write side by side, of which the one of the best score is taken; 1 is greedy.
        length_penalty: power of the length that beams' scores are divided by; over 0 favours long summaries.
        early_stopping: when a beam search ends (:class:`~edgescribe.sdk.beam_search.Search`).
        no_repeat_ngram_size: tokens of the n-grams that may stand in a summary but once; 0: all may be repeated.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see :class:`~edgescribe.sdk.sampling.Sampling`.
        stop: strings before whose first appearance the summary ends.
        schema, regex, choices: what the whole text shall follow, as of
            :class:`~edgescribe.sdk.writer.WritingOptions`; needs the extra ``constraints``.
        lookup: guess spans by copying from the source (:mod:`~edgescribe.sdk.prompt_lookup`); None does so where the
            engine computes one and several tokens alike, so that the text stays the same.
        truncate: read only the beginning of a text that is too long, instead of refusing it.

    Sampling (a temperature, or a repetition penalty), constraints and ``lookup=True`` take one beam: they are refused
    with more, and take the place of a bundle's own number of beams.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: EarlyStopping | None
    no_repeat_ngram_size: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    schema: Mapping[str, Any] | str | None
    regex: str | None
    choices: Sequence[str] | None
    lookup: bool | None
    truncate: bool


class Summarizer:
    """An opened encoder-decoder. Made by :func:`edgescribe.load_summarizer`; safe to use from several threads.

    It has one session, hence writes one summary at a time; further calls wait. A stream that nobody reads on lends the
    session to those who wait. :meth:`fork` gives a second summariser on the same weights.
    Use it as a context manager, or call :meth:`close`, to free the engine's memory.

    Args:
        session: of an engine; closed with the summariser.
        tokenizer: a ``tokenizer.json``, its bytes or as a codec.
        start_tokens: tokens that every summary starts with.
        end_tokens: tokens that end one.
        prefix: put before every source text.
        defaults: of options, by their names in :data:`DEFAULTS`.
        info: what is loaded.

    Raises:
        BundleError: the tokenizer cannot be used.
        UsageError: ``start_tokens`` is empty, or a default is not known or out of range.
    """

    def __init__(
        self,
        session: EncoderDecoderSession,
        tokenizer: bytes | TextCodec,
        *,
        start_tokens: Sequence[int],
        end_tokens: Sequence[int] = (),
        prefix: str = "",
        defaults: Mapping[str, float] | None = None,
        info: StudentInfo | None = None,
    ) -> None:
        self._codec = tokenizer if isinstance(tokenizer, TextCodec) else TextCodec(tokenizer)
        self._turns = SourceTurns(session)
        self._effective, self._vocabulary = session.effective, session.vocabulary
        self._context, self._source_context = session.context, session.source_context
        self._start = tuple(int(token) for token in start_tokens)
        if not 0 < len(self._start) <= self._context:
            raise UsageError(
                f"{len(self._start)} tokens start a summary where its context holds {self._context}; give one at "
                "least, and load with a larger context"
            )
        self._end_tokens = frozenset(int(token) for token in end_tokens)
        self._prefix = prefix
        unknown = (defaults or {}).keys() - DEFAULTS.keys()
        if unknown:
            raise UsageError(f"there is no default {sorted(unknown)[0]!r}; there are {', '.join(DEFAULTS)}")
        self._defaults = {**DEFAULTS, **(defaults or {})}
        self._constraints = Constraints(self._codec, self._vocabulary, sorted(self._end_tokens))
        self._info = info

    @property
    def info(self) -> StudentInfo:
        """What is loaded.

        Raises:
            UsageError: it was not loaded from a bundle.
        """
        if self._info is None:
            raise UsageError("this summariser was not loaded from a bundle: nothing is known of one")
        return self._info

    @property
    def effective(self) -> Effective:
        """What really runs, read back from the engine."""
        return self._effective

    @property
    def codec(self) -> TextCodec:
        """Its tokens."""
        return self._codec

    @property
    def context(self) -> int:
        """The most tokens of a summary, those that start it included."""
        return self._context

    @property
    def source_context(self) -> int:
        """The most tokens of a source, special ones and the bundle's prefix included."""
        return self._source_context

    @property
    def start_tokens(self) -> tuple[int, ...]:
        """Tokens that every summary starts with."""
        return self._start

    @property
    def defaults(self) -> dict[str, float]:
        """What holds for options that a call leaves out."""
        return dict(self._defaults)

    @overload
    def summarize(self, text: str, **options: Unpack[SummaryOptions]) -> Summary: ...
    @overload
    def summarize(self, text: list[str] | tuple[str, ...], **options: Unpack[SummaryOptions]) -> list[Summary]: ...
    def summarize(
        self, text: str | list[str] | tuple[str, ...], **options: Unpack[SummaryOptions]
    ) -> Summary | list[Summary]:
        """Summarise a text, or several one after the other. Of a text of blanks the summary is empty.

        Raises:
            InputError: a text is none, or longer than the source context; or a schema or expression cannot be used.
            UsageError: an option is out of range, or the summariser was closed.
            MissingExtraError: a constraint was asked for without the extra for it.
            EngineError: the engine failed.
        """
        if isinstance(text, str) or not isinstance(text, list | tuple):
            return self._summary(text, options)
        return [self._summary(each, options) for each in text]

    def _summary(self, text: str, options: SummaryOptions) -> Summary:
        with self.stream(text, **options) as writing:
            for _ in writing:
                pass
        return writing.result

    def stream(self, text: str, **options: Unpack[SummaryOptions]) -> Writing[Summary]:
        """The same piece by piece: an iterator with ``cancel()``, ``close()`` and, at its end, ``result``.

        With beams the one piece comes at the end.
        """
        self._turns.check_open()
        return Writing(SummaryRun(self._turns, self._codec, self._plan(text, options)))

    def astream(self, text: str, **options: Unpack[SummaryOptions]) -> AsyncWriting[Summary]:
        """The same for ``async for``."""
        return AsyncWriting(self.stream(text, **options))

    def summarize_long(
        self,
        text: str | os.PathLike[str] | Iterable[SpokenTurn],
        *,
        part_tokens: int | None = None,
        overlap_tokens: int | None = None,
        fan_in: int = 8,
        max_levels: int = 3,
        on_progress: Callable[[LongProgress], None] | None = None,
        **options: Unpack[SummaryOptions],
    ) -> Iterator[LongSummary]:
        """Summarise a text or transcript of any length in parts (:mod:`~edgescribe.sdk.long_text`).

        Summaries of parts, and of several parts together, come as they are ready; the last one is of all. Memory does
        not grow with a text that is given as a file or as an iterator of turns. Other texts may be summarised between
        two parts.

        Args:
            text: a text, the path of a transcript or text file, or turns
                (:func:`~edgescribe.sdk.transcripts.read_transcript`).
            part_tokens: the most tokens of a part; None takes all that is read at once.
            overlap_tokens: about how many tokens of each part begin the next; None takes a sixteenth of a part.
            fan_in: the most summaries that are merged at a time.
            max_levels: how often a summary is merged into another before merging goes on within the highest level.
            on_progress: called after each part and each merge.
            options: of each summary, as of :meth:`summarize`.

        Raises:
            InputError: what was given is no text and no turns (when the first summary is asked for).
            DataError: a file cannot be read, or is no text (the same).
            UsageError: an option is out of range, or the summariser was closed.
            EngineError: the engine failed (while summaries are asked for).
        """
        self._turns.check_open()
        self._plan("", options)
        most = self._source_context if part_tokens is None else part_tokens
        if most > self._source_context:
            raise UsageError(f"parts of {most} tokens; this summariser reads {self._source_context} at once")
        return summarize_long(
            read_transcript(text) if isinstance(text, os.PathLike) else text,
            lambda part: self._summary(part, options).text,
            lambda part: len(self.source_tokens(part)),
            part_tokens=most,
            overlap_tokens=most // 16 if overlap_tokens is None else overlap_tokens,
            fan_in=fan_in,
            max_levels=max_levels,
            on_progress=on_progress,
        )

    def source_tokens(self, text: str) -> list[int]:
        """The tokens of a text as :meth:`summarize` reads it, the bundle's prefix and special ones included.

        Raises:
            InputError: not a str.
        """
        if not isinstance(text, str):
            raise InputError(f"expected a text, got {type(text).__name__}; pass a str")
        return self._codec.encode(self._prefix + text)

    @contextmanager
    def borrowed(self) -> Iterator[EncoderDecoderSession]:
        """The session itself with an empty target, for measuring; other calls wait. It is emptied again at the end."""
        turn = Turn(self._turns, threading.Event())
        try:
            with turn.held() as turns:
                if turns is None:  # it cannot be cancelled
                    return
                turns.forget(0)
                try:
                    yield self._turns.session
                finally:
                    turns.forget(0)
        finally:
            turn.release()

    def fork(self) -> Summarizer:
        """A second summariser on the same weights with memory of its own, to write two summaries at a time."""
        other = object.__new__(Summarizer)
        other.__dict__.update(self.__dict__)
        other._turns = self._turns.fork()
        return other

    def close(self) -> None:
        """Free the engine's memory once the token under way is computed. Closing twice is allowed."""
        if not self._turns.closed:
            self._turns.close()

    def __enter__(self) -> Summarizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "" if self._info is None else f" {self._info.name!r}:"
        state = ", closed" if self._turns.closed else ""
        return f"<Summarizer{name} {self._effective.runtime}, sources of {self._source_context} tokens{state}>"

    def _plan(self, text: str, options: SummaryOptions) -> SummaryPlan:
        unknown = options.keys() - SummaryOptions.__annotations__.keys()
        if unknown:
            raise UsageError(
                f"there is no option {sorted(unknown)[0]!r}; there are {', '.join(SummaryOptions.__annotations__)}"
            )
        sampling = _sampling(options)
        constraint = self._constraints.constraint(
            schema=options.get("schema"), regex=options.get("regex"), choices=options.get("choices")
        )
        lookup = options.get("lookup")
        single = (
            sampling.temperature > 0 or sampling.repetition_penalty != 1 or constraint is not None or lookup is True
        )
        beams = options.get("num_beams")
        if beams is None:
            beams = 1 if single else int(self._defaults["num_beams"])
        most = self._whole(options, "max_new_tokens", 0)
        least = self._whole(options, "min_new_tokens", 0)
        if least > most and options.get("min_new_tokens") is not None:
            raise UsageError(f"min_new_tokens is {least}, more than max_new_tokens, {most}")
        source, truncated = self._source(text, options)
        return SummaryPlan(
            source=source,
            truncated=truncated,
            start=self._start,
            end_tokens=self._end_tokens,
            max_new_tokens=most,
            min_new_tokens=min(least, most),
            num_beams=_checked_beams(beams, single),
            length_penalty=self._length_penalty(options),
            early_stopping=self._early_stopping(options),
            no_repeat_ngram_size=self._whole(options, "no_repeat_ngram_size", 0),
            sampler=Sampler(sampling, self._vocabulary, self._start if sampling.repetition_penalty != 1 else ()),
            stops=StopStrings(options.get("stop", ())),
            constraint=constraint,
            lookup=lookup,
        )

    def _source(self, text: str, options: SummaryOptions) -> tuple[tuple[int, ...], bool]:
        """A text's tokens, none for one of blanks, and whether some were left out."""
        tokens = self.source_tokens(text)
        if not text.strip():
            return (), False
        if len(tokens) <= self._source_context:
            return tuple(tokens), False
        if not options.get("truncate", False):
            raise InputError(
                f"the text has {len(tokens):,} tokens, and this summariser reads {self._source_context:,} at once: "
                "use summarize_long, which summarises it in parts (edgescribe run --long), or shorten it"
            )
        last = self._codec.encode("")
        kept = 0
        while kept < len(last) and last[-1 - kept] == tokens[-1 - kept]:
            kept += 1
        return tuple(tokens[: self._source_context - kept] + tokens[len(tokens) - kept :]), True

    def _whole(self, options: SummaryOptions, name: str, least: int) -> int:
        value = options.get(name)
        if value is None:
            value = int(self._defaults[name])
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} is {value!r}; give a whole number")
        return value

    def _length_penalty(self, options: SummaryOptions) -> float:
        value = options.get("length_penalty")
        if value is None:
            value = self._defaults["length_penalty"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 16:
            raise UsageError(f"length_penalty is {value!r}; give a number from -16 to 16")
        return float(value)

    def _early_stopping(self, options: SummaryOptions) -> EarlyStopping:
        value = options.get("early_stopping")
        if value is None:
            return bool(self._defaults["early_stopping"])
        if value is not True and value is not False and value != "never":
            raise UsageError(f"early_stopping is {value!r}; give True, False or 'never'")
        return value


def _checked_beams(beams: object, single: bool) -> int:
    if isinstance(beams, bool) or not isinstance(beams, int) or not 1 <= beams <= MOST_BEAMS:
        raise UsageError(f"num_beams is {beams!r}; give a whole number from 1 to {MOST_BEAMS}")
    if single and beams > 1:
        raise UsageError(
            f"num_beams is {beams}, but sampling, a repetition penalty, constraints and prompt lookup take one beam; "
            "leave one of the two out"
        )
    return beams


def _sampling(options: SummaryOptions) -> Sampling:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    given = {name: options.get(name) for name in names}
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
