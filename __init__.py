"""edgescribe: puts a distilled student language model on a small device and proves that it fits there.

On the device::

    import edgescribe
    student = edgescribe.load("bundle")
    print(student.classify("A patch for the network card's driver"))

The names below are imported when first used, so that an app pays only for what it calls.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    BundleError,
    DataError,
    EdgescribeError,
    EngineError,
    InputError,
    MissingExtraError,
    OutputError,
    OverBudgetError,
    ProfileError,
    RecipeError,
    StudentError,
    UsageError,
    WrongAnswerError,
)

if TYPE_CHECKING:
    from .sdk.load import load
    from .sdk.student import Classification, Student, Tag

__version__ = "0.1.0"

_LAZY = {
    "load": ".sdk.load",
    "Student": ".sdk.student",
    "Classification": ".sdk.student",
    "Tag": ".sdk.student",
}

__all__ = [
    "BundleError",
    "Classification",
    "DataError",
    "EdgescribeError",
    "EngineError",
    "InputError",
    "MissingExtraError",
    "OutputError",
    "OverBudgetError",
    "ProfileError",
    "RecipeError",
    "Student",
    "StudentError",
    "Tag",
    "UsageError",
    "WrongAnswerError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'edgescribe' has no attribute {name!r}")
    value = getattr(importlib.import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
