"""Recovery of summarisers: losses of both halves, every grid, trimmed vocabularies, kills and resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgescribe.converters.conversion_data import examples_of, read_texts
from edgescribe.converters.distillation import Distillation, DistillationWeights, layer_maps
from edgescribe.converters.freeze import freeze
from edgescribe.converters.prune import Pruning, prune
from edgescribe.converters.recipe import Recipe, Shares
from edgescribe.converters.recover_summarizer import KEPT_SUMMARIES, recover_summarizer
from edgescribe.converters.summary_metrics import scorer
from edgescribe.converters.torch_decoder import graph_of
from edgescribe.converters.torch_graph import Recording
from edgescribe.converters.training import TrainingSettings
from edgescribe.converters.training_data import collate

LOSSES = DistillationWeights(soft=1.0, hidden=0.3, attention=0.0, labels=0.5, temperature=1.0)
TRAINING = TrainingSettings(epochs=1, batch_size=16, learning_rate=5e-3, mixed_precision="no", losses=LOSSES)
RECIPE = Recipe(
    "small", "w4a8-dynamic", keep=Shares(vocabulary=False), training=TRAINING, train_tokens=48, summary_tokens=16,
    teacher_summaries=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(summary_files: Any) -> tuple[Any, Any]:
    train = read_texts(summary_files.train, "summarize")
    return train, read_texts(summary_files.validation, "summarize")


@pytest.fixture(scope="module")
def shallow(summarizer: Any, texts: tuple[Any, Any]) -> Any:
    examples = examples_of(texts[0].part(range(64)), summarizer)
    return prune(summarizer, Pruning(decoder_layers=1, neurons=64), examples, [])


def test_each_half_has_a_layer_map_of_its_own(summarizer: Any, shallow: Any) -> None:
    # The embeddings of the decoder count behind the encoder's last layer.
    assert layer_maps(summarizer.shape, summarizer.shape) == (0, 1, 2, 3, 4, 5)
    assert layer_maps(shallow.shape, summarizer.shape) == (0, 1, 2, 3, 5)
    assert layer_maps(replace(summarizer.shape, layers=1), replace(summarizer.shape, decoder_layers=6)) == (
        0, 2, 3, 6, 9,
    )  # fmt: skip


def test_a_student_that_is_its_teacher_has_nothing_to_learn(summarizer: Any, texts: tuple[Any, Any]) -> None:
    examples = examples_of(texts[0].part(range(8)), summarizer, summarizer)
    batch = collate(examples, summarizer, summarizer)
    graph, losses = graph_of(summarizer).eval(), replace(LOSSES, labels=0.0)
    distillation = Distillation("summarize", graph.shape, graph.shape, losses)
    recording, shown = Recording(), Recording()
    with torch.no_grad():
        outputs, seen = graph.run(batch.feeds, recording), graph.run(batch.feeds, shown)
        assert sorted(recording.hidden) == list(range(6))
        loss = distillation(
            outputs, batch.feeds["attention_mask"], batch.labels, recording, seen, shown, batch.places,
            batch.feeds["source_mask"],
        )  # fmt: skip
        assert float(loss) == pytest.approx(0, abs=1e-5)
        # A change in the encoder alone is seen, and one in padding is not.
        padding = shown.hidden[1] + 5.0 * (1 - batch.feeds["source_mask"])[:, :, None]
        shown.hidden[1] = padding
        again = distillation(
            outputs, batch.feeds["attention_mask"], batch.labels, recording, seen, shown, batch.places,
            batch.feeds["source_mask"],
        )  # fmt: skip
        assert float(again) == pytest.approx(0, abs=1e-5)
        shown.hidden[1] = shown.hidden[1] * 1.5
        changed = distillation(
            outputs, batch.feeds["attention_mask"], batch.labels, recording, seen, shown, batch.places,
            batch.feeds["source_mask"],
        )  # fmt: skip
        assert float(changed) > 1e-3


def test_a_trimmed_student_learns_its_teachers_likelihoods(
    summarizer: Any, trimmed: Any, texts: tuple[Any, Any]
) -> None:
    from edgescribe.converters.writing_data import teacher_rows

    examples = examples_of(texts[0].part(range(8)), trimmed, summarizer)
    batch = collate(examples, trimmed, summarizer)
    rows = teacher_rows(trimmed, summarizer)
    assert rows is not None
    losses = DistillationWeights(soft=1.0, hidden=1.0, attention=0.0, labels=0.0, temperature=1.0)
    distillation = Distillation("summarize", trimmed.shape, summarizer.shape, losses, rows)
    ours, theirs = Recording(), Recording()
    with torch.no_grad():
        assert batch.teacher_feeds is not None
        outputs = graph_of(trimmed).eval().run(batch.feeds, ours)
        seen = graph_of(summarizer).eval().run(batch.teacher_feeds, theirs)
        loss = distillation(
            outputs, batch.feeds["attention_mask"], batch.labels, ours, seen, theirs, batch.places,
            batch.feeds["source_mask"],
        )  # fmt: skip
    # Of tokens that left, the likelihood is shared out among those that stayed: next to none here.
    assert float(loss) == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["w8a8-dynamic", "w4a8-dynamic", "w8a8-static"])
def test_what_was_pruned_comes_back_on_every_grid(
    summarizer: Any, shallow: Any, texts: tuple[Any, Any], precision: Any
) -> None:
    recipe = replace(RECIPE, precision=precision, float_epochs=2)
    validation = examples_of(texts[1], summarizer)
    stages: list[str] = []
    found = recover_summarizer(
        shallow, summarizer, recipe, *texts, changed=True, on_advance=lambda each: stages.append(each.stage)
    )
    assert [name for name, _ in found.phases] == ["float", "grid"]
    assert found.graph.precision == precision
    before, after = scorer(validation)(graph_of(shallow)), scorer(validation)(found.graph)
    assert after > before / 4  # nats a token, negative
    weights = freeze(found.graph)
    assert weights.precision == precision
    assert bool(weights.sites) == (precision == "w8a8-static")
    assert bool(weights.blocks) == (precision == "w4a8-dynamic")
    wanted = ["the teacher writes summaries", "cutting texts into tokens", "recovering in float"]
    assert [stage for stage in dict.fromkeys(stages) if stage in wanted] == wanted


def test_without_epochs_it_is_rounded_alone(summarizer: Any, texts: tuple[Any, Any]) -> None:
    for precision in ("w4a8-dynamic", "w8a8-static"):
        recipe = replace(RECIPE, precision=precision, training=replace(TRAINING, epochs=0))
        found = recover_summarizer(summarizer, summarizer, recipe, *texts, changed=False)
        assert found.phases == ()
        examples = examples_of(texts[1], summarizer)
        assert scorer(examples)(found.graph) > scorer(examples)(graph_of(summarizer)) - 0.5


KILLED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from edgescribe.converters.conversion_data import read_texts
from edgescribe.converters.read import read_student
from edgescribe.converters.recipe import Recipe, Shares
from edgescribe.converters.recover_summarizer import recover_summarizer
from edgescribe.converters.distillation import DistillationWeights
from edgescribe.converters.training import TrainingSettings

folder, train, validation, states, resume = sys.argv[1:]
student = read_student(folder, "summarize")
losses = DistillationWeights(soft=1.0, hidden=0.3, attention=0.0, labels=0.5)
training = TrainingSettings(
    epochs=2, batch_size=16, dropout=0.1, evaluations=2, checkpoint_seconds=0.0, learning_rate=1e-3, losses=losses
)
recipe = Recipe("small", "w4a8-dynamic", Shares(vocabulary=False), training=training, train_tokens=48,
                summary_tokens=16, teacher_summaries=0.5)
rows = read_texts(Path(train), "summarize").part(range(96))
found = recover_summarizer(
    student, student, recipe, rows, read_texts(Path(validation), "summarize"), changed=False,
    checkpoints=Path(states), resume=resume == "resume",
    on_advance=lambda each: print(each.stage, round(each.fraction * 12), flush=True),
)
(_, result), = found.phases
print(json.dumps({"losses": result.losses, "scores": [row["score"] for row in result.history]}))
"""


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_killed_recovery_comes_to_the_same_losses(summary_files: Any, tmp_path: Path) -> None:
    files = (summary_files.student, summary_files.train, summary_files.validation)

    def finished(*arguments: object) -> dict[str, list[float]]:
        out, _ = _start(*files, *arguments).communicate(timeout=300)
        found: dict[str, list[float]] = json.loads(out.splitlines()[-1])
        return found

    whole = finished(tmp_path / "whole", "anew")
    killed = _start(*files, tmp_path / "killed", "anew")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.strip() == "training on the grid 7":
            killed.kill()
            break
    killed.stdout.close()
    assert killed.wait() == -signal.SIGKILL
    kept = tmp_path / "killed" / KEPT_SUMMARIES
    written = kept.stat().st_mtime_ns
    resumed = finished(tmp_path / "killed", "resume")
    assert kept.stat().st_mtime_ns == written  # the teacher's summaries were not written again
    assert len(resumed["losses"]) == 12
    assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    assert resumed["scores"] == pytest.approx(whole["scores"], abs=1e-6)
