"""A classifier's bundle against its peers: latency, accuracy, size, memory and start-up, as one table from one run.

    python benchmarks/classify.py [--bundle demo/topics] [--quick] [--json]

The peers run the unpruned student that the bundle was made from: torch and ONNX Runtime in float32, and post-training
int8 by ONNX Runtime's ``quantize_dynamic`` and by NNCF on OpenVINO. docs/benchmarks.md tells how it is measured. The
first run makes what the peers need in ``.venv-peers`` of the checkout (about 600 MB). Needs the extra ``[convert]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine_state
from bars import Bar, Measured, Quality, bars
from contenders import Contender, StudentFacts, artifacts, peers
from edgescribe.errors import DataError, EdgescribeError
from edgescribe.sdk.bundle import Bundle, read_bundle
from edgescribe.sdk.console import bar_of_parts, note, table
from edgescribe.sdk.labelled_text import DataReport, Row, read_rows
from interleaved_run import QUICK, Effort, Figures, Texts, run
from peer_environment import NNCF_REQUIREMENTS, exporter_packages, nncf_python
from sklearn.metrics import accuracy_score, f1_score

CHECKOUT = Path(__file__).parents[1]
PEERS = CHECKOUT / ".venv-peers"
CALIBRATION_TEXTS = 300
TIMED_TEXTS = 16
QUICK_TEST_TEXTS = 200
MAKERS = ("peer_models.py", "nncf_quantize.py", NNCF_REQUIREMENTS.name)


def main() -> int:
    """Run and print; the exit code is 0 whether bars are met or not."""
    options = read_options()
    try:
        report = benchmark(options)
    except (EdgescribeError, RuntimeError) as error:
        print(f"classify.py: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EdgescribeError) else 1
    print(json.dumps(report, indent=2) if options.json else report_text(report))
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A classifier's bundle against its peers, in one interleaved run.")
    parser.add_argument("--bundle", type=Path, default=CHECKOUT / "demo/topics")
    parser.add_argument("--student", type=Path, default=CHECKOUT / "samples/debian_topics/student",
                        help="the unpruned student's checkpoint (BERT)")  # fmt: skip
    parser.add_argument("--data", type=Path, default=CHECKOUT / "samples/debian_topics",
                        help="folder with train.jsonl[.gz], for calibration, and test.jsonl[.gz]")  # fmt: skip
    parser.add_argument("--precision", help="of the bundle's artifacts; by default each runtime's first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128, help="of each timed call")
    parser.add_argument("--quick", action="store_true", help=f"few rounds, {QUICK_TEST_TEXTS} test texts")
    parser.add_argument("--rounds", type=int, help=f"of timing [{Effort().rounds}; fewer are quicker and less sure]")
    parser.add_argument("--json", action="store_true", help="print JSON with every round's figures")
    return parser.parse_args()


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, run, and put everything into one plain value."""
    bundle = read_bundle(options.bundle)
    test = rows_of(options.data, "test")[: QUICK_TEST_TEXTS if options.quick else None]
    models = peer_models(options.student, rows_of(options.data, "train")[:CALIBRATION_TEXTS], bundle)
    facts = student_facts(models, bundle)
    contenders = peers(models, facts, options.threads) + artifacts(bundle, options.threads, options.precision)
    texts = Texts([row.text for row in test[:TIMED_TEXTS]], options.tokens, [row.text for row in test])
    effort = QUICK if options.quick else Effort()
    if options.rounds is not None:
        effort = replace(effort, rounds=options.rounds)
    before, begun = machine_state.now(), time.monotonic()
    found = run_with_bars(contenders, texts, effort)
    after, seconds = machine_state.now(), time.monotonic() - begun
    truth = [row.label or "" for row in test]
    measured = [
        Measured(contender, found[contender.name], quality(truth, found[contender.name])) for contender in contenders
    ]
    fp32 = models / "fp32/model.safetensors"
    nncf = dict(line.split("==") for line in NNCF_REQUIREMENTS.read_text(encoding="utf-8").split())["nncf"]
    return {
        "machine": asdict(machine_state.surroundings(before, after, seconds, {"nncf": nncf})),
        "settings": {
            "threads": options.threads,
            "tokens": options.tokens,
            "batch": 1,
            "effort": asdict(effort),
            "test_texts": len(test),
            "most_tokens": facts.max_tokens,
            "same_tokens": share_of_same_tokens(facts, bundle, texts.test),
            "bundle": bundle.manifest.name,
            "recipe": bundle.manifest.provenance.recipe,
            "fp32_mb": fp32.stat().st_size / 1e6,
        },
        "contenders": [plain(one) for one in measured],
        "bars": [asdict(bar) for bar in bars(measured, fp32.stat().st_size / 1e6)],
    }


