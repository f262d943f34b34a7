"""Writing TOML 1.0: the few kinds of value that a device profile has.

The standard library reads TOML (``tomllib``) but does not write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_LINE = 100  # characters of an array before its items go on lines of their own


def toml_text(document: Mapping[str, Any]) -> str:
    """The document as TOML text.

    Args:
        document: strings, booleans, integers, floats, sequences and mappings with string keys. A None is left out,
            for TOML has no such value.

    Raises:
        TypeError: a value of another type, a None inside a sequence, or an infinite or undefined float.
    """
    lines: list[str] = []
    _table(document, (), lines)
    return "\n".join(lines).strip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    """Values first: what follows a ``[header]`` would belong to that header's table."""
    nested = {}
    for key, value in table.items():
        if _is_nested(value):
            nested[key] = value
        elif value is not None:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in nested.items():
        header = ".".join(_key(part) for part in (*path, key))
        for item, bracketed in (
            ((value, f"[{header}]"),) if isinstance(value, Mapping) else ((entry, f"[[{header}]]") for entry in value)
        ):
            if bracketed.startswith("[[") or not item or any(not _is_nested(entry) for entry in item.values()):
                lines += ["", bracketed]  # a table of tables alone needs no header of its own
            _table(item, (*path, key), lines)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_table_array(value)


def _is_table_array(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(item, Mapping) for item in value)
    )


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, Sequence):
        items = [_value(item) for item in value]
        text = f"[{', '.join(items)}]"
        return text if len(text) <= _LINE else "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    raise TypeError(f"TOML cannot hold {value!r}")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(character: str) -> str:
    code = ord(character)
    if code < 32 or code == 127:
        return _ESCAPES.get(character) or f"\\u{code:04x}"
    return _ESCAPES.get(character, character)
