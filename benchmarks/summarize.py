"""Summarisers against their peers: speed, memory, size and quality, as one table from one run.

    python benchmarks/summarize.py [--quick] [--students shipped,t5-small,flan-t5-base] [--pruned BUNDLE] [--json]

Students: the one that ships with samples/debian_synopses, and the shapes of T5-small and FLAN-T5-base with random
weights, for speed and memory alone. Ours are exported to every runtime in int8 and int4; peers are CTranslate2 in int8,
transformers in float32, and plain ONNX Runtime in float32 on what transformers' own exporter makes. ``--bundle``, a
bundle of the shipped student, is what long transcripts are summarised with. The first run installs the peers in
``.venv-peers`` of the checkout and makes all models (about 3 GB). docs/benchmarks.md tells how it is measured. Needs
the extra ``[convert]``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
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
from edgescribe.converters.summary_data import end_id, prefix_of, start_ids
from edgescribe.converters.text_metrics import score_texts
from edgescribe.errors import EdgescribeError
from edgescribe.sdk.bundle import read_bundle
from edgescribe.sdk.console import bar_of_parts, table
from peer_environment import CTRANSLATE2_PACKAGES
from summary_artifacts import bundle_contenders, plain_artifacts
from summary_bars import MeasuredSummariser, long_bar, summary_bars
from summary_contenders import SummaryContender
from summary_peers import summary_peers
from summary_run import QUICK, SummaryEffort, SummaryFigures, run_summarisers, transcript_peaks
from summary_students import BenchmarkStudent, benchmark_student
from writer_contenders import LeftOut, takes_part

CHECKOUT = Path(__file__).parents[1]
PEERS = CHECKOUT / ".venv-peers"
SAMPLE = CHECKOUT / "samples/debian_synopses"
STUDENTS = ("shipped", "t5-small", "flan-t5-base")
MEMORY_HELD = "flan-t5-base"
"""The student whose memory has a bar."""
SUMMARY_TOKENS = 40
TRANSCRIPT_WORDS = (500, 20_000)


def main() -> int:
    """Run and print; the exit code is 0 whether bars are met or not."""
    options = read_options()
    try:
        report = benchmark(options)
    except (EdgescribeError, RuntimeError) as error:
        print(f"summarize.py: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EdgescribeError) else 1
    print(json.dumps(report, indent=2) if options.json else report_text(report))
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Summarisers against their peers, in one interleaved run.")
    parser.add_argument("--students", default=",".join(STUDENTS), help=f"[{','.join(STUDENTS)}]")
    parser.add_argument("--pruned", type=Path, help="bundle of the shipped student, pruned and trained")
    parser.add_argument("--bundle", type=Path, help="bundle of the shipped student, for whole transcripts")
    parser.add_argument("--texts", type=Path, default=SAMPLE / "test.jsonl.gz", help="held-out texts and summaries")
    parser.add_argument("--test-texts", type=int, help="how many of them are summarised [all]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--source-tokens", type=int, default=512, help="of the timed text [512]")
    parser.add_argument("--new-tokens", type=int, default=64, help="that are written [64]")
    parser.add_argument("--rounds", type=int, help=f"of timing [{SummaryEffort().rounds}]")
    parser.add_argument("--waiting", choices=("spin", "sleep"), default="spin",
                        help="what waiting threads of our engines do where it can be chosen; peers' spin")  # fmt: skip
    parser.add_argument("--only", help="take part: names that hold one of these, separated by commas")
    parser.add_argument("--quick", action="store_true", help="few rounds and texts: to see that all works")
    parser.add_argument("--json", action="store_true", help="print JSON with every round's figures")
    return parser.parse_args()


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, run one student after the other, and put everything into one plain value."""
    only = None if options.only is None else options.only.split(",")
    effort = replace(QUICK if options.quick else SummaryEffort(), new_tokens=options.new_tokens)
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    before, begun = machine_state.now(), time.monotonic()
    students, bars, left_out = [], [], []
    for name in options.students.split(","):
        measured, missing, found_bars = one_student(benchmark_student(name, PEERS), options, effort, only)
        students.append({"name": name, "contenders": [plain(one) for one in measured]})
        left_out += [{"student": name, **asdict(one)} for one in missing]
        bars += found_bars
    if options.bundle is not None:
        bars += transcript_bars(options.bundle, options.threads)
    after, seconds = machine_state.now(), time.monotonic() - begun
    versions = dict(one.split("==") for one in CTRANSLATE2_PACKAGES)
    return {
        "machine": asdict(machine_state.surroundings(before, after, seconds, versions)),
        "settings": {
            "threads": options.threads,
            "batch": 1,
            "source_tokens": options.source_tokens,
            "waiting": options.waiting,
            "effort": asdict(effort),
        },
        "students": students,
        "left_out": left_out,
        "bars": [asdict(bar) for bar in bars],
    }


