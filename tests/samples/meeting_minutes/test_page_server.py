"""The page over HTTP: minutes, the line of browsers, stopping, and what is refused."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # a server of its own for each group

SECRET = "Zanzibar-7731"
GOOD = {"browser": "browser-1", "title": "Fair", "text": "Anna: We agreed to take hall 3 at the fair."}


@pytest.fixture(scope="module")
def board(start: Callable[..., Any]) -> Any:
    return start()


def test_minutes_come_part_by_part(board: Any, meeting: str) -> None:
    events = board.take(meeting)
    assert events.answer.headers["Content-Type"].startswith("application/x-ndjson")
    assert events.until("started")["id"]
    found, last = events.rest()
    parts = [event for event in found if event["event"] == "part"]
    assert len(parts) > 1
    assert parts[0]["start"] == 4
    told = [event for event in found if event["event"] == "progress"]
    assert [event["parts"] for event in told][: len(parts)] == list(range(1, len(parts) + 1))
    assert 0 < told[-1]["characters"] <= len(meeting)
    assert last["reason"] == "done"
    assert last["minutes"]["participants"] == ["Anna Bell", "Ravi Shah", "Carla Novak"]
    sections = [section["text"] for section in last["minutes"]["sections"]]
    assert sections == [part["text"] for part in parts if part["text"]]
    assert last["markdown"].startswith("# Fair\n")
    assert len(last["minutes"]["actions"]) == len(last["minutes"]["decisions"]) == 2


def test_the_same_transcript_has_the_same_minutes(board: Any, meeting: str) -> None:
    assert board.take(meeting).rest()[1] == board.take(meeting).rest()[1]


def test_a_few_words_and_what_has_none(board: Any) -> None:
    _, last = board.take("Hello.").rest()
    assert (last["minutes"]["summary"], last["minutes"]["reason"]) == ("Hello.", "short")
    _, last = board.take("WEBVTT\n").rest()
    assert (last["minutes"]["summary"], last["minutes"]["reason"]) == ("", "empty")
    _, last = board.take("Anna: hi\n\0\0").rest()
    assert (last["event"], "not a text" in last["message"]) == ("error", True)


def test_about(board: Any) -> None:
    status, about = board.answer("GET", "/about")
    assert status == 200
    assert "tiny, fp32 on onnxruntime" in about["student"]
    assert about["most_characters"] == 2_000_000


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"text": ""}, 400, "no transcript"),
        ({"text": " \n\t "}, 400, "no transcript"),
        ({"text": 5}, 400, "$.text"),
        ({"text": "words " * 400_000}, 413, "2,000,000 are allowed"),
        ({"title": "t" * 201}, 400, "$.title"),
        ({"browser": "b"}, 400, "$.browser"),
        ({"more": 2}, 400, "more"),
    ],
)
def test_bad_requests_say_what_is_wrong(board: Any, change: dict[str, Any], status: int, message: str) -> None:
    found, answer = board.answer("POST", "/minutes", GOOD | change)
    assert (found, message in answer["error"]) == (status, True), answer


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (json.dumps(GOOD | {"text": "\ud800"}).encode(), 400),
        (b" " * (9 << 20), 413),
        (b"[" * 200_000, 400),
    ],
)
def test_bad_bodies_are_refused(board: Any, body: bytes, status: int) -> None:
    assert board.answer("POST", "/minutes", body)[0] == status
    assert board.answer("POST", "/stop", body)[0] == status


def test_only_its_own_page_may_ask(board: Any) -> None:
    ask = board.answer
    own = f"127.0.0.1:{board.port}"
    assert ask("POST", "/minutes", json.dumps(GOOD).encode(), {"Content-Type": "text/plain"})[0] == 415
    assert ask("POST", "/minutes", GOOD, {"Origin": "http://elsewhere.example"})[0] == 403
    assert ask("POST", "/minutes", GOOD, {"Origin": "null"})[0] == 403
    assert ask("POST", "/stop", {"id": "x"}, {"Origin": f"http://{own}"}) == (200, {"stopped": False})
    hosts = {own: 200, "localhost": 200, "192.168.1.5:8080": 200, "elsewhere.example": 403, "": 403}
    for host, status in hosts.items():
        assert ask("GET", "/about", headers={"Host": host})[0] == status, host
    _, answer = board.ask("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    answer.read()
    assert ask("GET", "/minutes")[0] == 405
    assert ask("GET", "/../meeting_minutes.py")[0] == 404


def test_stop_ends_it_after_the_part_at_hand(board: Any, long_meeting: str) -> None:
    events = board.take(long_meeting)
    id = events.until("started")["id"]
    events.until("part")
    assert board.stop(id)
    found, last = events.rest()
    assert last == {"event": "end", "reason": "cancelled"}
    assert len(found) < 20
    assert not board.stop(id)


def test_one_after_the_other_and_told_so(board: Any, long_meeting: str) -> None:
    first = board.take(long_meeting, "browser-1")
    id = first.until("started")["id"]
    second = board.take(GOOD["text"], "browser-2")
    assert second.until("waiting")["ahead"] == 1
    third = board.take(GOOD["text"], "browser-3")
    waits = third.until("waiting")
    assert waits["ahead"] == 2
    status, answer = board.answer("POST", "/minutes", GOOD | {"browser": "browser-2"})
    assert (status, "already" in answer["error"]) == (409, True)
    assert board.stop(waits["id"])
    assert third.rest() == ([], {"event": "end", "reason": "cancelled"})
    assert board.stop(id)
    assert second.rest()[1]["reason"] == "done"
    assert first.rest()[1]["reason"] == "cancelled"


def test_who_leaves_frees_the_summariser(board: Any, long_meeting: str) -> None:
    first = board.take(long_meeting, "browser-1")
    first.until("part")
    first.answer.close()
    first.connection.close()
    assert board.take(GOOD["text"], "browser-2").rest()[1]["reason"] == "done"


def test_a_line_that_is_too_long_is_closed(board: Any, long_meeting: str) -> None:
    first = board.take(long_meeting, "browser-0")
    id = first.until("started")["id"]
    waiting = [board.take(GOOD["text"], f"waiting-{number}") for number in range(4)]
    status, answer = board.answer("POST", "/minutes", GOOD | {"browser": "one-too-many"})
    assert (status, "4 others" in answer["error"]) == (503, True)
    assert board.stop(id)
    for events in waiting:
        assert events.rest()[1]["reason"] == "done"


def test_transcripts_are_neither_logged_nor_stored(start: Callable[..., Any], tmp_path: Path) -> None:
    folders = [f"--{name}={tmp_path / name}" for name in ("inbox", "outbox", "rejected")]
    board = start("--verbose", *folders)
    _, last = board.take(f"{SECRET}: We agreed that the name is {SECRET}.", title=SECRET).rest()
    assert SECRET in last["markdown"].replace("\\", "")
    board.answer("POST", "/minutes", GOOD | {"text": SECRET, "title": SECRET * 30})
    board.take(f"Anna: {SECRET}\0").rest()
    assert board.end() == 0
    assert SECRET not in board.log
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_end_stops_what_is_at_work_and_tells_the_browsers(start: Callable[..., Any], long_meeting: str) -> None:
    board = start()
    first = board.take(long_meeting, "browser-1")
    first.until("part")
    second = board.take(long_meeting, "browser-2")
    second.until("waiting")
    board.process.send_signal(signal.SIGTERM)
    assert first.rest()[1]["reason"] == "shutdown"
    assert second.rest()[1]["reason"] == "shutdown"
    assert board.process.wait(60) == 0
    assert board.log.splitlines()[-1].endswith("INFO ended")
    assert start().end(signal.SIGINT) == 130


def test_it_serves_this_machine_alone_unless_told(board: Any, start: Callable[..., Any]) -> None:
    assert f"http://127.0.0.1:{board.port}/" in board.log
    assert "unencrypted" not in board.log
    everywhere = start("--host=0.0.0.0", "--name=desk.home.example")
    assert "unencrypted" in everywhere.log
    assert everywhere.answer("GET", "/about", headers={"Host": "desk.home.example"})[0] == 200
    assert everywhere.answer("GET", "/about", headers={"Host": "other.home.example"})[0] == 403


def test_half_a_request_keeps_nobody_waiting(board: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", board.port)
    connection.putrequest("POST", "/minutes")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert board.take(GOOD["text"]).rest()[1]["reason"] == "done"
    connection.close()
