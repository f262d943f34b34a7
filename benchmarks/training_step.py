"""What a step of a writer's training costs, with and without what makes it cheap: one table from one run.

    python benchmarks/training_step.py [--texts 8] [--tokens 256] [--steps 3]

SmolLM2-135M (downloaded once into ``.venv-peers``) learns int4 from itself: the teacher's and the student's pass, the
losses, the backward pass, in bfloat16 where the machine computes it. Each variant runs in a process of its own:

- plain: glibc's memory as it comes, losses by torch's formulas over whole tensors of logits
- memory kept: :mod:`edgescribe.converters.kept_memory`
- memory kept, losses in parts: :mod:`edgescribe.converters.vocabulary_losses` too
- the same, plain attention: :func:`edgescribe.converters.torch_decoder.plain_attention` too, in place of torch's fused
  kernel, which is what training does
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import machine_state

PEERS = Path(__file__).resolve().parents[1] / ".venv-peers"
VARIANTS = ("plain", "memory kept", "memory kept, losses in parts", "the same, plain attention")


def measure(variant: str, texts: int, tokens: int, steps: int) -> dict[str, float]:
    """Median seconds of a step after two to warm up, and the process's peak memory in bytes."""
    import torch
    import torch.nn.functional as functional
    from edgescribe.converters import torch_decoder
    from edgescribe.converters.distillation import Distillation, DistillationWeights
    from edgescribe.converters.kept_memory import memory_kept
    from edgescribe.converters.read import read_student
    from edgescribe.converters.torch_decoder import graph_of
    from edgescribe.converters.training import native_bf16
    from released_student import released_student

    if variant != VARIANTS[3]:
        torch_decoder.PLAIN_ATTENTION = 0
    student = read_student(released_student(PEERS / "students/smollm2"), "generate")
    graph, teacher = graph_of(student, "w4a8-dynamic").train(), graph_of(student).eval()
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(student.shape.vocabulary, (texts, tokens), generator=noise)
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    weights = DistillationWeights(soft=1.0, hidden=0.0, attention=0.0, labels=0.3, temperature=1.0)
    losses = Distillation("generate", graph.shape, teacher.shape, weights)

    def plain(guess: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        guess, goal, labels = guess.flatten(0, 1).float(), goal.flatten(0, 1), ids.flatten()
        guess_log, goal_log = functional.log_softmax(guess, -1), functional.log_softmax(goal, -1)
        soft = functional.kl_div(guess_log, goal_log, reduction="batchmean", log_target=True)
        return soft + 0.3 * functional.cross_entropy(guess, labels)

    def step() -> float:
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=native_bf16()):
            with torch.no_grad():
                goal = teacher.run(feeds)
            guess = graph.run(feeds)
        if variant in VARIANTS[2:]:
            loss = losses(guess, feeds["attention_mask"], ids, teacher_outputs=goal)
        else:
            loss = plain(guess["logits"], goal["logits"])
        loss.backward()
        return time.perf_counter() - begun

    with nullcontext() if variant == VARIANTS[0] else memory_kept():
        for _ in range(2):
            step()
        seconds = median(step() for _ in range(steps))
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """Run every variant in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description="A step of a writer's training, with and without what makes it cheap.")
    parser.add_argument("--texts", type=int, default=8, help="in a step [8]")
    parser.add_argument("--tokens", type=int, default=256, help="of each text [256]")
    parser.add_argument("--steps", type=int, default=3, help="that are timed, after two to warm up [3]")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options.texts, options.tokens, options.steps)))
        return
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, "--texts", str(options.texts)]
        command += ["--tokens", str(options.tokens), "--steps", str(options.steps)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[variant] = json.loads(answer.splitlines()[-1])
    print(f"{'':30}  s a step  tok/s  peak GB")
    for variant, each in found.items():
        speed = options.texts * options.tokens / each["seconds"]
        print(f"{variant:30}  {each['seconds']:8.2f}  {speed:5.0f}  {each['peak'] / 1e9:7.1f}")
    print(f"Load average after: {machine_state.now().load_average:.2f}")


if __name__ == "__main__":
    main()
