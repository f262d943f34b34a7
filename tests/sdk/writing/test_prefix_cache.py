"""Caches on disk: found again, never wrong, never larger than allowed, and no trouble where they cannot be kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.runtimes.decoder_contract import CacheState
from edgescribe.sdk.prefix_cache import PrefixCache
from edgescribe.sdk.text_codec import TextCodec
from edgescribe.sdk.writer import Writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IDENTITY = ("sha", "engine", "1.0")


def state_of(tokens: list[int], size: int = 100) -> CacheState:
    draw = np.random.default_rng(len(tokens))
    arrays: dict[str, Any] = {
        "0.key": draw.normal(size=(2, len(tokens), size)).astype(np.float32),
        "0.scale": draw.normal(size=(3,)).astype(np.float16),
        "1.value": draw.integers(-128, 127, size=(len(tokens), 1), dtype=np.int8),
        "flat": np.array(5, np.int64),
        "none": np.zeros((0, 4), np.float32),
    }
    return CacheState(np.array(tokens, np.int32), arrays)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def test_longest_beginning_is_found(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path / "new" / "folder", IDENTITY)
    assert cache.find([1, 2, 3], [1, 2, 3]) is None
    for tokens in ([1, 2], [1, 2, 3, 4], [1, 2, 3, 9], [7]):
        cache.keep(state_of(tokens))
    again = PrefixCache(tmp_path / "new" / "folder", IDENTITY)
    found = again.find([1, 2, 3, 4, 5], range(6))
    assert found is not None
    assert found.tokens.tolist() == [1, 2, 3, 4]
    kept = state_of([1, 2, 3, 4])
    assert found.arrays.keys() == kept.arrays.keys()
    for name, array in kept.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
    shorter = again.find([1, 2, 3, 4, 5], [2, 3, 5])
    assert shorter is not None
    assert shorter.tokens.tolist() == [1, 2]
    assert again.find([2, 1], [0, 1, 2, 3]) is None
    assert PrefixCache(tmp_path / "new" / "folder", ("sha", "engine", "1.1")).find([1, 2], [2]) is None
    assert not list(tmp_path.rglob("*.part"))


def test_size_is_limited_and_those_used_longest_ago_go(tmp_path: Path) -> None:
    size = 4 << 20
    cache = PrefixCache(tmp_path, IDENTITY, limit_bytes=3 * size)
    one = {number: state_of([number], size // 8) for number in range(4)}
    for number in range(2):
        cache.keep(one[number])
        for path in files_in(tmp_path):
            old = path.stat().st_mtime - 100
            os.utime(path, (old, old))
    assert cache.find([0], [1]) is not None  # now used later than the other
    cache.keep(one[2])
    assert cache.find([1], [1]) is None
    assert cache.find([0], [1]) is not None
    assert cache.find([2], [1]) is not None
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 3 * size
    (tmp_path / "other.txt").write_text("kept")
    cache.keep(state_of([3], size))  # larger than all that is allowed
    assert cache.find([3], [1]) is None
    assert (tmp_path / "other.txt").read_text() == "kept"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_damaged_files_are_not_used_and_go(tmp_path: Path, place: float, change: int, cut: bool) -> None:
    cache = PrefixCache(tmp_path, IDENTITY)
    cache.keep(state_of([1, 2, 3], 3))
    (path,) = files_in(tmp_path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= change
    path.write_bytes(content)
    assert cache.find([1, 2, 3], [3]) is None
    assert not files_in(tmp_path)


def test_what_else_a_file_may_be(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, IDENTITY)
    cache.keep(state_of([1]))
    cache.keep(state_of([2]))
    one, two = files_in(tmp_path)
    two.write_bytes(one.read_bytes())  # a cache under another's name
    assert sum(cache.find([token], [1]) is not None for token in (1, 2)) == 1
    cache.keep(state_of([1]))
    for path in files_in(tmp_path):
        path.unlink()
        path.mkdir()
    assert cache.find([1], [1]) is None
    stale, fresh = tmp_path / "kv-old.part", tmp_path / "kv-new.part"
    for path in (stale, fresh):
        path.write_bytes(b"x")
    os.utime(stale, (1, 1))
    cache.keep(state_of([5]))
    assert not stale.exists()
    assert fresh.exists()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    cache = PrefixCache(blocked, IDENTITY)
    cache.keep(state_of([1]))
    assert cache.find([1], [1]) is None
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        PrefixCache(folder, IDENTITY).keep(state_of([1]))
        assert not list(folder.iterdir())


TALK = [{"role": "system", "content": "Answer in short sentences, and never lie."}]


@pytest.fixture
def talking(torch_session: Any, codec: TextCodec, tmp_path: Path) -> Any:
    """Opens a writer with the cache folder anew; gives it and its session."""
    from typing import Final

    template: Final = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

    def start() -> tuple[Writer, Any]:
        session = torch_session()
        cache = PrefixCache(tmp_path / "cache", IDENTITY)
        return Writer(session, codec, end_tokens=[2], chat_template=template, prefixes=cache), session

    return start


def test_system_prompt_is_computed_once(talking: Any, tmp_path: Path) -> None:
    first, session = talking()
    result = first.chat([*TALK, {"role": "user", "content": "Why?"}], max_new_tokens=5)
    assert result.reused_tokens == 0
    assert len(files_in(tmp_path / "cache")) == 1
    whole = sum(session.runs)

    second, session = talking()
    again = second.chat([*TALK, {"role": "user", "content": "Why?"}], max_new_tokens=5)
    assert again.reused_tokens > 20
    assert sum(session.runs) == whole - again.reused_tokens
    assert again.tokens == result.tokens

    other = second.chat([*TALK, {"role": "user", "content": "How?"}], max_new_tokens=5)
    assert other.reused_tokens == again.reused_tokens  # from memory
    third, _ = talking()
    assert third.chat([*TALK, {"role": "user", "content": "How?"}], max_new_tokens=5).tokens == other.tokens
    assert len(files_in(tmp_path / "cache")) == 1


def test_caches_of_another_build_count_as_none(talking: Any, codec: TextCodec, tmp_path: Path) -> None:
    first, _ = talking()
    messages = [*TALK, {"role": "user", "content": "Why?"}]
    result = first.chat(messages, max_new_tokens=5)
    shared = first.chat(messages, max_new_tokens=0).prompt_tokens and first._tokens(messages)[1]
    tokens = first.prompt_tokens(messages)[:shared]
    PrefixCache(tmp_path / "cache", IDENTITY).keep(CacheState(np.array(tokens, np.int32), {"strange": np.zeros(3)}))
    second, _ = talking()
    again = second.chat(messages, max_new_tokens=5)
    assert again.tokens == result.tokens
    assert again.reused_tokens == 0
