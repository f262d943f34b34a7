"""What is to be converted, read and checked: everything that can be refused is refused before work starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..device_profiles.profiles import load_profile
from ..device_profiles.schema import DeviceProfile
from ..errors import EngineError, MissingExtraError, StudentError, UsageError
from ..runtimes.onnxruntime import products_saturate
from ..runtimes.registry import RUNTIMES, runtime
from .anatomy import Task
from .conversion_data import Texts, check_labels, hold_out, read_texts
from .plan import Plan, budget_of, make_plan, preferred_runtime
from .read import read_student
from .recipe import Recipe, read_recipe
from .student import Student
from .summary_data import with_prefix

WRITERS = {"onnxruntime": "onnx", "openvino": "openvino", "litert": "flatbuffers"}
"""The package that writes a runtime's artifacts."""


@dataclass(frozen=True)
class Request:
    """A conversion. ``plan`` is None where the recipe was given."""

    student: Student
    teacher: Student
    devices: tuple[DeviceProfile, ...]
    recipe: Recipe
    plan: Plan | None
    train: Texts
    validation: Texts
    evaluation: Texts
    runtimes: tuple[str, ...]


def read_request(
    student: str | Path,
    *,
    task: Task,
    devices: Sequence[str | Path],
    train: str | Path,
    evaluation: str | Path,
    validation: str | Path | None = None,
    teacher: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    prefix: str | None = None,
    allow_pickle: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Request:
    """Read the student, data, devices and recipe; see :func:`~edgescribe.converters.convert.convert`.

    Raises:
        InputError: a student, data file, profile or recipe that cannot be used, or that do not go together.
        UsageError: no device, or a runtime that is not known.
        EngineError: an engine is missing.
    """
    if not devices:
        raise UsageError("name at least one device profile (edgescribe devices list)")
    check_runtimes(runtimes)
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    read = read_student(student, task, allow_pickle=allow_pickle)
    guide = read if teacher is None else read_teacher(teacher, read, allow_pickle)
    train_texts, validation_texts = read_training_texts(read, train, validation, warn)
    evaluation_texts = read_texts(Path(evaluation), task, warn)
    check_labels(evaluation_texts, read.labels, Path(evaluation))
    profiles = tuple(load_profile(device) for device in dict.fromkeys(devices))
    plan = None
    if recipe is None:
        words = train_texts.words(read) + validation_texts.words(read)
        plan = make_plan(read, profiles, runtimes=runtimes, texts=words)
        recipe = plan.recipe
    recipe = with_prefix_given(recipe, task, prefix)
    if task == "summarize":
        same = guide is read
        read = with_prefix(read, recipe.prefix)
        guide = read if same else with_prefix(guide, recipe.prefix)
    runtimes = trusted_runtimes(runtimes, recipe.precision, warn)
    for profile in profiles:
        budget_of(profile, task)
        preferred_runtime(profile, recipe.precision, runtimes)
    return Request(
        read, guide, profiles, recipe, plan, train_texts, validation_texts, evaluation_texts, tuple(runtimes)
    )


def with_prefix_given(recipe: Recipe, task: Task, prefix: str | None) -> Recipe:
    """The recipe with the prefix that was asked for.

    Raises:
        UsageError: a prefix for another task than summarising.
    """
    if prefix is None:
        return recipe
    if task != "summarize":
        raise UsageError(f"a prefix is put before the texts of summarisers; the task is {task}")
    return replace(recipe, prefix=prefix)


def read_teacher(source: str | Path, student: Student, allow_pickle: bool = False) -> Student:
    """Read the teacher of a student; its classes are put in the student's order.

    Raises:
        StudentError: it cannot be read, or names other classes.
    """
    teacher = read_student(source, student.task, allow_pickle=allow_pickle)
    if set(teacher.labels) != set(student.labels):
        ours, theirs = set(student.labels), set(teacher.labels)
        raise StudentError(
            f"the teacher {source} names other classes than the student: {_some(theirs - ours)} it has alone, "
            f"{_some(ours - theirs)} the student has alone; a teacher must know the student's classes"
        )
    if teacher.labels != student.labels:
        teacher = read_student(source, student.task, labels=student.labels, allow_pickle=allow_pickle)
    return teacher


def read_training_texts(
    student: Student, train: str | Path, validation: str | Path | None, warn: Callable[[str], None] | None = None
) -> tuple[Texts, Texts]:
    """Texts to train and to validate on; without a validation file, a tenth of the training rows.

    Raises:
        DataError: a file cannot be used, or has labels that the student does not know.
    """
    texts = read_texts(Path(train), student.task, warn)
    check_labels(texts, student.labels, Path(train))
    if validation is None:
        return hold_out(texts, seed=0)
    held = read_texts(Path(validation), student.task, warn)
    check_labels(held, student.labels, Path(validation))
    return texts, held


def check_runtimes(runtimes: Sequence[str]) -> None:
    """See that runtimes are known and can be exported to and run here.

    Raises:
        UsageError: none, an unknown one, or one twice.
        EngineError: an engine is missing or does not work on this machine.
    """
    strange = sorted(set(runtimes) - set(RUNTIMES))
    if strange or not runtimes:
        raise UsageError(f"runtimes are {', '.join(RUNTIMES)}; got {', '.join(strange) or 'none'}")
    if len(set(runtimes)) < len(runtimes):
        raise UsageError(f"a runtime is named twice: {', '.join(runtimes)}")
    for name in runtimes:
        found = runtime(name).availability()
        if not found.available:
            raise EngineError(f"artifacts for {name} are checked by running them, and that fails here: {found.reason}")
        if importlib.util.find_spec(WRITERS[name]) is None:
            raise MissingExtraError(WRITERS[name], "convert")


def trusted_runtimes(
    runtimes: Sequence[str], precision: str, warn: Callable[[str], None] | None = None, root: Path = Path("/")
) -> tuple[str, ...]:
    """Those of the runtimes whose answers in a precision can be trusted on this machine; the others are warned of.

    OpenVINO's int8 products saturate on x86-64 without VNNI (docs/decisions/007), so that its artifact could not be
    checked here. ``root`` is where the machine's /proc lies.

    Raises:
        EngineError: none is left.
    """
    if precision == "fp32" or "openvino" not in runtimes or not products_saturate(root):
        return tuple(runtimes)
    left = tuple(name for name in runtimes if name != "openvino")
    said = "OpenVINO computes int8 wrongly on this CPU (x86-64 without VNNI)"
    if not left:
        raise EngineError(f"{said}, and no other runtime was asked for; take onnxruntime or litert, or recipe float")
    if warn is not None:
        warn(f"{said}: no artifact is made for it")
    return left


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (" …" if len(names) > 5 else "") if names else "none"
