"""A writer at work: prompts and conversations in, texts out, whatever the engine underneath."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..runtimes.contract import Effective
from ..runtimes.decoder_contract import DecoderSession
from .chat_template import ChatTemplate, Message, check_messages
from .constraints import Constraints
from .generation import Generation, GenerationRun, Plan, PrefixStore, common_length
from .sampling import Sampler, Sampling
from .session_turns import SessionTurns, Turn
from .stop_strings import StopStrings
from .student import StudentInfo
from .text_codec import TextCodec, TextStream
from .text_stream import AsyncWriting, Writing

Prompt = str | Sequence[Message]
"""A text to go on from, or a conversation to answer: messages with ``role`` and ``content``, the oldest first."""

MAX_NEW_TOKENS = 256


class WritingOptions(TypedDict, total=False):
    """Keywords of :meth:`Writer.generate` and its kin. What is left out is as the bundle says, or greedy.

    Attributes:
        max_new_tokens: tokens to write at most (256); it ends at the end of the context in any case.
        temperature, top_k, top_p, min_p, repetition_penalty, seed: see :class:`~edgescribe.sdk.sampling.Sampling`.
        stop: strings before whose first appearance the text ends.
        schema: a JSON schema (mapping or JSON text) that the text shall follow.
        regex: a regular expression that the whole text shall match.
        choices: texts of which one shall be written. At most one of the three; needs the extra ``constraints``.
        lookup: guess spans by copying from the prompt (:mod:`~edgescribe.sdk.prompt_lookup`); None does so where the
            engine computes one and several tokens alike, so that the text stays the same.
        any_reuse: reuse every token of the last prompt and answer that is still in the cache. Otherwise what was
            computed in other runs than a new session would take is computed again, so that the same seed gives the
            same text whatever was written before.
    """

    max_new_tokens: int
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
    any_reuse: bool


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a writer finds a text.

    Attributes:
        tokens: int32 ``[n]``.
        log_probabilities: float64 ``[n - 1]``: natural logarithm of the probability of each token but the first.
        best: int32 ``[n - 1]``: the likeliest token in the place of each token but the first.
    """

    tokens: NDArray[np.int32]
    log_probabilities: NDArray[np.float64]
    best: NDArray[np.int32]

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood (cross-entropy) of a token in nats; 0 for a text of one token."""
        return -float(self.log_probabilities.mean()) if len(self.log_probabilities) else 0.0

    @property
    def perplexity(self) -> float:
        """``exp(nll)``."""
        return math.exp(self.nll)

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest ones in their places."""
        return float((self.best == self.tokens[1:]).mean()) if len(self.best) else 0.0


