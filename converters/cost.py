"""What a conversion will cost in time, memory and disk: an estimate from a few real training steps on this machine."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..sdk.measure import QUICK, Effort
from .advance import OnAdvance, part_of, unwatched
from .anatomy import Task
from .conversion_data import Texts, examples_of
from .conversion_request import Request
from .evaluate_summaries import EVALUATED_TEXTS
from .importance import BATCHES
from .language_metrics import foresee
from .predict import predict
from .prune import prune
from .recipe import Recipe
from .recover import with_relu
from .student import Student
from .summary_metrics import foresee_summaries
from .teacher_summaries import with_teacher_summaries
from .torch_decoder import graph_of
from .torch_graph import TorchGraph
from .training import Progress, calibrate, train
from .training_data import Example
from .workload import BYTES

MIB = 1 << 20
SAMPLE = 512
"""Training rows whose lengths stand for all."""

SUMMARIES = 64
"""Training rows that the teacher summarises for it to be timed."""

PROCESS_SECONDS = 3.0
"""What starting Python, an engine and a tokenizer takes at most for each measured process; a guess."""

STATE_BYTES = 16
"""Bytes of training state for one weight: the weight, two moments of AdamW, the best weight so far."""


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        seconds: by stage.
        updates: training steps by phase.
        peak_rss_mib: memory of this process after a few training steps.
        work_mib: stages on disk while the conversion goes on; they are removed at the end.
        bundle_mib: what stays: artifacts and tokenizer.
        parameters: weights of the student before and after pruning.
    """

    seconds: dict[str, float]
    updates: dict[str, int]
    peak_rss_mib: float
    work_mib: float
    bundle_mib: float
    parameters: tuple[int, int]

    @property
    def total_seconds(self) -> float:
        """All stages together."""
        return sum(self.seconds.values())


