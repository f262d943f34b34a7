"""Text to token ids, as the student was trained with: truncation, padding side and the places of words.

A thin layer over the ``tokenizers`` library. A :class:`Tokenizer` may be used from several threads at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Threads of the tokenizers library cost memory, and stall a process that forks; set before its first use.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import BundleError, InputError

_SURROGATES = re.compile("[\ud800-\udfff]")
_CUT = re.compile(r"(?<=[^\s])[ \t\n]")
_CHARACTERS_PER_TOKEN = 64
_PROBE = "A probe: 0 \u00e9 \u4e2d \u2603"


@dataclass(frozen=True, slots=True)
class Word:
    """A word as the tokenizer splits text: its first token's index, and its place ``text[start:end]`` in characters."""

    token: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text's tokens, special ones included.

    ``ids``, ``type_ids``: one for each token; ``offsets``: ``(start, end)`` in characters of the text for each token
    and ``words``: both empty unless asked for; ``truncated``: tokens past the limit were left out.
    """

    ids: Sequence[int]
    type_ids: Sequence[int]
    truncated: bool
    offsets: Sequence[tuple[int, int]] = ()
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A padded batch.

    Attributes:
        input_ids: int32 ``[B, T]``.
        attention_mask: int32 ``[B, T]``, 1 for a token, 0 for padding; at least one 1 in each row.
        token_type_ids: int32 ``[B, T]``.
        offsets: int32 ``[B, T, 2]``, start and end in characters, 0 for padding and special tokens;
            ``[B, T, 0]`` unless asked for.
        truncated: for each text, whether tokens past the limit were left out.
    """

    input_ids: NDArray[np.int32]
    attention_mask: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    truncated: tuple[bool, ...]

    def feeds(self, names: Iterable[str]) -> dict[str, NDArray[np.int32]]:
        """The arrays of these names (``input_ids``, …), as a session takes them."""
        return {name: getattr(self, name) for name in names}


