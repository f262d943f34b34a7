"""The process of one writer: opens a student, writes a first token, then does what stdin asks for.

Started by ``writer_run.py`` with one argument, JSON: ``kind`` (of ``writer_engines.KINDS``), ``path``, ``threads``,
``context``, ``tokens``; for ``edgescribe`` ``runtime``, ``precision`` and ``spinning``; ``cache``, a folder for the
engine's own cache, or null; ``text`` is the prompt. It runs in the peer's own environment and imports numpy and what
its kind needs, so that its memory and start-up time are those of an app that uses it.

Lines of JSON go out: one when the prompt's first token is there, then one for each line that comes in:

- ``{"write": 128, "times": 2}``: so many texts of so many tokens behind the prompt's; answers ``{"turns": […]}``;
- ``{"prompt": [ids], "write": 128}``: one behind these tokens;
- ``{"rewrite": messages, "write": 128, "lookup": true}``: by our writer; answers what it says of it;
- ``{"grow": [128, 1024], "write": 32}``: answers ``{"points": […]}``, times of a step and memory at each length;
- ``{"peak": true}``: answers ``{"peak_rss_mib": …}``;
- ``{"share": 128}``: answers ``{"python_share": …}``, the part of decoding that is not spent inside our engine's call;
- ``{"score": path, "reference": path or null}``: how well texts are foreseen, see :func:`score`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

import numpy as np
from engine_clock import clocked
from numpy.typing import NDArray
from writer_engines import KINDS, Edgescribe, Engine, Turn

LEAST_STEPS = 8
"""Fewer say nothing of Python's share."""


def main() -> None:
    """Write the first token and then answer one line after the other, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print to stdout
    spec = json.loads(sys.argv[1])
    started = time.perf_counter()
    engine = KINDS[spec["kind"]](spec)
    loaded = time.perf_counter()
    first = engine.start(spec["text"], spec["tokens"])
    answered_ns = time.monotonic_ns()
    ready = {
        "first": first,
        "answered_ns": answered_ns,
        "load_ms": (loaded - started) * 1000,
        "engine": engine.engine(),
    }
    print(json.dumps(ready), file=answers)
    prompt = exactly(engine.ids(spec["text"]), spec["tokens"])
    for line in sys.stdin:
        print(json.dumps(answer(engine, prompt, json.loads(line))), file=answers)


def answer(engine: Engine, prompt: list[int], asked: dict[str, Any]) -> dict[str, Any]:
    """What one line asks for."""
    if "score" in asked:
        return score(engine, asked["score"], asked["reference"])
    if "grow" in asked:
        return {"points": [point(engine, prompt, length, asked["write"]) for length in asked["grow"]]}
    if "rewrite" in asked:
        return rewrite(engine, asked["rewrite"], asked["write"], asked["lookup"])
    if "share" in asked:
        return {"python_share": python_share(engine, prompt, asked["share"])}
    if "peak" in asked:
        return {"peak_rss_mib": peak_rss_mib()}
    if "prompt" in asked:
        return {"turns": [plain(engine.write(asked["prompt"], asked["write"]))]}
    turns = []
    for _ in range(asked["times"]):
        # Each text begins otherwise: OpenVINO GenAI keeps the caches of prompts that it has seen.
        prompt.append(prompt.pop(0))
        turns.append(plain(engine.write(prompt, asked["write"])))
    return {"turns": turns}


def plain(turn: Turn) -> dict[str, Any]:
    return {"prefill_ms": turn.prefill_ms, "steps_ms": turn.steps_ms, "tokens": turn.tokens}


def exactly(ids: list[int], tokens: int) -> list[int]:
    """The ids, repeated and cut to a number of tokens."""
    return (ids * (tokens // len(ids) + 1))[:tokens]


def point(engine: Engine, prompt: list[int], length: int, tokens: int) -> dict[str, float]:
    """Milliseconds of a step (median) behind so many tokens of context, of their prefill, and memory until then."""
    turn = engine.write(exactly(prompt, length), tokens)
    return {
        "context": length,
        "prefill_ms": turn.prefill_ms,
        "step_ms": float(np.median(turn.steps_ms)),
        "peak_rss_mib": peak_rss_mib(),
    }


def rewrite(engine: Engine, messages: list[dict[str, str]], tokens: int, lookup: bool) -> dict[str, Any]:
    """Our writer's answer to a conversation, with or without prompt lookup; greedy."""
    if not isinstance(engine, Edgescribe):
        raise TypeError("only our own writer is asked for prompt lookup")
    found = engine.writer.generate(messages, max_new_tokens=tokens, temperature=0.0, repetition_penalty=1.0,
                                   lookup=lookup)  # fmt: skip
    guesses = found.lookup
    return {
        "tokens": list(found.tokens),
        "seconds": found.timings.total - found.timings.first_token,
        "proposed": guesses.proposed if guesses else 0,
        "accepted": guesses.accepted if guesses else 0,
    }


