"""Reads the constants of .tflite files that the exporters wrote, by the engine's own schema."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from ...errors import BundleError
from ...runtimes.tflite_file import check_tflite
from ..quantized_weights import Grid, SiteGrids
from .litert_flatbuffer import DTYPES


@contextmanager
def telling_of_damage(path: Path) -> Iterator[None]:
    """What the generated reader runs into where a file is damaged becomes a BundleError."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error) as error:
        raise BundleError(f"{path} is a damaged .tflite ({error}): export it anew") from error


def read_model(path: Path) -> Any:
    """The file as the schema's objects, constants and all.

    Raises:
        BundleError: it is not a readable .tflite.
    """
    with telling_of_damage(path):
        check_tflite(path)
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def operator_code(model: Any, operator: Any) -> int:
    """An operator's number in the schema's ``BuiltinOperator``."""
    entry = model.operatorCodes[operator.opcodeIndex]
    return max(int(entry.builtinCode), int(entry.deprecatedBuiltinCode))


def tensor_data(model: Any, tensor: Any) -> NDArray[Any]:
    """A constant tensor's content in its shape; int4, which numpy does not have, as int8."""
    data = model.buffers[tensor.buffer].data
    flat = np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)
    if DTYPES[tensor.type] == "int4":
        # Sign extension: shifting left drops the upper half, shifting back keeps the sign.
        integers = np.stack([flat << np.uint8(4), flat & np.uint8(240)], 1).view(np.int8) >> 4
        return integers.reshape(tensor.shape)
    return flat.view(DTYPES[tensor.type]).reshape(tensor.shape)


def site_of(name: str) -> str:
    """The site of a tensor named ``<site>/output``, or ``<site>/output#2`` for a later call."""
    return name.rpartition("/output")[0]


def add_site(path: Path, sites: dict[str, SiteGrids], entering: Any, leaving: Any) -> None:
    """Add the grids of the int8 tensors that enter and leave a site, which the second is named after.

    Raises:
        BundleError: the site has other grids in ``sites``.
    """
    site = site_of(leaving.name.decode())
    grids = SiteGrids(_grid(entering), _grid(leaving))
    if sites.setdefault(site, grids) != grids:
        raise BundleError(f"{path} has two activation grids for {site!r}: export it anew")


def _grid(tensor: Any) -> Grid:
    return Grid(float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))


def agree(
    path: Path,
    held: dict[str, tuple[NDArray[np.int8], NDArray[np.float32]]],
    name: str,
    found: tuple[NDArray[np.int8], NDArray[np.float32]],
) -> None:
    """Put in what was found, or see that it equals what another signature held.

    Raises:
        BundleError: it does not.
    """
    before = held.setdefault(name, found)
    if not (np.array_equal(before[0], found[0]) and np.array_equal(before[1], found[1])):
        raise BundleError(f"{path} holds different numbers for {name!r} in different signatures: export it anew")
