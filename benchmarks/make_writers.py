"""The students of the writers' benchmark that have to be trained, made by edgescribe's own commands.

    python benchmarks/make_writers.py --out FOLDER [--only int4,pruned]

SmolLM2-135M-Instruct (downloaded) is taught the sample's domain in float32 on the first texts of the training split:
``FOLDER/domain``, the benchmark's ``--student``. From it, on texts that come behind those, ``FOLDER/int4``, trained on
its int4 grid (``--trained``), and ``FOLDER/pruned``, with fewer layers and a trimmed vocabulary, then trained on that
grid (``--pruned``). The recipes are in ``benchmarks/recipes``. No test text is read. What is there already is kept;
Ctrl-C keeps the state of a training, which the same command takes up.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import time
from pathlib import Path

from released_student import released_student

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "samples/debian_topics"
RECIPES = HERE / "recipes"
DOMAIN, INT4, PRUNED = slice(0, 2000), slice(2000, 3600), slice(2000, 5500)
"""Rows of the training split that each student learns from."""

RUNTIMES = ("onnxruntime", "openvino", "litert")


def main() -> int:
    """Make what is asked for; the exit code is that of the command that failed."""
    parser = argparse.ArgumentParser(description="The trained students of the writers' benchmark.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the students and bundles")
    parser.add_argument("--only", default="int4,pruned", help="of int4, pruned; domain is made for both [%(default)s]")
    options = parser.parse_args()
    out, only = options.out.resolve(), options.only.split(",")
    out.mkdir(parents=True, exist_ok=True)
    try:
        released = released_student(HERE.parent / ".venv-peers/students/smollm2")
        teach(released, released, "domain", DOMAIN, out)
        if "int4" in only:
            teach(out / "domain", out / "domain", "int4", INT4, out)
            export("int4", out)
        if "pruned" in only:
            every = texts("all", slice(None), out)
            run(out / "pruned-untrained", "prune", out / "domain", "--train", every, "--recipe", recipe("pruned"))
            teach(out / "pruned-untrained", out / "domain", "pruned", PRUNED, out)
            export("pruned", out)
    except (RuntimeError, OSError) as error:
        print(f"make_writers.py: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


def teach(student: Path, teacher: Path, name: str, rows: slice, out: Path) -> None:
    """``edgescribe recover``: a checkpoint ``name``, or ``name-trained`` where a bundle is to come of it."""
    target = out / (name if name == "domain" else f"{name}-trained")
    resumed = ["--resume"] if target.with_name(f"{target.name}.work").is_dir() else []
    run(target, "recover", student, "--teacher", teacher, "--train", texts(name, rows, out), "--validation",
        SAMPLE / "validation.jsonl.gz", "--recipe", recipe(name), *resumed)  # fmt: skip


def export(name: str, out: Path) -> None:
    """``edgescribe export``: the bundle ``name`` for all runtimes, its known answers on training texts."""
    options = [each for runtime in RUNTIMES for each in ("--runtime", runtime)]
    run(out / name, "export", out / f"{name}-trained", "--texts", SAMPLE / "train.jsonl.gz", "--max-tokens", 2048,
        *options)  # fmt: skip


def run(target: Path, command: str, *arguments: object) -> None:
    """One of edgescribe's commands, unless what it makes is there; tells how long it took."""
    if target.exists():
        return
    begun = time.monotonic()
    words = [sys.executable, "-m", "edgescribe", command, *map(str, arguments), "--task", "generate"]
    subprocess.run([*words, "--out", str(target)], check=True)
    print(f"{target.name}: {command} took {(time.monotonic() - begun) / 60:.1f} minutes", file=sys.stderr)


def texts(name: str, rows: slice, out: Path) -> Path:
    """Rows of the training split as a file."""
    path = out / f"{name}.jsonl"
    with gzip.open(SAMPLE / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        path.write_text("".join(file.readlines()[rows]), encoding="utf-8")
    return path


def recipe(name: str) -> Path:
    """The recipe of that name."""
    return RECIPES / f"smollm2-{name}.toml"


if __name__ == "__main__":
    sys.exit(main())