def one_student(
    given: BenchmarkStudent, options: argparse.Namespace, effort: SummaryEffort, only: Sequence[str] | None
) -> tuple[list[MeasuredSummariser], list[LeftOut], list[Bar]]:
    """What one student's contenders gave, who was left out, and the bars that tell of it."""
    student = read_student(given.checkpoint, "summarize")
    made = summary_peers(given, PEERS, only)
    made += plain_artifacts(student, given, PEERS, options.source_tokens, only)
    if options.pruned is not None and given.trained:
        made += bundle_contenders(read_bundle(options.pruned), PEERS)
    contenders = [one for one in made if isinstance(one, SummaryContender) and takes_part(one.name, only)]
    left_out = [one for one in made if isinstance(one, LeftOut)]
    texts, references = held_out(options) if given.trained else ([], [])
    sources = [source_tokens(student, text) for text in texts]
    base = {
        "threads": options.threads,
        "spinning": options.waiting == "spin",
        "source_context": options.source_tokens,
        "context": options.new_tokens + 8,
        "start_ids": list(start_ids(student)),
        "end_ids": [end_id(student)],
    }
    with bar_of_parts(f"measuring {given.name}") as show:
        weights = {"loading": (0.0, 0.1), "speed": (0.1, 0.6), "summaries": (0.6, 0.8), "memory": (0.8, 1.0)}

        def progress(stage: str, part: float) -> None:
            low, high = weights[stage]
            show(low + (high - low) * part)

        timed = timed_source(student, sources, options.source_tokens)
        found, failed = run_summarisers(contenders, timed, sources, SUMMARY_TOKENS, effort, base, progress)
    measured = [
        MeasuredSummariser(one, found[one.name], options.new_tokens, rouge_l(student, found[one.name], references))
        for one in contenders
        if one.name in found
    ]
    return measured, [*left_out, *failed], summary_bars(given.name, measured, given.name == MEMORY_HELD)


