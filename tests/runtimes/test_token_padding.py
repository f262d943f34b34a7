"""Token counts rounded up and padding taken off again, alone and in OpenVINO's session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgescribe.runtimes.contract import OpenOptions
from edgescribe.runtimes.registry import open_artifact
from edgescribe.runtimes.token_padding import TokenPadding, rounded_tokens
from hypothesis import given
from hypothesis import strategies as st


@given(tokens=st.integers(1, 600), most=st.integers(0, 600))
def test_rounding_goes_up_but_not_over_the_most(tokens: int, most: int) -> None:
    rounded = rounded_tokens(tokens, most)
    assert tokens <= rounded <= max(tokens, most)
    assert rounded_tokens(rounded, most) == rounded
    assert rounded < tokens + 32


def test_few_counts_are_left() -> None:
    assert len({rounded_tokens(tokens, 256) for tokens in range(1, 257)}) == 9


@given(tokens=st.integers(1, 20), extra=st.integers(0, 20), left=st.booleans())
def test_padding_is_zeros_on_its_side_and_comes_off(tokens: int, extra: int, left: bool) -> None:
    rows = np.arange(1, 2 * tokens + 1, dtype=np.int32).reshape(2, tokens)
    padding = TokenPadding(tokens, tokens + extra, left)
    padded = padding.add(rows)
    assert padded.shape == (2, tokens + extra)
    assert int((padded == 0).sum()) == 2 * extra
    np.testing.assert_array_equal(padding.remove(padded), rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("most", [None, 19, 512])
def test_openvino_gives_the_same_with_its_own_padding(
    openvino_file: Path, tiny: Any, feeds_for: Callable[..., dict[str, Any]], side: Any, most: int | None
) -> None:
    session = open_artifact("openvino", openvino_file, OpenOptions(threads=1, padding_side=side, max_tokens=most))
    for lengths in ((19, 3, 5), (7,) * 8, (2,) * 11, (20, 1), (33,)):
        feeds = feeds_for(lengths, side=side)
        got, expected = session.run(feeds), tiny.expected(feeds)
        for output, value in expected.items():
            np.testing.assert_allclose(got[output], value, atol=2e-5)
    session.close()