def estimate_cost(request: Request, effort: Effort = QUICK, on_advance: OnAdvance = unwatched) -> Cost:
    """Prune in memory with rough scores, time two training steps of each phase, and count. Writes nothing."""
    part = part_of(on_advance, "timing two training steps")
    part(0.0)
    recipe, student = request.recipe, request.student
    pruned = _roughly_pruned(request)
    train_count = len(request.train.texts)
    rows = request.train.part(range(0, train_count, max(1, train_count // SAMPLE)))
    examples = examples_of(rows, pruned, request.teacher, recipe.train_tokens, None, recipe.summary_tokens)
    tokens = sum(each.tokens for each in examples) / len(examples)
    typical = sorted(examples, key=lambda each: abs(each.tokens - tokens))
    part(0.2)
    seconds: dict[str, float] = {}
    updates: dict[str, int] = {}
    # A writer's long texts are trained on in several pieces each.
    pieces = train_count * len(examples) / len(rows.texts)
    steps_an_epoch = math.ceil(pieces / recipe.training.batch_size)
    phases = _phases(recipe, recipe.changes(student))
    for number, (name, precision, epochs) in enumerate(phases):
        graph = graph_of(pruned, precision)
        calibrate(graph, typical, count=1)
        step = _step_seconds(graph, typical, recipe, request.teacher)
        updates[name] = epochs * math.ceil(steps_an_epoch / recipe.training.accumulate)
        seconds[name] = epochs * steps_an_epoch * step
        part(0.2 + 0.6 * (number + 1) / len(phases))
    a_token = _seconds_a_token(graph_of(student), examples_of(request.validation.part([0]), student) + typical[:63])
    length = _mean_tokens(request.evaluation, student)
    validation = len(request.validation.texts) * tokens * a_token
    seconds["validation"] = validation * sum(epochs for _, _, epochs in phases) * recipe.training.evaluations
    if not recipe.pruning_of(student).is_empty:
        seconds["pruning"] = 3 * a_token * tokens * 32 * BATCHES
    runs = 2 if request.teacher is not student else 1
    evaluated = len(request.evaluation.texts)
    if student.task == "summarize":
        # Every text is read twice, to foresee its reference and to be summarised.
        evaluated = 2 * min(evaluated, EVALUATED_TEXTS)
        if recipe.training.epochs and recipe.teacher_summaries:
            written = recipe.teacher_summaries * train_count * _seconds_a_summary(request)
            seconds["the teacher writes summaries"] = written
    seconds["evaluating in torch"] = runs * evaluated * length * a_token
    processes = 2 * len(request.runtimes) + len(request.devices)
    answers = len(request.runtimes) * evaluated * length * a_token
    timed = (len(request.runtimes) + len(request.devices)) * (effort.seconds + PROCESS_SECONDS)
    seconds["evaluating on the engines"] = answers + timed + (processes - len(request.devices)) * PROCESS_SECONDS / 2
    part(1.0)
    weights = pruned.parameter_count()
    states = 2 * len(phases) * STATE_BYTES * weights
    bundle = len(request.runtimes) * BYTES[recipe.precision] * weights + len(pruned.tokenizer.to_str())
    return Cost(
        seconds=seconds,
        updates=updates,
        peak_rss_mib=_peak_rss_mib(),
        work_mib=(2 * 4 * weights + states + bundle) / MIB,
        bundle_mib=bundle / MIB,
        parameters=(student.parameter_count(), weights),
    )


def _roughly_pruned(request: Request) -> Student:
    """The student at its sizes after pruning; which units stay hardly matters to the time that training takes."""
    recipe, student = request.recipe, request.student
    pruning = recipe.pruning_of(student)
    if not pruning.is_empty:
        few = examples_of(request.train.part(range(min(16, len(request.train.texts)))), student, None, 32)
        student = prune(student, pruning, few, request.train.words(student) + request.validation.words(student))
    return with_relu(student) if recipe.relu else student


def _phases(recipe: Recipe, changed: bool) -> list[tuple[str, str, int]]:
    """Name, precision and epochs of what :func:`~edgescribe.converters.recover.recover` trains."""
    phases = []
    if changed and recipe.float_epochs and recipe.training.epochs:
        phases.append(("recovering in float", "fp32", recipe.float_epochs))
    if recipe.precision != "fp32" and recipe.training.epochs:
        phases.append(("training on the grid", recipe.precision, recipe.training.epochs))
    return phases


def _step_seconds(graph: TorchGraph, typical: Sequence[Example], recipe: Recipe, teacher: Student) -> float:
    """Mean time of one batch forth and back: two steps after a first one, which compiles kernels."""
    size = recipe.training.batch_size
    chosen = (list(typical) * math.ceil(3 * size / len(typical)))[: 3 * size]
    settings = replace(recipe.training, epochs=1, accumulate=1, patience=0, evaluations=1)
    moments: list[float] = []

    def note_time(_: Progress) -> None:
        moments.append(time.perf_counter())

    guide = graph_of(teacher).eval()
    train(graph, chosen, settings, teacher=guide, evaluate=lambda _: 0.0, report=note_time)
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def _seconds_a_token(graph: TorchGraph, examples: Sequence[Example]) -> float:
    count = sum(each.tokens for each in examples)
    runs: dict[Task, Callable[[TorchGraph, Sequence[Example]], object]] = {
        "generate": _foreseen,
        "summarize": foresee_summaries,
    }
    run = runs.get(graph.student.task, predict)
    run(graph, examples[:8])
    started = time.perf_counter()
    run(graph, examples)
    return (time.perf_counter() - started) / count


def _foreseen(graph: TorchGraph, examples: Sequence[Example]) -> None:
    """A writer's logits of all tokens together would not fit into memory; evaluation keeps the losses alone too."""
    foresee(graph, [each.ids for each in examples])


def _mean_tokens(texts: Texts, student: Student) -> float:
    count = len(texts.texts)
    examples = examples_of(texts.part(range(0, count, max(1, count // SAMPLE))), student)
    return sum(each.tokens for each in examples) / len(examples)


def _seconds_a_summary(request: Request) -> float:
    """What the teacher takes for one, of some written together."""
    recipe, texts = request.recipe, request.train.part(range(min(SUMMARIES, len(request.train.texts))))
    started = time.perf_counter()
    with_teacher_summaries(
        texts,
        request.teacher,
        share=1.0,
        beams=recipe.teacher_beams,
        max_tokens=recipe.train_tokens,
        summary_tokens=recipe.summary_tokens,
        seed=recipe.training.seed,
    )
    return (time.perf_counter() - started) / len(texts.texts)


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
