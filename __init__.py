"""edgescribe: puts a distilled student language model on a small device and proves that it fits there.

On the device::

    import edgescribe
    student = edgescribe.load("bundle")
    print(student.classify("A patch for the network card's driver"))

    writer = edgescribe.load_writer("writer-bundle")
    for piece in writer.stream("Dear team, "):
        print(piece, end="", flush=True)

    summarizer = edgescribe.load_summarizer("summarizer-bundle")
    print(summarizer.summarize(report).text)

On the workbench (``pip install 'edgescribe[convert]'``), each stage of the command line is a function::

    edgescribe.convert("checkpoint", task="classify", devices=["raspberry-pi-5"],
                       train="train.jsonl", evaluation="test.jsonl", out="bundle")

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
    from .converters.advance import Advance
    from .converters.convert import Conversion, convert
    from .converters.evaluate_saved import Evaluation, evaluate
    from .converters.export_checkpoint import export_checkpoint
    from .converters.plan import Plan, plan_conversion
    from .converters.prune import Pruning
    from .converters.prune_checkpoint import PrunedCheckpoint, prune_checkpoint
    from .converters.recipe import Recipe, read_recipe
    from .converters.recover_checkpoint import RecoveredCheckpoint, recover_checkpoint
    from .sdk.bundle import Bundle
    from .sdk.generation import Generation
    from .sdk.load import load, load_summarizer, load_writer
    from .sdk.long_text import LongProgress, LongSummary
    from .sdk.sentences import sentences
    from .sdk.student import Classification, Student, Tag
    from .sdk.summarizer import Summarizer
    from .sdk.summary_run import Summary
    from .sdk.transcripts import read_transcript, transcript_turns
    from .sdk.turn import TranscriptReport, Turn
    from .sdk.writer import Writer

__version__ = "0.1.0"

_LAZY = {
    "load": ".sdk.load",
    "load_writer": ".sdk.load",
    "load_summarizer": ".sdk.load",
    "Summarizer": ".sdk.summarizer",
    "Summary": ".sdk.summary_run",
    "LongSummary": ".sdk.long_text",
    "LongProgress": ".sdk.long_text",
    "read_transcript": ".sdk.transcripts",
    "transcript_turns": ".sdk.transcripts",
    "Turn": ".sdk.turn",
    "TranscriptReport": ".sdk.turn",
    "sentences": ".sdk.sentences",
    "Writer": ".sdk.writer",
    "Generation": ".sdk.generation",
    "Bundle": ".sdk.bundle",
    "Student": ".sdk.student",
    "Classification": ".sdk.student",
    "Tag": ".sdk.student",
    "convert": ".converters.convert",
    "Conversion": ".converters.convert",
    "Advance": ".converters.advance",
    "plan_conversion": ".converters.plan",
    "Plan": ".converters.plan",
    "prune_checkpoint": ".converters.prune_checkpoint",
    "PrunedCheckpoint": ".converters.prune_checkpoint",
    "Pruning": ".converters.prune",
    "recover_checkpoint": ".converters.recover_checkpoint",
    "RecoveredCheckpoint": ".converters.recover_checkpoint",
    "export_checkpoint": ".converters.export_checkpoint",
    "evaluate": ".converters.evaluate_saved",
    "Evaluation": ".converters.evaluate_saved",
    "Recipe": ".converters.recipe",
    "read_recipe": ".converters.recipe",
}

__all__ = [
    "Advance",
    "Bundle",
    "BundleError",
    "Classification",
    "Conversion",
    "DataError",
    "EdgescribeError",
    "EngineError",
    "Evaluation",
    "Generation",
    "InputError",
    "LongProgress",
    "LongSummary",
    "MissingExtraError",
    "OutputError",
    "OverBudgetError",
    "Plan",
    "ProfileError",
    "PrunedCheckpoint",
    "Pruning",
    "Recipe",
    "RecipeError",
    "RecoveredCheckpoint",
    "Student",
    "StudentError",
    "Summarizer",
    "Summary",
    "Tag",
    "TranscriptReport",
    "Turn",
    "UsageError",
    "Writer",
    "WrongAnswerError",
    "__version__",
    "convert",
    "evaluate",
    "export_checkpoint",
    "load",
    "load_summarizer",
    "load_writer",
    "plan_conversion",
    "prune_checkpoint",
    "read_recipe",
    "read_transcript",
    "recover_checkpoint",
    "sentences",
    "transcript_turns",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'edgescribe' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module, __name__), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not module.startswith(".converters") or package in ("", __name__):
            raise
        raise MissingExtraError(package, "convert") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
