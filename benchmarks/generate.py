"""Writers against their peers: prefill, decoding, memory, size, start-up and quality, as one table from one run.

    python benchmarks/generate.py [--quick] [--growth] [--json] [--trained BUNDLE] [--pruned BUNDLE]

All contenders are made from one checkpoint: by default SmolLM2-135M-Instruct, which is downloaded. Ours are exported to
every runtime in int8 and int4; peers are llama.cpp, ONNX Runtime GenAI and OpenVINO GenAI. The first run installs the
peers in ``.venv-peers`` of the checkout (about 2 GB; llama.cpp is compiled) and makes all models. docs/benchmarks.md
tells how it is measured. Needs the extras ``[convert,chat]``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import machine_state
from bars import Bar
from edgescribe.converters.read import read_student
from edgescribe.converters.student import Student
from edgescribe.converters.tokenizer_files import NAMED, special_token
from edgescribe.errors import EdgescribeError
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.chat_template import ChatTemplate
from edgescribe.sdk.console import bar_of_parts
from fp32_reference import fp32_reference
from memory_bandwidth import gigabytes_per_s
from peer_environment import GENAI_REQUIREMENTS, LLAMA_REQUIREMENTS
from released_student import released_student
from writer_bars import MeasuredWriter, writer_bars
from writer_bundles import bundle_contenders, plain_bundles
from writer_contenders import LeftOut, WriterContender, takes_part
from writer_peers import gguf_beside, writer_peers
from writer_report import report_text
from writer_run import GROWTH_TOKENS, QUICK, Conversation, WriterEffort, WriterFigures, WriterTexts, run_writers
from writer_texts import conversations, prompt, read_texts, save_windows, scored_tokens, tokens_of, windows

CHECKOUT = Path(__file__).parents[1]
PEERS = CHECKOUT / ".venv-peers"
SAMPLE = CHECKOUT / "samples/debian_topics"
BUNDLE_CONTEXT = 2048
LENGTHS = (128, 512, 1024, BUNDLE_CONTEXT - GROWTH_TOKENS)
CALIBRATION_TEXTS = 64
PEER_PACKAGES = ("llama-cpp-python", "onnxruntime-genai", "openvino-genai", "optimum-intel", "nncf")


def main() -> int:
    """Run and print; the exit code is 0 whether bars are met or not."""
    options = read_options()
    try:
        report = benchmark(options)
    except (EdgescribeError, RuntimeError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EdgescribeError) else 1
    print(json.dumps(report, indent=2) if options.json else report_text(report))
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Writers against their peers, in one interleaved run.")
    parser.add_argument("--student", type=Path, help="checkpoint of an unpruned SmolLM2-135M [the released one]")
    parser.add_argument("--trained", type=Path, help="bundle of the same student, unpruned, trained on its int4 grid")
    parser.add_argument("--pruned", type=Path, help="bundle of the same student, pruned and its vocabulary trimmed")
    parser.add_argument("--texts", type=Path, default=SAMPLE / "test.jsonl.gz",
                        help="held-out texts: .jsonl[.gz] with the field text, or .txt")  # fmt: skip
    parser.add_argument("--calibration", type=Path, default=SAMPLE / "train.jsonl.gz",
                        help="texts that the int4 grid is searched on")  # fmt: skip
    parser.add_argument("--score-tokens", type=int, default=4096, help="of the held-out texts that are scored [4096]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt [128]")
    parser.add_argument("--new-tokens", type=int, default=128, help="that are written [128]")
    parser.add_argument("--context", type=int, default=512, help="tokens that every cache has room for [512]")
    parser.add_argument("--rewritings", type=int, default=8, help="texts to rewrite or summarise [8]")
    parser.add_argument("--rounds", type=int, help=f"of timing [{WriterEffort().rounds}]")
    parser.add_argument("--growth", action="store_true", help="also speed and memory from 128 to 2,048 tokens")
    parser.add_argument("--waiting", choices=("spin", "sleep"), default="spin",
                        help="what waiting threads of our engines do where it can be chosen; peers' spin")  # fmt: skip
    parser.add_argument("--only", help="take part: names that hold one of these, separated by commas")
    parser.add_argument("--quick", action="store_true", help="few rounds and texts: to see that all works")
    parser.add_argument("--json", action="store_true", help="print JSON with every round's figures")
    return parser.parse_args()


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, run, and put everything into one plain value."""
    released = released_student(PEERS / "students/smollm2")
    checkpoint = options.student or released
    student = read_student(checkpoint, "generate")
    held_out = read_texts(options.texts)
    calibration = read_texts(options.calibration)[:CALIBRATION_TEXTS]
    only = None if options.only is None else options.only.split(",")
    made = writer_peers(student, checkpoint, gguf_beside(released), PEERS, only)
    made += plain_bundles(student, PEERS, calibration, min(BUNDLE_CONTEXT, student.max_tokens), only)
    if options.trained is not None:
        made += bundle_contenders(read_bundle(options.trained), PEERS, "trained")
    if options.pruned is not None:
        made += bundle_contenders(read_bundle(options.pruned), PEERS, "pruned")
    contenders = [one for one in made if isinstance(one, WriterContender) and takes_part(one.name, only)]
    left_out = [one for one in made if isinstance(one, LeftOut)]

    found_windows = windows(student.tokenizer, held_out, 2048 if options.quick else options.score_tokens,
                            options.context)  # fmt: skip
    reference = fp32_reference(student, found_windows, PEERS / "references")
    window_file = reference.log_probabilities.with_suffix(".json")
    save_windows(found_windows, window_file)
    texts = WriterTexts(
        prompt=prompt(student.tokenizer, held_out, options.tokens),
        tokens=options.tokens,
        context=options.context,
        conversations=requests(student, held_out, 2 if options.quick else options.rewritings),
        windows=window_file,
        reference=reference.log_probabilities,
        lengths=LENGTHS if options.growth else (),
    )
    effort = replace(QUICK if options.quick else WriterEffort(), new_tokens=options.new_tokens)
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    base = {"threads": options.threads, "spinning": options.waiting == "spin"}
    bandwidth = gigabytes_per_s(options.threads)
    scored = scored_tokens(found_windows)
    source = str(checkpoint.name if options.student else "SmolLM2-135M-Instruct as released (its weights were 4-bit)")
    del student, found_windows

    before, begun = machine_state.now(), time.monotonic()
    found, failed = run_with_bar(contenders, texts, effort, base)
    after, seconds = machine_state.now(), time.monotonic() - begun
    bandwidth = max(bandwidth, gigabytes_per_s(options.threads))
    measured = [
        MeasuredWriter(one, found[one.name], found[one.name].nats / scored) for one in contenders if one.name in found
    ]
    return {
        "machine": asdict(machine_state.surroundings(before, after, seconds, peer_versions())),
        "settings": {
            "student": source,
            "threads": options.threads,
            "batch": 1,
            "tokens": options.tokens,
            "context": options.context,
            "waiting": options.waiting,
            "effort": asdict(effort),
            "scored_tokens": scored,
            "rewritings": len(texts.conversations),
            "fp32_nll": reference.nll,
            "bandwidth_gb_s": bandwidth,
        },
        "contenders": [plain(one, bandwidth) for one in measured],
        "left_out": [asdict(one) for one in [*left_out, *failed]],
        "bars": [asdict(bar) for bar in bars_of(measured, reference.nll)],
    }


