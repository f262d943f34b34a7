"""The wire format of Protocol Buffers, as far as reading ``.onnx`` files needs it, without any ONNX package."""

from __future__ import annotations

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def fields(message: memoryview) -> list[tuple[int, memoryview | int]]:
    """The fields of a message by number, in order: bytes as they are, whole numbers as such; others are left out.

    Raises:
        ValueError, IndexError: it is no message.
    """
    found: list[tuple[int, memoryview | int]] = []
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = varint(message, at)
            if size > len(message) - at:
                raise ValueError(f"a field of {size} bytes reaches behind the end")
            found.append((tag >> 3, message[at : at + size]))
            at += size
        elif kind == _VARINT:
            number, at = varint(message, at)
            found.append((tag >> 3, number))
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of unknown kind {kind}")
    return found


def parts(message: memoryview, field: int) -> list[memoryview]:
    """What of a message's fields of one number is bytes: texts, or messages again."""
    return [value for number, value in fields(message) if number == field and isinstance(value, memoryview)]


def numbers(message: memoryview, field: int) -> list[int]:
    """The whole numbers of a message's fields of one number, packed together or not."""
    found: list[int] = []
    for number, value in fields(message):
        if number == field:
            found += [value] if isinstance(value, int) else _packed(value)
    return found


def entries(message: memoryview, field: int, key: int = 1, value: int = 2) -> dict[str, str]:
    """Pairs of texts: messages, in the fields of one number, of a key and a value.

    Raises:
        IndexError, UnicodeDecodeError: they are none.
    """
    return {
        bytes(parts(pair, key)[-1]).decode(): bytes(parts(pair, value)[-1]).decode() for pair in parts(message, field)
    }


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it.

    Raises:
        ValueError, IndexError: there is none.
    """
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number longer than 64 bits")


def _packed(message: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(message):
        number, at = varint(message, at)
        found.append(number)
    return found
