"""The folder in which unfinished work is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgescribe.converters.stages import MARKER, check_stages, open_stages, put_into_place, recorded
from edgescribe.errors import InputError, OutputError

WORK = {"student": "abc", "recipe": {"name": "light", "training": {"epochs": 2}}}


def test_a_new_folder_stands_beside_the_output(tmp_path: Path) -> None:
    stages = open_stages(tmp_path / "deep" / "out", WORK, resume=False, force=False)
    assert stages.folder == tmp_path / "deep" / "out.work"
    assert recorded(tmp_path / "deep" / "out") == WORK
    stages.remove()
    assert not stages.folder.exists()


def test_interrupted_work_is_taken_up_or_thrown_away_but_never_lost_by_mistake(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages = open_stages(out, WORK, resume=False, force=False)
    stages.pruned.mkdir()
    with pytest.raises(OutputError, match="--resume takes it up, --force throws it away"):
        open_stages(out, WORK, resume=False, force=False)
    assert open_stages(out, WORK, resume=True, force=False).pruned.is_dir()
    assert not open_stages(out, WORK, resume=False, force=True).pruned.exists()


def test_other_work_is_not_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_stages(out, WORK, resume=False, force=False)
    other = {"student": "abd", "recipe": {"name": "light", "training": {"epochs": 3}}}
    with pytest.raises(InputError, match=r"\(recipe\.training\.epochs, student\)"):
        open_stages(out, other, resume=True, force=False)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        check_stages(tmp_path / "out", True, False)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_a_damaged_record(content: str, tmp_path: Path) -> None:
    stages = open_stages(tmp_path / "out", WORK, resume=False, force=False)
    (stages.folder / MARKER).write_text(content)
    with pytest.raises(InputError, match="is damaged"):
        check_stages(tmp_path / "out", True, False)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "out.work"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    for force in (False, True):
        with pytest.raises(OutputError, match="something else"):
            open_stages(tmp_path / "out", WORK, resume=False, force=force)
    assert (mine / "diary.txt").read_text() == "dear diary"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        open_stages(tmp_path / "file" / "out", WORK, resume=False, force=False)


def test_putting_into_place(tmp_path: Path) -> None:
    new, out = tmp_path / "out.work" / "bundle", tmp_path / "out"
    new.mkdir(parents=True)
    out.mkdir()
    (new / "a").write_text("new")
    (out / "a").write_text("old")
    put_into_place(new, out)
    assert (out / "a").read_text() == "new"
    assert list((tmp_path / "out.work").iterdir()) == []
    with pytest.raises(OutputError):
        put_into_place(tmp_path / "missing", out)
    assert (out / "a").read_text() == "new"
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["out", "out.work"]'