def python_share(engine: Engine, prompt: list[int], tokens: int) -> float | None:
    """The part of a decode step that is Python's: its median time without that of the engine's own call.

    None where the text ended too soon.
    """
    if not isinstance(engine, Edgescribe):
        raise TypeError("Python's share is taken of our own writer")
    text = engine.writer.codec.decode(prompt)
    now = time.perf_counter_ns
    steps, python, calls = [], [], 0
    with (
        clocked(engine.writer.effective.runtime) as clock,
        engine.writer.stream(text, max_new_tokens=tokens, temperature=0.0, lookup=False) as writing,
    ):
        next(writing)
        clock.taken()
        before = now()
        for _ in writing:
            after = now()
            spent, times = clock.taken()
            steps.append(after - before)
            python.append(after - before - spent)
            before, calls = after, calls + times
    if len(steps) < LEAST_STEPS:
        return None
    if calls < len(steps):
        raise RuntimeError(f"{engine.engine()}: the engine computes in a call of another name than is known here")
    return float(np.median(python) / np.median(steps))


def score(engine: Engine, windows: str, reference: str | None) -> dict[str, Any]:
    """Negative log-likelihood of the second part of each text, in nats over all, and divergence from a reference.

    ``windows``: JSON, a list of ``{"lead": text, "rest": text, "ids": […], "lead_tokens": n}``; the ids are those of
    the unpruned student. A writer of ours with another vocabulary reads the texts by its own. ``reference``: ``.npy``,
    log-probabilities float32 ``[all tokens of the rests, V]``; the divergence is the mean of KL(reference || this),
    None where the vocabularies differ. ``agreed``: share of places with the same likeliest token.
    """
    held: NDArray[np.float32] | None = None if reference is None else np.load(reference, mmap_mode="r")
    nats = divergence = 0.0
    own, place, agreed = True, 0, 0
    for window in json.loads(Path(windows).read_text(encoding="utf-8")):
        ids, lead = list(window["ids"]), int(window["lead_tokens"])
        if isinstance(engine, Edgescribe):
            first = engine.ids(window["lead"])
            ids, lead = first + engine.ids(window["rest"]), len(first)
            own = own and ids == list(window["ids"])
        start = 0
        for logits in engine.logits(ids[:-1]):
            for row, token in zip(logits, ids[start + 1 :], strict=False):
                start += 1
                if start < lead:
                    continue
                found = log_softmax(row)
                nats -= float(found[token])
                if held is not None and own:
                    right = held[place].astype(np.float64)
                    divergence += float(np.dot(np.exp(right), right - found))
                    agreed += int(right.argmax() == found.argmax())
                    place += 1
    compared = held is not None and own and place == len(held)
    return {
        "nats": nats,
        "kl": divergence / place if compared else None,
        "agreed": agreed / place if compared else None,
    }


def log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = row.astype(np.float64) - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def peak_rss_mib() -> float:
    """Peak resident memory of this process since it was started, as Linux counts it."""
    with Path("/proc/self/status").open() as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise OSError("this system does not tell a process's peak memory")


if __name__ == "__main__":
    main()
