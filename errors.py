"""Every error that edgescribe raises on purpose, one class for each exit code of the command line.

A message says what was found, where, and what to do next. Callers may catch :class:`EdgescribeError`
for all of them, or the class of one exit code. An exception outside this tree is a fault of ours
(exit code 1).
"""

from __future__ import annotations


class EdgescribeError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(EdgescribeError):
    """The call itself is wrong: an unknown option value, options that exclude each other."""

    exit_code = 2


class OverBudgetError(EdgescribeError):
    """A measured or estimated figure is over what the device profile grants."""

    exit_code = 3


class InputError(EdgescribeError):
    """Something that the user handed in cannot be used."""

    exit_code = 4


class StudentError(InputError):
    """A checkpoint is missing, damaged, of an unknown family or of the wrong kind for the task."""


class DataError(InputError):
    """A data file is missing, unreadable, or has too many bad rows."""


class BundleError(InputError):
    """A bundle is damaged, was altered, comes from another version, or lacks what was asked of it."""


class ProfileError(InputError):
    """A device profile is unknown or does not follow the schema."""


class RecipeError(InputError):
    """A recipe asks for something that this student does not have or cannot give."""


class OutputError(InputError):
    """The output exists already, or its folder cannot be written (read-only, full)."""


class EngineError(EdgescribeError):
    """An engine cannot do what was asked of it on this machine."""

    exit_code = 5


class MissingExtraError(EngineError):
    """A package is not installed; the message names the extra of edgescribe that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"the package {package!r} is not installed here; install it with: pip install 'edgescribe[{extra}]'"
        )


class WrongAnswerError(EngineError):
    """An engine opened an artifact and did not give the bundle's known answer: its results cannot be trusted."""
