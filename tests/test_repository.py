"""What the repository's files may hold: nothing of one machine, no registry by its host, no dead link, no leftovers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 8 << 20  # bytes; what is larger is made, not committed

# Put together here, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "root", "Users", r"home/(?!pi\b)\w")) + r")[/\w]")
REGISTRIES = ("deb.debian", "security.debian", "pypi", "files.pythonhosted", "registry.npmjs", "crates")
REGISTRY_HOSTS = re.compile("|".join(rf"\b{re.escape(name)}\.(?:org|io|com)\b" for name in REGISTRIES))
LEFTOVERS = re.compile(r"\b(?:" + "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")) + r")\b")
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".jinja", ".service", ".cfg", ".sh", ""}


def listed() -> list[Path]:
    """Files of the repository, those included that are not committed yet and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is not a checkout by git, so its files are not known from others")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return listed()


@pytest.fixture(scope="module")
def texts(files: list[Path]) -> dict[str, str]:
    """Content of the text files by their path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in files
        if path.suffix in TEXT and path.name not in ("LICENSE", "tokenizer.json")
    }


def found(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_paths_of_one_machine(texts: dict[str, str]) -> None:
    assert found(texts, MACHINE_PATHS) == []


def test_no_registry_is_named_by_its_host(texts: dict[str, str]) -> None:
    assert found(texts, REGISTRY_HOSTS) == []


def test_nothing_is_left_to_do_in_the_code(texts: dict[str, str]) -> None:
    assert found({name: text for name, text in texts.items() if name.endswith(".py")}, LEFTOVERS) == []


def test_no_file_is_too_large(files: list[Path]) -> None:
    assert [path.name for path in files if path.stat().st_size > LARGEST] == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the common forges make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere(texts: dict[str, str]) -> None:
    dead = []
    for name, text in texts.items():
        if not name.endswith(".md"):
            continue
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            if not target.exists():
                dead.append(f"{name}: {link}")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                dead.append(f"{name}: {link} (no such heading)")
    assert dead == []


def test_decisions_are_numbered_without_gaps_and_titled(texts: dict[str, str]) -> None:
    names = sorted(name.rpartition("/")[2] for name in texts if name.startswith("docs/decisions/"))
    numbers = []
    for name in names:
        match = re.fullmatch(r"(\d{3})-[a-z0-9]+(?:-[a-z0-9]+)*\.md", name)
        assert match, f"docs/decisions/{name} is not called NNN-title.md"
        numbers.append(int(match[1]))
        assert texts[f"docs/decisions/{name}"].startswith(f"# {match[1]}: ")
    assert numbers == list(range(1, len(numbers) + 1))


def test_tests_run_in_a_checkout_of_any_name(tmp_path: Path) -> None:
    checkout = tmp_path / "a-checkout of.mine"  # no name that a package could have
    (checkout / "tests").mkdir(parents=True)
    for name in ("pyproject.toml", "__init__.py", "errors.py", "tests/conftest.py"):
        shutil.copy(ROOT / name, checkout / name)
    shutil.copytree(ROOT / "tests/plugins", checkout / "tests/plugins")
    (checkout / "tests/test_nothing.py").write_text("def test_nothing():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
