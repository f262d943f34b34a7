"""Texts to tokens and back for a decoder: nothing is cut off, and tokens become whole characters as they come.

How a token becomes bytes is read from the ``decoder`` of ``tokenizer.json``, so that each token costs the same however
long the text has grown. Known are byte-level vocabularies (GPT-2, Llama 3, Qwen) and SentencePiece's with byte fallback
(Llama 2, Gemma); for texts whose bytes are valid the result is that of the ``tokenizers`` library.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

# As in edgescribe.sdk.tokenizer: threads of the tokenizers library cost memory.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import msgspec
import tokenizers

from ..errors import BundleError, InputError
from .tokenizer import Tokenizer

_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")

TokenBytes = Callable[[str, bool], bytes]
"""The bytes of a token by its spelling in the vocabulary, and whether it is a text's first."""


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _TokenizerFile(msgspec.Struct):
    """What is read of ``tokenizer.json`` besides what the library reads."""

    decoder: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


class TextCodec:
    """A ``tokenizer.json`` for generation. May be used from several threads at once.

    Args:
        content: bytes of the ``tokenizer.json``. Truncation and padding set in it are not used.
        shared: the same content read already, not truncating: its vocabulary is then not held a second time.

    Raises:
        BundleError: it cannot be read, or its decoder is of a kind that is not known.
    """

    def __init__(self, content: bytes, shared: Tokenizer | None = None) -> None:
        try:
            if shared is not None and not shared.truncates:
                self._tokenizer = shared.library
            else:
                self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
                self._tokenizer.no_padding()
                self._tokenizer.no_truncation()
            read = msgspec.json.decode(content, type=_TokenizerFile)
        except BaseException as error:  # noqa: BLE001 (a panic of the library's Rust code is no Exception)
            raise _refusal(error, "the tokenizer cannot be read") from None
        self._specials = {token.id: token.content for token in read.added_tokens if token.special}
        self._token_bytes = token_bytes_of(read.decoder)
        self._known: dict[int, bytes] = {}

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def specials(self) -> dict[int, str]:
        """Special tokens, which are left out of texts: spelling by token."""
        return dict(self._specials)

    @cached_property
    def json(self) -> str:
        """The tokenizer as JSON, without truncation and padding."""
        return str(self._tokenizer.to_str())

    def token(self, spelling: str) -> int | None:
        """The token of that spelling in the vocabulary, or None."""
        found = self._tokenizer.token_to_id(spelling)
        return None if found is None else int(found)

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        """The tokens of a whole text; with ``specials`` those that the tokenizer puts around one, as a first token.

        Special tokens spelled out in the text count as such. A lone surrogate counts as U+FFFD.

        Raises:
            InputError: not a str.
        """
        if not isinstance(text, str):
            raise InputError(f"expected a text, got {type(text).__name__}; pass a str")
        if not text.isascii():
            text = _SURROGATES.sub("\ufffd", text)
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=specials).ids)
        except BaseException as error:  # noqa: BLE001
            raise _refusal(error, "the tokenizer cannot encode a text") from None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, special ones left out; a character whose bytes are not all there at the end too."""
        stream = TextStream(self)
        return "".join([stream.feed(token) for token in tokens])

    def bytes_of(self, token: int, *, first: bool = False) -> bytes:
        """What a token adds to a text, in UTF-8 that may begin or end inside a character; nothing for special ones."""
        if first:
            return self._read(token, True)
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._read(token, False)
        return found

    def _read(self, token: int, first: bool) -> bytes:
        if token in self._specials:
            return b""
        spelling = self._tokenizer.id_to_token(token)
        return b"" if spelling is None else self._token_bytes(spelling, first)


class TextStream:
    """Tokens in, whole characters out.

    Args:
        codec: of the tokens.
        continues: the tokens go on behind others, so that the blank in front of the first word is kept;
            otherwise it is left out where the tokenizer adds one to each text (SentencePiece).
    """

    def __init__(self, codec: TextCodec, *, continues: bool = False) -> None:
        self._codec = codec
        self._known = codec._known
        self._begun = b""  # of a character that is not whole yet
        self._first = not continues

    def feed(self, token: int) -> str:
        """The characters that are whole with this token; bytes that no character has become U+FFFD."""
        if self._first:
            piece = self._codec.bytes_of(token, first=True)
            self._first = not piece and token in self._codec._specials
        else:
            known = self._known.get(token)
            piece = self._codec.bytes_of(token) if known is None else known
        if self._begun:
            piece = self._begun + piece
        text, whole = codecs.utf_8_decode(piece, "replace")
        self._begun = piece[whole:]
        return text


def token_bytes_of(decoder: dict[str, Any] | None) -> TokenBytes:
    """How tokens become bytes by a ``decoder`` of ``tokenizer.json``.

    Raises:
        BundleError: its kind is not known.
    """
    if decoder is None:
        return lambda spelling, first: (spelling if first else " " + spelling).encode()
    steps: list[dict[str, Any]] = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [str(step.get("type")) for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level
    if not steps or not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise _unknown_decoder(kinds)
    return _sentence_pieces(steps, kinds)


def _sentence_pieces(steps: Sequence[dict[str, Any]], kinds: Sequence[str]) -> TokenBytes:
    replaced: list[tuple[str, str]] = []
    dropped = ""  # characters that are left out of the first token wherever they stand in it
    blank, strips = b" ", 0
    for index, step in enumerate(steps):
        kind = kinds[index]
        if kind == "Replace":
            pattern = step.get("pattern", {}).get("String")
            if not pattern or not isinstance(step.get("content"), str):
                raise _unknown_decoder(kinds)
            replaced.append((pattern, step["content"]))
        elif kind == "Metaspace":
            mark = step.get("replacement", "▁")
            replaced.append((mark, " "))
            dropped += mark if step.get("prepend_scheme", "always") != "never" else ""
        elif kind == "Strip":
            if "Fuse" not in kinds[:index] or step.get("stop") or strips:
                raise _unknown_decoder(kinds)
            blank, strips = str(step.get("content", " ")).encode(), int(step.get("start", 0))
    byte_fallback = "ByteFallback" in kinds

    def token_bytes(spelling: str, first: bool) -> bytes:
        if byte_fallback and (found := _BYTE_PIECE.fullmatch(spelling)):
            piece = bytes([int(found[1], 16)])
        else:
            if first:
                spelling = "".join(character for character in spelling if character not in dropped)
            for old, new in replaced:
                spelling = spelling.replace(old, new)
            piece = spelling.encode()
        if first:
            for _ in range(strips):
                piece = piece.removeprefix(blank)
        return piece

    return token_bytes


def _byte_level(spelling: str, first: bool) -> bytes:
    try:
        return bytes([_BYTES[character] for character in spelling])
    except KeyError:  # an added token, which stands in the vocabulary as it is
        return spelling.encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()


def _unknown_decoder(kinds: Sequence[str]) -> BundleError:
    named = ", ".join(kinds)
    return BundleError(
        f"the tokenizer turns tokens into text by a decoder that is not known ({named}); texts can be written with "
        "byte-level vocabularies and with SentencePiece's"
    )


def _refusal(error: BaseException, message: str) -> BaseException:
    """The error to raise: faults of the library, even a panic of its Rust code, are the bundle's; others pass."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return BundleError(f"{message} ({error}); convert the student again")
    return error