class Tokenizer:
    """A ``tokenizer.json`` with the student's limits.

    Args:
        content: bytes of the ``tokenizer.json``. Truncation and padding set in it are not used.
        max_tokens: longest result, special tokens included.
        pad_id: token id that fills up.
        pad_type_id: token type of the filling.
        padding_side: where it goes.
        truncates: whether longer texts are cut; False for a student whose prompts are never cut here.

    Raises:
        BundleError: the content is not a tokenizer, cannot encode, or leaves no room for a token in ``max_tokens``.
    """

    def __init__(
        self,
        content: bytes,
        *,
        max_tokens: int,
        pad_id: int,
        pad_type_id: int = 0,
        padding_side: Literal["left", "right"] = "right",
        truncates: bool = True,
    ) -> None:
        self.max_tokens, self.pad_id, self.pad_type_id = max_tokens, pad_id, pad_type_id
        self.padding_side, self.truncates = padding_side, truncates
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
            self._tokenizer.no_padding()
            if truncates:
                self._tokenizer.enable_truncation(max_tokens)
            else:
                self._tokenizer.no_truncation()
        except BaseException as error:  # noqa: BLE001 (a panic of the library's Rust code is no Exception)
            raise _refusal(error, f"the tokenizer cannot be read ({error})") from None
        special = self._tokenizer.num_special_tokens_to_add(False)
        if special >= max_tokens:
            raise BundleError(
                f"the tokenizer adds {special} special tokens, which leaves no room in max_tokens = {max_tokens}; "
                "convert the student again with a larger limit"
            )
        self._encode([_PROBE, ""], offsets=True)

    @property
    def library(self) -> Any:
        """The library's own tokenizer, for reading alone: a vocabulary takes tens of megabytes, so it is shared."""
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def tokenize(self, texts: Sequence[str], *, offsets: bool = False) -> list[TokenizedText]:
        """Split texts into tokens, at most ``max_tokens`` each where it truncates; with ``offsets`` places and words.

        An empty text gives its special tokens; where a tokenizer has none, one padding token.
        A lone surrogate counts as U+FFFD.

        Raises:
            InputError: an item is not a str.
        """
        return self._encode(check_texts(texts), offsets=offsets)

    def encode(self, texts: Sequence[str], *, offsets: bool = False) -> Encoded:
        """Tokenize and pad to the longest of ``texts``.

        Raises:
            InputError: an item is not a str.
        """
        return self.pad(self.tokenize(texts, offsets=offsets))

    def pad(self, texts: Sequence[TokenizedText]) -> Encoded:
        """Pad tokenized texts to the longest."""
        count = max((len(text.ids) for text in texts), default=0)
        shape = (len(texts), count)
        with_offsets = any(text.offsets for text in texts)
        ids = np.full(shape, self.pad_id, np.int32)
        mask = np.zeros(shape, np.int32)
        types = np.full(shape, self.pad_type_id, np.int32)
        places = np.zeros((*shape, 2 if with_offsets else 0), np.int32)
        for row, text in enumerate(texts):
            kept = self.kept(len(text.ids), count)
            ids[row, kept], types[row, kept], mask[row, kept] = text.ids, text.type_ids, 1
            if with_offsets:
                places[row, kept] = text.offsets
        return Encoded(ids, mask, types, places, tuple(text.truncated for text in texts))

    def kept(self, tokens: int, width: int) -> slice:
        """Where ``tokens`` tokens lie in a row that was padded to ``width``."""
        return slice(width - tokens, width) if self.padding_side == "left" else slice(0, tokens)

    def _encode(self, texts: Sequence[str], offsets: bool) -> list[TokenizedText]:
        texts = [text if text.isascii() else _SURROGATES.sub("\ufffd", text) for text in texts]
        heads = [self._head(text, self.max_tokens * _CHARACTERS_PER_TOKEN) for text in texts]
        method = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            encodings = method(heads)
            for index, text in enumerate(texts):
                length = len(heads[index])
                while not encodings[index].overflowing and length < len(text):
                    head = self._head(text, 2 * length)
                    encodings[index], length = method([head])[0], len(head)
        except BaseException as error:  # noqa: BLE001 (a panic of the library's Rust code is no Exception)
            raise _refusal(error, f"the tokenizer cannot encode a text ({error})") from None
        return [self._tokenized(encoding, text, offsets) for encoding, text in zip(encodings, texts, strict=True)]

    def _head(self, text: str, characters: int) -> str:
        """The text, where it will be cut up to the first blank past ``characters``: bounds memory, splits no word."""
        if len(text) <= characters or not self.truncates:
            return text
        found = _CUT.search(text, characters)
        return text[: found.start()] if found else text

    def _tokenized(self, encoding: Any, text: str, offsets: bool) -> TokenizedText:
        ids = encoding.ids
        truncated = bool(encoding.overflowing)
        if not ids:
            return TokenizedText([self.pad_id], [self.pad_type_id], truncated, [(0, 0)] if offsets else ())
        if not offsets:
            return TokenizedText(ids, encoding.type_ids, truncated)
        places = encoding.offsets
        words = _words(encoding.word_ids, encoding.special_tokens_mask, places, text)
        return TokenizedText(ids, encoding.type_ids, truncated, places, words)


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        InputError: not a collection of str; names the first item that is none.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"expected a list of texts, got {type(texts).__name__}; pass a list of str")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, not str; decode or convert it first")
    return checked


def _words(
    word_ids: Sequence[int | None], special: Sequence[int], places: Sequence[tuple[int, int]], text: str
) -> tuple[Word, ...]:
    """Words with their blanks trimmed; a new one also starts after a blank, for tokenizers that do not split words."""
    words: list[Word] = []
    previous: int | None = None
    for index, (word_id, (start, end)) in enumerate(zip(word_ids, places, strict=True)):
        if word_id is None or special[index]:
            previous = None
            continue
        piece = text[start:end]
        end = start + len(piece.rstrip())
        start += len(piece) - len(piece.lstrip())
        if end <= start:
            continue
        if words and word_id == previous and not any(map(str.isspace, text[words[-1].end : start])):
            last = words[-1]
            words[-1] = Word(last.token, last.start, max(last.end, end))
            continue
        words.append(Word(index, start, end))
        previous = word_id
    return tuple(words)


def _refusal(error: BaseException, message: str) -> BaseException:
    """The error to raise: faults of the library, even a panic of its Rust code, are the bundle's; others pass."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return BundleError(f"{message}; convert the student again")
    return error
