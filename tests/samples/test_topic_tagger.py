"""The topic tagger over real files, in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NET, GAMES = "the network router", "a chess puzzle"


def test_once_files_every_text_by_its_topic(tagger: Any) -> None:
    (tagger.inbox / "a.txt").write_text(NET)
    (tagger.inbox / "b").write_text(GAMES)
    (tagger.inbox / "mit Leerzeichen & ü.md").write_text("\ufeffaudio mixer", encoding="utf-8")
    (tagger.inbox / "wide.txt").write_text("music", encoding="utf-16")
    done = tagger.once()
    assert done.returncode == 0, done.stderr
    assert tagger.files() == {
        "outbox/net/a.txt", "outbox/games/b", "outbox/sound/mit Leerzeichen & ü.md", "outbox/sound/wide.txt",
    }  # fmt: skip
    assert (tagger.outbox / "net/a.txt").read_text() == NET
    assert "filed 'a.txt' as 'net/a.txt'" in done.stderr
    assert done.stdout == ""


def test_unsure_texts_have_a_folder_of_their_own(tagger: Any) -> None:
    (tagger.inbox / "a.txt").write_text(NET)
    (tagger.inbox / "b.txt").write_text("a network for music and chess")  # a third each
    assert tagger.once("--min-score=0.6").returncode == 0
    assert tagger.files() == {"outbox/net/a.txt", "outbox/_unsure/b.txt"}


def test_what_is_no_text_is_rejected_with_the_reason(tagger: Any) -> None:
    (tagger.inbox / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (tagger.inbox / "latin.txt").write_bytes("Grüße".encode("latin1"))
    (tagger.inbox / "nulls.txt").write_bytes(b"net\0work")
    (tagger.inbox / "empty.txt").write_bytes(b"")
    (tagger.inbox / "blank.txt").write_text(" \n\t")
    (tagger.inbox / "huge.txt").write_text("network " * 200)
    done = tagger.once("--max-bytes=1000")
    assert done.returncode == 0, done.stderr
    reasons = {
        "image.png": "not a text in UTF-8 (byte 0)", "latin.txt": "iconv", "nulls.txt": "null bytes",
        "empty.txt": "empty", "blank.txt": "white space", "huge.txt": "1,600 bytes",
    }  # fmt: skip
    assert tagger.files() == {f"rejected/{name}{end}" for name in reasons for end in ("", ".reason.txt")}
    for name, reason in reasons.items():
        assert reason in (tagger.rejected / f"{name}.reason.txt").read_text()
        assert f"rejected {name!r}" in done.stderr


def test_a_huge_file_is_not_read(tagger: Any) -> None:
    with (tagger.inbox / "disk.img").open("wb") as file:
        file.truncate(1 << 40)
    assert tagger.once().returncode == 0
    assert "rejected/disk.img" in tagger.files()


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads everything; needs setpriv")
def test_a_file_that_may_not_be_read_is_rejected(tagger: Any, tmp_path: Path) -> None:
    (tagger.inbox / "locked.txt").write_text(NET)
    (tagger.inbox / "open.txt").write_text(NET)
    (tagger.inbox / "locked.txt").chmod(0)
    command = tagger.command("--once", "--settle=0")
    if os.geteuid() == 0:  # keeps root's ownership of the folders without its power over permissions
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"outbox/net/open.txt", "rejected/locked.txt"} <= tagger.files()
    assert "chmod" in (tagger.rejected / "locked.txt.reason.txt").read_text()


def test_what_is_unfinished_or_no_file_stays(tagger: Any) -> None:
    for name in (".hidden.txt", "a.part", "b.tmp", "c.txt~"):
        (tagger.inbox / name).write_text(NET)
    (tagger.inbox / "folder").mkdir()
    (tagger.inbox / "folder/inner.txt").write_text(NET)
    (tagger.inbox / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(tagger.inbox / "pipe.txt")
    done = tagger.once()
    assert done.returncode == 0
    left = {".hidden.txt", "a.part", "b.tmp", "c.txt~", "folder", "link.txt", "pipe.txt"}
    assert {path.name for path in tagger.inbox.iterdir()} == left
    assert not tagger.files(tagger.outbox)
    assert not tagger.files(tagger.rejected)
    assert "'pipe.txt' is a folder, link or device" in done.stderr


def test_equal_names_never_overwrite(tagger: Any) -> None:
    texts = [NET, "a packet tool", "the router"]
    for text in texts:
        (tagger.inbox / "note.tar.gz").write_text(text)
        assert tagger.once().returncode == 0
    folder = tagger.outbox / "net"
    assert [(folder / name).read_text() for name in ("note.tar.gz", "note.tar-2.gz", "note.tar-3.gz")] == texts


def test_the_same_text_again_is_kept_once(tagger: Any) -> None:
    for _ in range(2):
        (tagger.inbox / "note.txt").write_text(NET)
        assert tagger.once().returncode == 0
    assert tagger.files() == {"outbox/net/note.txt"}


def test_names_with_newlines_and_bad_bytes_keep_the_log_whole(tagger: Any) -> None:
    (tagger.inbox / "a\n<0>kernel panic").write_text(NET)
    Path(os.fsdecode(os.fsencode(tagger.inbox) + b"/\xff\xfe.txt")).write_text(GAMES)
    done = tagger.once()
    assert done.returncode == 0, done.stderr
    assert len(tagger.files(tagger.outbox)) == 2
    assert not any(line.startswith("<0>") for line in done.stderr.splitlines())


def test_a_text_that_is_still_being_written_is_waited_for(
    tagger: Any, until: Callable[..., None], ended: Callable[..., tuple[int, str]]
) -> None:
    process = tagger.start()
    with (tagger.inbox / "slow.txt").open("w") as file:
        for word in ("the ", "network ", "router ") * 6:
            file.write(word)
            file.flush()
            assert (tagger.inbox / "slow.txt").exists()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05)
    until(lambda: (tagger.outbox / "net/slow.txt").exists() and not tagger.files(tagger.inbox))
    assert (tagger.outbox / "net/slow.txt").read_text() == "the network router " * 6
    code, log = ended(process, signal.SIGTERM)
    assert code == 0, log
    assert "ended: 1 filed, 0 rejected" in log


def test_ctrl_c_ends_it_with_130(
    tagger: Any, until: Callable[..., None], ended: Callable[..., tuple[int, str]]
) -> None:
    process = tagger.start()
    (tagger.inbox / "a.txt").write_text(NET)
    until(lambda: (tagger.outbox / "net/a.txt").exists())
    assert ended(process, signal.SIGINT)[0] == 130


def test_killed_at_any_time_it_loses_and_doubles_nothing(tagger: Any, until: Callable[..., None]) -> None:
    texts = {f"{number}.txt": f"{NET} {number}" for number in range(150)}
    for name, text in texts.items():
        (tagger.inbox / name).write_text(text)
    for least in (1, 40, 90):
        process = tagger.start()
        until(lambda least=least: len(tagger.files(tagger.outbox)) >= least)
        process.kill()
        process.communicate()
    assert tagger.once().returncode == 0
    filed = {path.name: path.read_text() for path in (tagger.outbox / "net").iterdir()}
    assert filed == texts
    assert not tagger.files(tagger.inbox)


def test_two_at_one_inbox_are_refused(tagger: Any, until: Callable[..., None]) -> None:
    process = tagger.start()
    (tagger.inbox / "a.txt").write_text(NET)
    until(lambda: (tagger.outbox / "net/a.txt").exists())
    second = tagger.once()
    assert second.returncode == 4
    assert "another topic tagger is at work" in second.stderr
    assert process.poll() is None


def test_a_full_or_forbidden_outbox_keeps_the_text_in_the_inbox(tagger: Any) -> None:
    (tagger.inbox / "a.txt").write_text(NET)
    (tagger.inbox / "b.txt").write_text(GAMES)
    tagger.outbox.mkdir()
    (tagger.outbox / "net").write_text("a file where the folder should be")
    done = tagger.once()
    assert done.returncode == 0
    assert {"inbox/a.txt", "outbox/games/b.txt"} <= tagger.files()
    assert "'a.txt' stays in the inbox, next attempt in 5 s" in done.stderr


def test_an_inbox_that_comes_back_is_worked_on(
    tagger: Any, until: Callable[..., None], ended: Callable[..., tuple[int, str]]
) -> None:
    process = tagger.start()
    (tagger.inbox / "a.txt").write_text(NET)
    until(lambda: (tagger.outbox / "net/a.txt").exists())
    tagger.inbox.rename(tagger.root / "unplugged")
    (tagger.root / "unplugged/b.txt").write_text(NET + " card")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    (tagger.root / "unplugged").rename(tagger.inbox)
    until(lambda: (tagger.outbox / "net/b.txt").exists())
    code, log = ended(process, signal.SIGTERM)
    assert code == 0
    assert log.count("cannot be looked at") == 1
    assert "the inbox is there again" in log


def test_systemd_is_told_and_the_log_has_priorities(
    tagger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Callable[..., tuple[int, str]]
) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        (tagger.inbox / "a.txt").write_text(NET)
        (tagger.inbox / "empty.txt").write_text("")
        process = tagger.start()
        said = [channel.recv(1000).decode() for _ in range(2)]
        code, log = ended(process, signal.SIGTERM)
        said.append(channel.recv(1000).decode())
    assert code == 0
    assert said == ["READY=1", "STATUS=1 filed, 1 rejected since the start", "STOPPING=1"]
    lines = log.splitlines()
    assert all(line.startswith(("<6>", "<4>")) for line in lines)
    assert any(line.startswith("<6>filed 'a.txt'") for line in lines)
    assert any(line.startswith("<4>rejected 'empty.txt'") for line in lines)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"bundle": "nothing"}, 4, "nothing"),
        ({"outbox": "inbox"}, 4, "three folders"),
        ({"rejected": "inbox/a.txt/rejected"}, 4, "--rejected"),
        ({"runtime": "litert"}, 4, "litert"),
        ({"max-bytes": "0"}, 2, "--max-bytes"),
        ({"settle": "nan"}, 2, "--settle"),
        ({"min-score": "2"}, 2, "--min-score"),
        ({"threads": "-1"}, 2, "threads"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tagger: Any, change: dict[str, str], code: int, message: str) -> None:
    (tagger.inbox / "a.txt").write_text(NET)
    paths = ("bundle", "outbox", "rejected")
    done = tagger.once(*(f"--{key}={tagger.root / value if key in paths else value}" for key, value in change.items()))
    assert done.returncode == code, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert tagger.files(tagger.inbox) == {"a.txt"}


def test_a_missing_engine_is_named(tagger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('no onnxruntime', name='onnxruntime')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = tagger.once()
    assert done.returncode == 5
    assert "edgescribe[onnxruntime]" in done.stderr
