"""Checks what a caller feeds a session, so that an engine never sees a name, type or shape it does not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .contract import TensorSpec


def checked_feeds(feeds: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> dict[str, NDArray[np.int32]]:
    """The feeds as C-contiguous int32 arrays in the order of ``inputs``, all of one shape ``[batch, tokens]``.

    Raises:
        InputError: a name is missing or unknown; an array is not int32, is empty, has a negative element, or a
            shape that the input does not take or that differs from the first input's.
    """
    names = [spec.name for spec in inputs]
    if missing := [name for name in names if name not in feeds]:
        raise InputError(f"the feeds lack {_listed(missing)}; the artifact takes {_listed(names)}")
    if unknown := [name for name in feeds if name not in names]:
        raise InputError(f"the artifact has no input {_listed(unknown)}; it takes {_listed(names)}")
    checked = {spec.name: _checked(feeds[spec.name], spec) for spec in inputs}
    first = names[0]
    for name, array in checked.items():
        if array.shape != checked[first].shape:
            raise InputError(
                f"{name} has shape {list(array.shape)} and {first} {list(checked[first].shape)}; make them the same"
            )
    return checked


def _checked(array: Any, spec: TensorSpec) -> NDArray[np.int32]:
    if not isinstance(array, np.ndarray) or array.dtype != np.int32:
        found = f"a numpy array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise InputError(f"{spec.name} is {found}; feed a numpy array of int32")
    fits = array.ndim == len(spec.shape) and all(
        size > 0 and want in (None, size) for size, want in zip(array.shape, spec.shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise InputError(f"{spec.name} has shape {list(array.shape)}; feed [{wanted}] without an empty axis")
    if array.min() < 0:
        # Engines read memory they should not for such an index, or wrap it round.
        raise InputError(f"{spec.name} holds {array.min()}; token ids, masks and types are 0 or greater")
    return np.ascontiguousarray(array)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