class Writer:
    """An opened decoder. Made by :func:`edgescribe.load`; safe to use from several threads.

    It has one session, hence writes one text at a time; further calls wait. A stream that nobody reads on lends the
    session to those who wait. :meth:`fork` gives a second writer on the same weights.
    Use it as a context manager, or call :meth:`close`, to free the engine's memory.

    Args:
        session: of an engine; closed with the writer.
        tokenizer: a ``tokenizer.json``, its bytes or as a codec.
        end_tokens: tokens that end a text.
        defaults: how tokens are chosen where a call does not say.
        chat_template: a Jinja template of a conversation; None: it cannot chat.
        special_tokens: texts that a chat template may name, as ``bos_token``.
        prefixes: where caches of system prompts are kept; None keeps none.
        info: what is loaded.

    Raises:
        BundleError: the tokenizer or the chat template cannot be used.
    """

    def __init__(
        self,
        session: DecoderSession,
        tokenizer: bytes | TextCodec,
        *,
        end_tokens: Sequence[int] = (),
        defaults: Sampling | None = None,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        prefixes: PrefixStore | None = None,
        info: StudentInfo | None = None,
    ) -> None:
        self._codec = tokenizer if isinstance(tokenizer, TextCodec) else TextCodec(tokenizer)
        self._turns = SessionTurns(session)
        self._effective, self._context, self._vocabulary = session.effective, session.context, session.vocabulary
        self._end_tokens = frozenset(int(token) for token in end_tokens)
        self._defaults = defaults or Sampling()
        self._template = None if chat_template is None else ChatTemplate(chat_template, special_tokens or {})
        self._constraints = Constraints(self._codec, self._vocabulary, sorted(self._end_tokens))
        self._prefixes = prefixes
        self._info = info

    @property
    def info(self) -> StudentInfo:
        """What is loaded.

        Raises:
            UsageError: it was not loaded from a bundle.
        """
        if self._info is None:
            raise UsageError("this writer was not loaded from a bundle: nothing is known of one")
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
        """The most tokens that prompt and text have together."""
        return self._context

    @property
    def chats(self) -> bool:
        """Whether it has a chat template, so that it takes conversations."""
        return self._template is not None

    def generate(self, prompt: Prompt, **options: Unpack[WritingOptions]) -> Generation:
        """Go on from a text, or answer a conversation.

        Raises:
            InputError: the prompt is empty, longer than the context, or not of this kind; or a schema or expression
                cannot be used.
            UsageError: an option is out of range, or the writer was closed.
            MissingExtraError: a constraint was asked for, or a conversation given, without the extra for it.
            EngineError: the engine failed.
        """
        with self.stream(prompt, **options) as writing:
            for _ in writing:
                pass
        return writing.result

    def stream(self, prompt: Prompt, **options: Unpack[WritingOptions]) -> Writing[Generation]:
        """The same piece by piece: an iterator with ``cancel()``, ``close()`` and, at its end, ``result``."""
        return Writing(self._run(prompt, options))

    def astream(self, prompt: Prompt, **options: Unpack[WritingOptions]) -> AsyncWriting[Generation]:
        """The same for ``async for``."""
        return AsyncWriting(self.stream(prompt, **options))

    def chat(self, messages: Sequence[Message], **options: Unpack[WritingOptions]) -> Generation:
        """Answer a conversation: :meth:`generate` for messages alone."""
        return self.generate(check_messages(messages), **options)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt as :meth:`generate` takes it: to see how much room it leaves."""
        return self._tokens(prompt)[0]

    def score(self, text: str | Sequence[int]) -> Score:
        """How likely a text, or a row of tokens, is: what an evaluation needs.

        Raises:
            InputError: it has no token, or more than the context holds.
        """
        self._turns.check_open()
        tokens = np.array(self._codec.encode(text) if isinstance(text, str) else text, np.int32)
        if not tokens.size:
            raise InputError("a text of no tokens has no probability; give one of one token at least")
        scores, best = [np.zeros(0)], [np.zeros(0, np.int32)]
        start = 1
        for logits in self.logits(tokens[:-1]):
            found = tokens[start : start + len(logits)]
            scores.append(log_probabilities(logits, found))
            best.append(logits.argmax(axis=1).astype(np.int32))
            start += len(found)
        return Score(tokens, np.concatenate(scores), np.concatenate(best))

    def logits(self, tokens: Sequence[int] | NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        """The logits behind each of a row of tokens, from an empty cache on: arrays ``[k, V]`` one after the other.

        Raises:
            InputError: there are more tokens than the context holds, or such as there are not.
        """
        row = np.asarray(tokens, np.int32)
        turn = Turn(self._turns, threading.Event())
        try:
            for start in range(0, len(row), self._turns.session.most_verified):
                part = row[start : start + self._turns.session.most_verified]
                with turn.held() as turns:
                    if turns is None:  # it cannot be cancelled
                        return
                    if not start:
                        if len(row) > self._context:
                            raise InputError(
                                f"the text has {len(row):,} tokens, and the context holds {self._context:,}; "
                                "score it in parts"
                            )
                        turns.forget(0)
                    found = turns.session.verify(part)
                    turns.tokens.extend(part.tolist())
                yield found
        finally:
            turn.release()

    @contextmanager
    def borrowed(self) -> Iterator[DecoderSession]:
        """The session itself, empty, for measuring; other calls wait. It is emptied again at the end."""
        turn = Turn(self._turns, threading.Event())
        try:
            with turn.held() as turns:
                if turns is None:  # it cannot be cancelled
                    return
                turns.forget(0)
                try:
                    yield turns.session
                finally:
                    turns.forget(0)
        finally:
            turn.release()

    def fork(self) -> Writer:
        """A second writer on the same weights with a cache of its own, to write two texts at a time."""
        other = object.__new__(Writer)
        other.__dict__.update(self.__dict__)
        other._turns = self._turns.fork()
        return other

    def close(self) -> None:
        """Free the engine's memory once the token under way is computed. Closing twice is allowed."""
        if not self._turns.closed:
            self._turns.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "" if self._info is None else f" {self._info.name!r}:"
        state = ", closed" if self._turns.closed else ""
        return f"<Writer{name} {self._effective.runtime}, context of {self._context} tokens{state}>"

    def _run(self, prompt: Prompt, options: WritingOptions) -> GenerationRun:
        unknown = options.keys() - WritingOptions.__annotations__.keys()
        if unknown:
            raise UsageError(
                f"there is no option {sorted(unknown)[0]!r}; there are {', '.join(WritingOptions.__annotations__)}"
            )
        self._turns.check_open()
        tokens, shared = self._tokens(prompt)
        limit = options.get("max_new_tokens", MAX_NEW_TOKENS)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise UsageError(f"max_new_tokens is {limit!r}; give a whole number")
        sampling = self._sampling(options)
        plan = Plan(
            prompt=tokens,
            max_new_tokens=limit,
            end_tokens=self._end_tokens,
            sampler=Sampler(sampling, self._vocabulary, tokens if sampling.repetition_penalty != 1 else ()),
            stops=StopStrings(options.get("stop", ())),
            text=TextStream(self._codec, continues=isinstance(prompt, str)),
            constraint=self._constraints.constraint(
                schema=options.get("schema"), regex=options.get("regex"), choices=options.get("choices")
            ),
            lookup=options.get("lookup"),
            prefixes=self._prefixes,
            shared=shared,
            any_reuse=bool(options.get("any_reuse", False)),
        )
        return GenerationRun(self._turns, plan)

    def _sampling(self, options: WritingOptions) -> Sampling:
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        given = {name: options.get(name) for name in names}
        return replace(self._defaults, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def _tokens(self, prompt: Prompt) -> tuple[list[int], int]:
        """A prompt's tokens, and how many at its beginning are the system prompt's."""
        if isinstance(prompt, str):
            return self._codec.encode(prompt), 0
        messages = check_messages(prompt)
        if self._template is None:
            raise UsageError(
                "this writer's bundle has no chat template: give a text to go on from, or convert a student that was "
                "tuned for conversations"
            )
        tokens = self._codec.encode(self._template.render(messages), specials=False)
        if messages[0]["role"] != "system" or len(messages) < 2:
            return tokens, 0
        # What two conversations with this system prompt have in common.
        probe = [messages[0], {"role": "user", "content": "." if messages[1]["content"][:1] != "." else "?"}]
        other = self._codec.encode(self._template.render(probe), specials=False)
        return tokens, common_length(tokens, other)


def log_probabilities(logits: NDArray[np.float32], tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """The log-softmax of ``logits`` ``[k, V]`` at one token of each row: ``[k]``, summed in float64."""
    highest = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    found = (logits - highest)[np.arange(len(tokens)), tokens].astype(np.float64)
    return np.asarray(found - np.log(sums))