def rows_of(folder: Path, split: str) -> list[Row]:
    paths = [folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither {paths[0].name} nor {paths[1].name}; name the data's folder with --data")
    return list(read_rows(path, ("text", "label"), DataReport()))


def peer_models(student: Path, calibration: list[Row], bundle: Bundle) -> Path:
    """The folder with the peers' models of this student, made whole or not at all where it is not there yet."""
    limit = bundle.manifest.tokenizer.max_tokens
    kept = PEERS / "models" / key_of(student, calibration, limit)
    if kept.is_dir():
        return kept
    note(f"making the peers' models and what they need in {PEERS.name} (once, some minutes)")
    python, packages = nncf_python(PEERS / "nncf"), exporter_packages(PEERS / "exporter")
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        draft = Path(scratch, "models")
        draft.mkdir()
        step([sys.executable, "peer_models.py", str(student.resolve()), str(draft)], PYTHONPATH=str(packages))
        ids = [token_ids(draft / "fp32/tokenizer.json", row.text, limit) for row in calibration]
        (draft / "calibration.json").write_text(json.dumps(ids), encoding="utf-8")
        step([str(python), "nncf_quantize.py", *(str(draft / name) for name in
              ("openvino.xml", "calibration.json", "nncf.xml"))])  # fmt: skip
        shutil.move(draft, kept)
    return kept


def key_of(student: Path, calibration: list[Row], limit: int) -> str:
    """A name for all that goes into the peers' models."""
    digest = hashlib.sha256(json.dumps([limit, *(row.text for row in calibration)]).encode())
    for path in [*(student / name for name in ("config.json", "model.safetensors", "tokenizer.json")),
                 *(Path(__file__).with_name(name) for name in MAKERS)]:  # fmt: skip
        digest.update(path.read_bytes())
    digest.update(" ".join(version(name) for name in ("torch", "transformers", "onnxruntime", "openvino")).encode())
    return digest.hexdigest()[:16]


def step(command: list[str], **environment: str) -> None:
    """Run one of the makers; what it prints goes to stderr when it fails."""
    settings = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"} | environment
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{Path(command[1]).name} failed with status {done.returncode}:\n{done.stdout[-3000:]}")


def token_ids(tokenizer: Path, text: str, limit: int) -> list[int]:
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(str(tokenizer))
    opened.no_padding()
    opened.enable_truncation(limit)
    return list(opened.encode(text).ids)


def student_facts(models: Path, bundle: Bundle) -> StudentFacts:
    """The student's labels and tokenizer; the longest input is the bundle's, so that all read the same texts."""
    names = json.loads((models / "fp32/config.json").read_text(encoding="utf-8"))["id2label"]
    labels = tuple(names[str(index)] for index in range(len(names)))
    return StudentFacts(models / "fp32/tokenizer.json", labels, bundle.manifest.tokenizer.max_tokens)


def share_of_same_tokens(facts: StudentFacts, bundle: Bundle, texts: Sequence[str]) -> float:
    """Share of texts that the bundle splits into the very ids of the peers (a pruned vocabulary numbers anew)."""
    few = list(texts[:50])
    ours = bundle.tokenizer.tokenize(few)
    theirs = [token_ids(facts.tokenizer, text, facts.max_tokens) for text in few]
    return sum(list(own.ids) == other for own, other in zip(ours, theirs, strict=True)) / len(few)


def run_with_bars(contenders: list[Contender], texts: Texts, effort: Effort) -> dict[str, Figures]:
    """The run with a bar; stages weigh by about how long they take."""
    weights = {"loading": (0.0, 0.05), "latency": (0.05, 0.75), "accuracy": (0.75, 0.85)}
    with bar_of_parts("measuring") as show:

        def progress(stage: str, part: float) -> None:
            low, high = weights.get(stage, (0.85, 1.0))
            show(low + (high - low) * part)

        return run(contenders, texts, effort, progress)


def quality(truth: list[str], figures: Figures) -> Quality:
    given = figures.labels
    macro = f1_score(truth, given, average="macro", labels=sorted(set(truth)), zero_division=0)
    return Quality(float(accuracy_score(truth, given)), float(macro))


def plain(one: Measured) -> dict[str, Any]:
    figures = one.figures
    return {
        "name": one.contender.name,
        "group": one.contender.group,
        "engine": figures.engine,
        "p50_ms": figures.latency(50),
        "p90_ms": figures.latency(90),
        "p99_ms": figures.latency(99),
        "least_ms": figures.least_ms,
        "p90_ms_by_round": figures.by_round(90),
        "samples": sum(map(len, figures.latencies_ms)),
        "accuracy": one.quality.accuracy,
        "macro_f1": one.quality.macro_f1,
        "size_mb": one.contender.mb,
        "peak_rss_mb": one.peak_rss_mb,
        "cold_s": one.cold_s,
        "cold_ms_by_process": figures.cold_ms,
    }


def report_text(report: dict[str, Any]) -> str:
    machine, settings, lines = report["machine"], report["settings"], report["contenders"]
    effort = settings["effort"]
    rows = [
        [
            one["name"], one["p50_ms"], one["p90_ms"], one["least_ms"], f"{one['accuracy']:.2%}",
            f"{one['macro_f1']:.4f}", one["size_mb"], one["peak_rss_mb"], one["cold_s"],
        ]
        for one in lines
    ]  # fmt: skip
    header = ("contender", "p50 ms", "p90 ms", "least ms", "accuracy", "macro F1", "size MB", "peak MB", "cold s")
    tokens = "the same token ids" if settings["same_tokens"] == 1 else "the same texts (the bundle's ids are its own)"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    features = ", ".join(machine["int8_features"]) or "no int8 instructions"
    return "\n".join(
        [
            table(rows, header),
            "",
            table([bar_row(Bar(**bar)) for bar in report["bars"]], ("bar", "limit", "reached", "met", "")),
            "",
            f"{settings['threads']} threads, batch {settings['batch']}, {settings['tokens']} tokens; "
            f"{effort['rounds']} rounds in changing order, {min(one['samples'] for one in lines)} or more calls each; "
            f"latencies are medians over the rounds, for {tokens}.",
            f"Accuracy on {settings['test_texts']} test texts of at most {settings['most_tokens']} tokens. Cold start: "
            f"median of {effort['starts']} fresh processes; peak memory: largest of {effort['memory_starts']}, after "
            f"{effort['memory_texts']} texts one by one.",
            f"Machine: {machine['cpu']}, {machine['cpus']} CPUs ({features}), {machine['system']}, Python "
            f"{machine['python']}.",
            f"Load average {machine['load_before']:.2f} before, {machine['load_after']:.2f} after; other processes "
            f"took {machine['others_cpus']:.2f} CPUs of the run's {machine['seconds']:.0f} s.",
            f"Versions: {versions}.",
        ]
    )


def bar_row(bar: Bar) -> list[object]:
    digits = 1 if bar.unit in ("% of fp32", "MB") else 2
    sign = "≥" if bar.at_least else "≤"
    return [
        bar.what,
        f"{sign} {bar.limit:g} {bar.unit}",
        f"{bar.reached:.{digits}f}",
        "yes" if bar.met else "no",
        bar.detail,
    ]


if __name__ == "__main__":
    sys.exit(main())