def bars_of(measured: Sequence[MeasuredWriter], fp32_nll: float) -> list[Bar]:
    return writer_bars(measured, fp32_nll) if measured else []


def requests(student: Student, texts: Sequence[str], count: int) -> list[Conversation]:
    """The conversations with their tokens, where the student has a chat template."""
    if student.chat_template is None:
        return []
    named = {name: special_token(student.tokenizer_config, name) for name in NAMED}
    template = ChatTemplate(student.chat_template, {name: token for name, token in named.items() if token is not None})
    return [
        Conversation(messages, tokens_of(student.tokenizer, template.render(messages)))
        for messages in conversations(texts, count)
    ]


def run_with_bar(
    contenders: Sequence[WriterContender], texts: WriterTexts, effort: WriterEffort, base: dict[str, Any]
) -> tuple[dict[str, WriterFigures], list[LeftOut]]:
    """The run with a bar; stages weigh by about how long they take."""
    weights = {"loading": (0.0, 0.05), "decoding": (0.05, 0.5), "rewriting": (0.5, 0.65),
               "start-up and memory": (0.65, 0.8)}  # fmt: skip
    with bar_of_parts("measuring") as show:

        def progress(stage: str, part: float) -> None:
            low, high = weights.get(stage, (0.8, 1.0))
            show(low + (high - low) * part)

        return run_writers(contenders, texts, effort, base, progress)


def peer_versions() -> dict[str, str]:
    pinned = (LLAMA_REQUIREMENTS.read_text(encoding="utf-8") + GENAI_REQUIREMENTS.read_text(encoding="utf-8")).split()
    return {name: number for name, _, number in (line.partition("==") for line in pinned) if name in PEER_PACKAGES}


def plain(one: MeasuredWriter, bandwidth: float) -> dict[str, Any]:
    figures, contender = one.figures, one.contender
    return {
        "name": contender.name,
        "side": contender.side,
        "kind": contender.kind,
        "engine": figures.engine,
        "bits": contender.bits,
        "decode_tok_s": one.speed,
        "decode_tok_s_by_round": figures.speeds,
        "step_p50_ms": figures.step_p50,
        "prefill_ms": median(figures.prefills),
        "prefill_ms_by_round": figures.prefills,
        "peak_rss_mb": one.peak_mb,
        "size_mb": contender.mb,
        "first_token_s": median(figures.cold_ms) / 1000,
        "first_token_ms_by_process": figures.cold_ms,
        "nll": one.nll,
        "kl": figures.kl,
        "agreed": figures.agreed,
        "python_share": median(figures.python_share) if figures.python_share else None,
        "of_bandwidth": contender.mb * one.speed / 1000 / bandwidth,
        "rewriting": {
            "plain_tok_s": figures.plain.tokens_per_s,
            "lookup_tok_s": figures.lookup.tokens_per_s,
            "copied": figures.lookup.accepted_share,
            "same_texts": same(figures.plain.tokens, figures.lookup.tokens),
        },
        "growth": figures.growth,
    }


def same(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float | None:
    """Share of texts that are equal with and without lookup."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one) if one and len(one) == len(other) else None


if __name__ == "__main__":
    sys.exit(main())
