"""Texts that must follow a JSON schema, match a regular expression or be one of some choices.

The grammar library llguidance (extra ``constraints``) says after each token which ones may come next; logits of the
others are put to minus infinity.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError, InputError, MissingExtraError, UsageError
from .text_codec import TextCodec

EXTRA = "constraints"
_MOST_CHARACTERS = 1 << 20


class Constraints:
    """The grammars of one writer.

    Args:
        codec: the writer's tokens.
        vocabulary: number of logits.
        end_tokens: tokens that end a text.
    """

    def __init__(self, codec: TextCodec, vocabulary: int, end_tokens: Sequence[int]) -> None:
        self._codec, self._vocabulary, self._end_tokens = codec, vocabulary, list(end_tokens)
        self._library: Any = None
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def constraint(
        self,
        *,
        schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Constraint | None:
        """The constraint of one text, or None where nothing is asked for.

        Args:
            schema: a JSON schema, as a mapping or as JSON text.
            regex: in the syntax of Rust's crate ``regex``, of the whole text; no look-around, no back references.
            choices: texts of which one shall be written.

        Raises:
            UsageError: more than one of the three is given.
            InputError: it cannot be used; the library's reason stands in the message.
            MissingExtraError: the library is not installed.
            BundleError: the tokenizer is not one that the library can use, or no token ends a text.
        """
        given = [value for value in (schema, regex, choices) if value is not None]
        if not given:
            return None
        if len(given) > 1:
            raise UsageError("of schema, regex and choices just one can be given")
        with self._lock:
            self._load()
        matchers = self._library.LLMatcher
        if schema is not None:
            grammar = matchers.grammar_from_json_schema(_schema_text(schema))
        elif regex is not None:
            if not isinstance(regex, str) or not 0 < len(regex) <= _MOST_CHARACTERS:
                raise InputError("regex must be a regular expression as a str")
            grammar = matchers.grammar_from_regex(regex)
        else:
            grammar = matchers.grammar_from_lark(_choices_grammar(choices))
        matcher = matchers(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the text cannot be constrained like that: {_first_lines(matcher.get_error())}")
        return Constraint(matcher, self._vocabulary)

    def _load(self) -> None:
        if self._tokenizer is not None:
            return
        if not self._end_tokens:
            raise BundleError(
                "no token of this bundle ends a text, so that a constrained one could not end; convert the student "
                "again with its end tokens (eos_token_id of its generation_config.json)"
            )
        try:
            self._library = importlib.import_module("llguidance")
        except ImportError as error:
            raise MissingExtraError("llguidance", EXTRA) from error
        try:
            self._tokenizer = self._library.LLTokenizer(
                self._codec.json, n_vocab=self._vocabulary, eos_token=self._end_tokens
            )
        except Exception as error:  # the library raises plain ValueError and RuntimeError
            raise BundleError(
                f"texts cannot be constrained with this bundle's tokenizer: {_first_lines(str(error))}"
            ) from error


class Constraint:
    """What may come next in one text."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((vocabulary + 31) // 32, np.uint32)
        self._address, self._vocabulary = self._bits.ctypes.data, vocabulary

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Put the logits of tokens that may not come next to minus infinity.

        Raises:
            EngineError: the grammar library gave up.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        if self._matcher.is_error():
            raise EngineError(f"the constraint cannot be followed on: {_first_lines(self._matcher.get_error())}")
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary, bitorder="little")
        np.copyto(logits, -np.inf, where=allowed == 0)

    def accept(self, token: int) -> bool:
        """Take a token in; whether nothing but the end may follow.

        Raises:
            EngineError: the grammar library gave up.
        """
        if not self._matcher.consume_token(token):
            raise EngineError(f"the constraint cannot be followed on: {_first_lines(self._matcher.get_error())}")
        return bool(self._matcher.is_stopped())


def _schema_text(schema: Mapping[str, Any] | str) -> str:
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema))
        read = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the JSON schema cannot be read: {error}") from None
    if not isinstance(read, dict) or len(text) > _MOST_CHARACTERS:
        raise InputError(f"a JSON schema must be an object of at most {_MOST_CHARACTERS:,} characters")
    return text


def _choices_grammar(choices: Sequence[str] | None) -> str:
    texts = [] if choices is None or isinstance(choices, str) else list(choices)
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError("choices must be a list of texts, none of them empty")
    if sum(map(len, texts)) > _MOST_CHARACTERS:
        raise InputError(f"the choices have more than {_MOST_CHARACTERS:,} characters")
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))


def _first_lines(message: str) -> str:
    return " ".join(line.strip() for line in message.strip().splitlines()[:3] if line.strip())[:500]
