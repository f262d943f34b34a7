"""Who imports whom, and what an app pays for: read from the source's imports and from a fresh process's modules."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("device_profiles", "runtimes", "sdk", "converters")  # each may import itself and those before it
DEVICE_SIDE = LAYERS[:3]
DEVICE_PACKAGES = {"numpy", "tokenizers", "msgspec", "click"}
OPTIONAL = {"jinja2", "llguidance"}  # extras of writers, imported by name when they are first needed
ENGINES = {"onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime"}
WORKBENCH = {"torch", "transformers", "accelerate", "safetensors", "onnx", "sklearn", "matplotlib", "jinja2", "tqdm"}


class Import(NamedTuple):
    module: str
    line: int
    inside_function: bool


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, with relative ones made whole (``edgescribe.sdk.load``); typing-only ones too."""
    package = ["edgescribe", *path.relative_to(ROOT).with_suffix("").parts[:-1]]

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, inside)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                assert base, f"{path}:{node.lineno} climbs out of the package"
                whole = ".".join(base + ([node.module] if node.module else []))
            else:
                whole = node.module or ""
            # "from . import x" may name a module: x counts as part of the path
            for alias in node.names:
                yield Import(f"{whole}.{alias.name}", node.lineno, inside)
        for child in ast.iter_child_nodes(node):
            deeper = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, deeper)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def spot(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"


def test_layers_import_downwards_only() -> None:
    wrong = []
    for layer in LAYERS:
        allowed = {"errors", "__version__", *LAYERS[: LAYERS.index(layer) + 1]}
        for path in sources(layer):
            for found in imports_of(path):
                head, _, rest = found.module.partition(".")
                if head == "edgescribe" and rest.partition(".")[0] not in allowed:
                    wrong.append(spot(path, found))
    assert not wrong, "upward imports:\n" + "\n".join(wrong)


def test_errors_import_nothing_of_ours() -> None:
    assert not [found for found in imports_of(ROOT / "errors.py") if found.module.startswith("edgescribe")]


def test_device_side_imports_only_its_own_packages() -> None:
    wrong = []
    for path in sources(*DEVICE_SIDE):
        allowed = set(sys.stdlib_module_names) | DEVICE_PACKAGES | {"edgescribe"}
        if not path.is_relative_to(ROOT / "sdk"):  # which reaches engines through runtimes alone
            allowed |= ENGINES
        wrong += [spot(path, found) for found in imports_of(path) if found.module.partition(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)


def test_engines_are_imported_inside_functions() -> None:
    wrong = [
        spot(path, found)
        for path in sources(*DEVICE_SIDE)
        for found in imports_of(path)
        if found.module.partition(".")[0] in ENGINES and not found.inside_function
    ]
    assert not wrong, "\n".join(wrong)


def test_samples_use_the_public_face_alone() -> None:
    import edgescribe

    public = {f"edgescribe.{name}" for name in edgescribe.__all__} | {"edgescribe"}
    wrong = [
        spot(path, found)
        for path in sources("samples")
        for found in imports_of(path)
        if found.module.partition(".")[0] == "edgescribe" and found.module not in public
        # a script that makes what a sample ships is work for the workbench
        and "converters" not in found.module
    ]
    assert not wrong, "\n".join(wrong)


def modules_after(code: str) -> set[str]:
    """Names in ``sys.modules`` of a fresh process after ``code``."""
    program = f"{code}\nimport json, sys\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_import_edgescribe_is_light() -> None:
    new = modules_after("import edgescribe") - modules_after("pass")
    assert not {name.partition(".")[0] for name in new} & (WORKBENCH | ENGINES | DEVICE_PACKAGES)
    assert len(new) < 60, sorted(new)


def test_whole_device_side_needs_no_engine_and_no_workbench() -> None:
    names = [
        "edgescribe." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources(*DEVICE_SIDE)
    ]
    code = "import importlib\nfor name in " + repr(names) + ": importlib.import_module(name)"
    loaded = {name.partition(".")[0] for name in modules_after(code)}
    assert not loaded & (WORKBENCH | ENGINES | OPTIONAL)
    assert not any(name.startswith("edgescribe.converters") for name in modules_after(code))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "bash"]])
def test_help_imports_no_command_but_the_one_called(arguments: list[str]) -> None:
    loaded = modules_after(f"from edgescribe.__main__ import run\nrun({arguments!r})")
    assert not {name.partition(".")[0] for name in loaded} & (WORKBENCH | ENGINES | {"numpy", "tokenizers"})
    assert not any(name.startswith("edgescribe.converters") for name in loaded)
