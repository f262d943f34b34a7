"""Reading device profiles: the catalogue's by name, any other by path, this machine's as ``host``."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ProfileError
from .schema import DeviceProfile
from .toml_text import toml_text

HOST = "host"
_MAX_BYTES = 1 << 20  # a profile is a few kilobytes; anything larger is another file given by mistake
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_UNKNOWN_KEY = re.compile(r"unknown field `([^`]+)`")
_NOT_A_QUANTITY = frozenset({"schema_version"})


def list_profiles() -> list[str]:
    """Names of the catalogue's profiles in alphabetical order, then ``host`` for the machine this runs on."""
    names = sorted(
        entry.name.removesuffix(".toml") for entry in _catalogue().iterdir() if entry.name.endswith(".toml")
    )
    return [*names, HOST]


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Read one profile.

    Args:
        name_or_path: a name of :func:`list_profiles`, or the path of a TOML file (it ends with ``.toml`` or has a
            slash). ``host`` measures this machine for about a second.

    Raises:
        ProfileError: no such profile (close names are suggested), or a file that does not follow the schema
            (the message names the file and the key).
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _load_file(Path(name_or_path))
    if text == HOST:
        from .measure import measure_profile

        return measure_profile(seconds=1.0)
    entry = _catalogue() / f"{text}.toml"
    if not _ID.fullmatch(text) or not entry.is_file():
        known = list_profiles()
        raise ProfileError(
            f"no device profile is called {text!r}{_suggestion(text, known)}. Known: {', '.join(known)}; "
            f"or give the path of a .toml file (edgescribe devices measure writes one)"
        )
    profile = parse_profile(entry.read_bytes(), f"{text}.toml of the catalogue")
    if profile.id != text:
        raise ProfileError(f"{text}.toml of the catalogue: id is {profile.id!r}, it must be the file's name")
    return profile


def parse_profile(content: bytes, where: str) -> DeviceProfile:
    """Decode TOML bytes strictly; ``where`` names their source in messages.

    Raises:
        ProfileError: not UTF-8, not TOML, an unknown or missing key, a wrong type, a number out of range,
            or a profile that contradicts itself.
    """
    if len(content) > _MAX_BYTES:
        raise ProfileError(f"{where}: {len(content)} bytes are too many for a device profile (at most {_MAX_BYTES})")
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProfileError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where}: not TOML: {error}") from error
    except (RecursionError, ValueError) as error:  # nested or written beyond what the parser takes
        raise ProfileError(f"{where}: not a readable TOML file: {error}") from error
    try:
        profile = msgspec.convert(document, DeviceProfile)
    except msgspec.ValidationError as error:
        raise ProfileError(f"{where}: {_explain(str(error))}") from error
    for problem in _contradictions(profile):
        raise ProfileError(f"{where}: {problem}")
    return profile


def profile_toml(profile: DeviceProfile) -> str:
    """The profile as the text of a TOML file; :func:`parse_profile` gives back an equal profile."""
    return toml_text(_without_empty(msgspec.to_builtins(profile)))


def unsourced_numbers(profile: DeviceProfile) -> list[str]:
    """Dotted paths of the profile's numbers that neither have a source nor lie in a table that has one."""
    document = msgspec.to_builtins(profile)
    return [path for path in _number_paths(document, "") if not any(p in profile.sources for p in _prefixes(path))]


def dangling_sources(profile: DeviceProfile) -> list[str]:
    """Paths in ``sources`` under which the profile has no number."""
    document = msgspec.to_builtins(profile)
    covered = {prefix for path in _number_paths(document, "") for prefix in _prefixes(path)}
    return [path for path in profile.sources if path not in covered]


def _catalogue() -> Any:
    return resources.files(f"{__package__}.catalogue")


def _load_file(path: Path) -> DeviceProfile:
    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise ProfileError(f"{path}: {path.stat().st_size} bytes are too many for a device profile")
        content = path.read_bytes()
    except FileNotFoundError as error:
        known = list_profiles()
        raise ProfileError(
            f"{path}: no such file{_suggestion(path.stem, known)}. Known profiles: {', '.join(known)}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ProfileError(f"{str(path)!r}: the device profile cannot be read: {error}") from error
    return parse_profile(content, str(path))


def _suggestion(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _explain(message: str) -> str:
    """msgspec's message with ``$.memory.total_mib`` as ``memory.total_mib``, and a hint for a misspelt key."""
    what, _, path = message.partition(" - at `")
    key = path.rstrip("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    where = f" (in {key})" if key else ""
    unknown = _UNKNOWN_KEY.search(what)
    if unknown is None:
        return f"{what[0].lower()}{what[1:]}{where}"
    return f"unknown key {unknown[1]!r}{where}{_suggestion(unknown[1], sorted(_all_keys()))}"


def _all_keys() -> set[str]:
    from . import schema

    tables = (t for t in vars(schema).values() if isinstance(t, type) and issubclass(t, msgspec.Struct))
    return {field for table in tables for field in table.__struct_fields__}


def _contradictions(profile: DeviceProfile) -> Iterator[str]:
    if not _ID.fullmatch(profile.id):
        yield f"id {profile.id!r} may have lower-case letters, digits and hyphens only (64 at most)"
    if not profile.clusters:
        yield "clusters is empty; describe at least one"
    if not profile.runtimes:
        yield "runtimes is empty; name at least one runtime that works on the device"
    cores = sum(cluster.count for cluster in profile.clusters.values())
    seen = set()
    for place, runtime in enumerate(profile.runtimes):
        if runtime.threads > cores:
            yield f"runtimes[{place}].threads is {runtime.threads}, but the device has {cores} cores"
        if runtime.device == "npu" and not any(a.kind == "npu" for a in profile.accelerators):
            yield f"runtimes[{place}].device is 'npu', but accelerators lists none"
        if (runtime.name, runtime.device) in seen:
            yield f"runtimes[{place}] repeats {runtime.name} on {runtime.device}"
        seen.add((runtime.name, runtime.device))


def _without_empty(node: Any) -> Any:
    """The document without empty arrays: the schema's default for every array that may be empty."""
    if isinstance(node, dict):
        return {key: _without_empty(value) for key, value in node.items() if value not in ([], ())}
    return [_without_empty(item) for item in node] if isinstance(node, list | tuple) else node


def _number_paths(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, bool) or path in _NOT_A_QUANTITY:
        return
    if isinstance(node, int | float):
        yield path
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _number_paths(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from _number_paths(value, f"{path}.{place}")


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))
