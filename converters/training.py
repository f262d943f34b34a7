"""The training loop: ``accelerate`` underneath, so that one machine or many is ``accelerate launch`` (on CPUs alone,
``torchrun`` with ``ACCELERATE_USE_CPU=true``, which needs no MPI).

Order of data, weights and dropout follow the seed. Every so often the whole state goes to a checkpoint folder
(written aside, then renamed); a run that was killed takes it up and comes to the same losses. Ctrl-C waits for
the step to end and keeps the state first.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..errors import InputError
from .distillation import Distillation, DistillationWeights
from .fake_quantize import StaticQuantizer
from .kept_memory import memory_kept
from .output_errors import output_errors
from .torch_graph import Recording, TorchGraph
from .training_data import Batch, Example, batch_orders, collate
from .writing_data import teacher_rows


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    ``epochs``: passes over the data; ``batch_size`` texts a step on each process, ``accumulate`` steps before one
    update; ``learning_rate`` at the top of a cosine schedule after ``warmup`` (share of all updates); ``clip``:
    largest gradient norm; ``patience``: evaluations without gain before stopping early (0: never);
    ``evaluations``: how many in an epoch; ``mixed_precision``: bf16 where the machine computes it natively.
    ``checkpoint_seconds``: least time between two checkpoints.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    dropout: float = 0.0
    patience: int = 0
    evaluations: int = 1
    seed: int = 0
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    checkpoint_seconds: float = 120.0
    losses: DistillationWeights = field(default_factory=DistillationWeights)


@dataclass(frozen=True)
class Progress:
    """Where a training run is: update ``step`` of ``steps``, loss of late (running mean), seconds left at this rate."""

    step: int
    steps: int
    loss: float
    score: float | None
    seconds_left: float


@dataclass
class TrainingResult:
    """What came out: the graph holds the best weights; ``history`` has one row an evaluation, ``losses`` one a step."""

    graph: TorchGraph
    best_score: float
    history: list[dict[str, float]]
    losses: list[float]
    steps: int
    seconds: float


class _Counters:
    """What the loop must remember across a kill beside weights, optimiser and random state."""

    def __init__(self) -> None:
        self.step = 0
        self.best = -math.inf
        self.stale = 0
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.best_state: dict[str, torch.Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def native_bf16() -> bool:
    """Whether bf16 products are computed natively here (a GPU's, or a CPU's AVX512-BF16 or AMX)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(errors="replace") if flags.is_file() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def _optimiser_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def calibrate(graph: TorchGraph, examples: Sequence[Example], batch_size: int = 32, count: int = 8) -> None:
    """Let static quantizers observe ``count`` batches spread over the examples, then start them."""
    if not any(isinstance(each, StaticQuantizer) for each in graph.inputs.values()):
        return
    graph.eval()
    step = max(1, len(examples) // (count * batch_size))
    chosen = list(examples[::step])[: count * batch_size]
    with torch.no_grad():
        for start in range(0, len(chosen), batch_size):
            graph.run(collate(chosen[start : start + batch_size], graph.student, None).feeds)
    graph.start_quantizers()


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _save(accelerator: Accelerator, folder: Path, step: int) -> None:
    aside = folder / "writing"
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with output_errors(folder):
            accelerator.save_state(str(aside), safe_serialization=False)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        target = folder / f"step-{step}"
        with output_errors(folder):
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        for older in _checkpoints(folder)[:-1]:
            shutil.rmtree(older, ignore_errors=True)


@contextmanager
def _interrupt_held_back(held: bool) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether Ctrl-C was pressed; a second press interrupts at once.

    Where the program handles it itself, or off the main thread, nothing is held back.
    """
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    ours = threading.current_thread() is threading.main_thread()
    if not (held and ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Vanishing gradients become denormal numbers, which CPUs compute very slowly; the process has them back after."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_flushed()
def train(
    graph: TorchGraph,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    teacher: TorchGraph | None = None,
    evaluate: Callable[[TorchGraph], float],
    checkpoints: Path | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train ``graph`` on ``examples``; the weights of the best evaluation are in it afterwards.

    Args:
        teacher: a graph of the same task whose outputs (and insides) the student learns; None: labels alone.
        evaluate: higher is better; called on a graph in evaluation mode.
        checkpoints: folder for the state; with ``resume`` the newest one there is taken up.

    Raises:
        InputError: no examples, ``resume`` without a folder, or checkpoints of another run in it.
        OutputError: a checkpoint cannot be written.
        KeyboardInterrupt: Ctrl-C; with ``checkpoints`` the state is kept first.
    """
    if not examples:
        raise InputError("there is nothing to train on: the training data has no usable rows")
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if native_bf16() else "no"
    AcceleratorState._reset_state()  # else it refuses another precision than the process's first training had
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    set_seed(settings.seed)
    graph.dropout = settings.dropout
    writes = graph.student.task in ("generate", "summarize")
    losses = Distillation(
        graph.student.task,
        graph.shape,
        teacher.shape if teacher is not None else None,
        settings.losses,
        teacher_rows(graph.student, teacher.student) if teacher is not None and writes else None,
    )
    shares = accelerator.num_processes
    lengths = [each.tokens for each in examples]
    updates_an_epoch = math.ceil(math.ceil(len(examples) / settings.batch_size) / (shares * settings.accumulate))
    updates = updates_an_epoch * settings.epochs
    trained = nn.ModuleDict({"graph": graph, "losses": losses})
    optimiser = torch.optim.AdamW(_optimiser_groups(trained, settings.weight_decay), lr=settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimiser, round(settings.warmup * updates), updates)
    model, losses_model, optimiser = accelerator.prepare(graph, losses, optimiser)
    counters = _Counters()
    accelerator.register_for_checkpointing(schedule, counters)
    fingerprint = {"examples": len(examples), "updates": updates, "seed": settings.seed, "precision": graph.precision}
    if checkpoints is not None:
        _prepare_checkpoints(accelerator, checkpoints, resume, fingerprint)
    elif resume:
        raise InputError("there is no folder of checkpoints to resume from; name one")
    looks_inside = teacher is not None and settings.losses.looks_inside
    is_taught = teacher is not None and (settings.losses.soft > 0 or looks_inside)
    started = saved = time.monotonic()
    first = counters.step
    if teacher is not None:
        teacher.eval()

    guide = teacher.student if teacher is not None else None
    # What prepare() wraps a model in makes float32 of all logits; where there are no processes to talk to, go without.
    forward = graph.run if shares == 1 else model

    def loss_of(batch: Batch) -> torch.Tensor:
        recording = Recording() if looks_inside else None
        seen, shown = None, Recording() if looks_inside else None
        with accelerator.autocast():
            if is_taught and teacher is not None and batch.teacher_feeds is not None:
                with torch.no_grad():
                    seen = teacher.run(batch.teacher_feeds, shown)
            outputs = forward(batch.feeds, recording)
        mask, source_mask = batch.feeds["attention_mask"], batch.feeds.get("source_mask")
        loss: torch.Tensor = losses_model(
            outputs, mask, batch.labels, recording, seen, shown, batch.places, source_mask
        )
        return loss

    stop = settings.patience > 0 and counters.stale >= settings.patience
    marks = {round(updates_an_epoch * (part + 1) / settings.evaluations) for part in range(settings.evaluations)}
    held = checkpoints is not None and shares == 1
    with memory_kept() as give_up_if_short, _interrupt_held_back(held) as interrupted:
        for epoch in range(settings.epochs):
            if stop:
                break
            order = batch_orders(lengths, settings.batch_size, settings.seed, epoch)
            mine = order[accelerator.process_index :: shares]
            for update in range(updates_an_epoch):
                step = epoch * updates_an_epoch + update + 1
                if step <= counters.step:
                    continue
                # Every process does as many batches; one that ran out takes its first again.
                parts = mine[update * settings.accumulate : (update + 1) * settings.accumulate] or mine[:1] or order[:1]
                total = 0.0
                model.train()
                for part in parts:
                    loss = loss_of(collate([examples[i] for i in part], graph.student, guide))
                    accelerator.backward(loss / len(parts))
                    total += float(loss.detach()) / len(parts)
                if settings.clip > 0:
                    accelerator.clip_grad_norm_(trained.parameters(), settings.clip)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
                give_up_if_short()
                counters.step = step
                counters.losses.append(total)
                score = None
                if update + 1 in marks:
                    score = _evaluate(accelerator, graph, evaluate, counters, epoch)
                    stop = settings.patience > 0 and counters.stale >= settings.patience
                if report is not None and accelerator.is_main_process:
                    pace = (time.monotonic() - started) / max(1, step - first)
                    late = counters.losses[-20:]
                    report(Progress(step, updates, sum(late) / len(late), score, pace * (updates - step)))
                due = time.monotonic() - saved >= settings.checkpoint_seconds
                if checkpoints is not None and (due or stop or step == updates or interrupted()):
                    _save(accelerator, checkpoints, step)
                    saved = time.monotonic()
                if interrupted():
                    raise KeyboardInterrupt
                if stop:
                    break
    if counters.best_state is not None:
        graph.load_state_dict(counters.best_state)
    graph.eval()
    return TrainingResult(
        graph, counters.best, counters.history, counters.losses, counters.step, time.monotonic() - started
    )


def _evaluate(
    accelerator: Accelerator,
    graph: TorchGraph,
    evaluate: Callable[[TorchGraph], float],
    counters: _Counters,
    epoch: int,
) -> float:
    graph.eval()
    with torch.no_grad():
        score = evaluate(graph)
    late = counters.losses[-20:]
    counters.history.append(
        {"step": counters.step, "epoch": epoch + 1, "loss": sum(late) / len(late), "score": score}
    )
    if score > counters.best:
        counters.best, counters.stale = score, 0
        counters.best_state = {name: value.detach().clone() for name, value in graph.state_dict().items()}
    else:
        counters.stale += 1
    accelerator.wait_for_everyone()
    return score


def _prepare_checkpoints(
    accelerator: Accelerator, folder: Path, resume: bool, fingerprint: dict[str, Any]
) -> None:
    """Make the folder, or take up the newest state in it."""
    record = folder / "run.json"
    present = _checkpoints(folder) if folder.is_dir() else []
    if resume and present:
        known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
        if known != fingerprint:
            raise InputError(
                f"the checkpoints in {folder} belong to another run ({known}, now {fingerprint}); "
                "remove the folder or start without --resume"
            )
        accelerator.load_state(str(present[-1]))
        return
    if accelerator.is_main_process:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for stale in present:
                shutil.rmtree(stale)
            record.write_text(json.dumps(fingerprint), encoding="utf-8")