def held_out(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Test texts and their summaries."""
    with gzip.open(options.texts, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    count = 100 if options.quick else options.test_texts
    return [row["text"] for row in rows[:count]], [row["summary"] for row in rows[:count]]


def source_tokens(student: Student, text: str) -> list[int]:
    """A text's tokens as the student reads them, cut to the most that it reads."""
    tokenizer = student.tokenizer
    tokenizer.enable_truncation(student.max_tokens)
    ids = list(tokenizer.encode(prefix_of(student) + text).ids)
    tokenizer.no_truncation()
    return ids


def timed_source(student: Student, sources: Sequence[Sequence[int]], count: int) -> list[int]:
    """Exactly so many tokens: of the held-out texts one behind the other, or drawn at random."""
    if not sources:
        drawn = random.Random(0)
        return [*(drawn.randrange(3, student.shape.vocabulary) for _ in range(count - 1)), end_id(student)]
    joined = [token for source in sources for token in source[:-1]]
    return [*(joined * (count // len(joined) + 1))[: count - 1], end_id(student)]


def rouge_l(student: Student, figures: SummaryFigures, references: Sequence[str]) -> float | None:
    """F1 of the longest common subsequence with the references, 0 to 1."""
    if not references:
        return None
    written = [student.tokenizer.decode(tokens) for tokens in figures.summaries]
    return score_texts(written, references, resamples=1)["rougeL"].value


def transcript_bars(folder: Path, threads: int) -> list[Bar]:
    """Memory of long transcripts against short ones, for every runtime of a bundle."""
    bundle = read_bundle(folder)
    runtimes = dict.fromkeys(artifact.runtime for artifact in bundle.manifest.artifacts)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [transcript(Path(scratch, f"{words}.txt"), words) for words in TRANSCRIPT_WORDS]
        return [
            long_bar(runtime, TRANSCRIPT_WORDS, transcript_peaks(folder.resolve(), runtime, paths, threads))
            for runtime in runtimes
        ]


def transcript(path: Path, words: int) -> Path:
    """A transcript of two speakers, made of the held-out texts' sentences."""
    with gzip.open(SAMPLE / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [" ".join(json.loads(line)["text"].split()) for line in file]
    written, turn = 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < words:
            kept = texts[turn % len(texts)].split()[: words - written]
            out.write(f"{('Ada', 'Grace')[turn % 2]}: {' '.join(kept)}\n")
            written, turn = written + len(kept), turn + 1
    return path


def plain(one: MeasuredSummariser) -> dict[str, Any]:
    figures, contender = one.figures, one.contender
    return {
        "name": contender.name,
        "side": contender.side,
        "kind": contender.kind,
        "engine": figures.engine,
        "precision": contender.precision,
        "tok_s": one.speed,
        "tok_s_by_round": one.speeds,
        "total_ms": median(median(times) for times in figures.total_ms),
        "first_ms": median(median(times) for times in figures.first_ms) if all(figures.first_ms) else None,
        "peak_rss_mb": figures.peak_mb,
        "size_mb": contender.mb,
        "rouge_l": one.rouge_l,
    }


def report_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    machine, settings = report["machine"], report["settings"]
    effort, parts = settings["effort"], []
    header = ("contender", "tok/s", "in all ms", "first token ms", "peak MB", "size MB", "ROUGE-L")
    for student in report["students"]:
        rows = [
            [one["name"], one["tok_s"], one["total_ms"], "" if one["first_ms"] is None else f"{one['first_ms']:.1f}",
             one["peak_rss_mb"], one["size_mb"], "" if one["rouge_l"] is None else f"{one['rouge_l']:.4f}"]
            for one in student["contenders"]
        ]  # fmt: skip
        parts.append(f"{student['name']}\n" + (table(rows, header) if rows else "no contender could be run"))
    parts += [f"left out, {one['student']}: {one['name']}: {one['reason']}" for one in report["left_out"]]
    if report["bars"]:
        rows = [
            [bar["what"], f"{'≥' if bar['at_least'] else '≤'} {bar['limit']:g} {bar['unit']}", f"{bar['reached']:.2f}",
             "yes" if bar["met"] else "no", bar["detail"]]
            for bar in report["bars"]
        ]  # fmt: skip
        parts.append(table(rows, ("bar", "limit", "reached", "met", "")))
    features = ", ".join(machine["int8_features"]) or "no int8 instructions"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts.append(
        f"{settings['threads']} threads, batch {settings['batch']}, greedy, a source of {settings['source_tokens']} "
        f"tokens, {effort['new_tokens']} new ones; tok/s has the reading of the source in it.\nTimes are medians over "
        f"{effort['rounds']} rounds in changing order, of {effort['times']} summaries each; peak memory: largest of "
        f"{effort['memory_starts']} processes that wrote one.\nMachine: {machine['cpu']}, {machine['cpus']} CPUs "
        f"({features}), {machine['system']}, Python {machine['python']}.\nLoad average {machine['load_before']:.2f} "
        f"before, {machine['load_after']:.2f} after; other processes took {machine['others_cpus']:.2f} CPUs of the "
        f"run's {machine['seconds']:.0f} s.\nVersions: {versions}."
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
