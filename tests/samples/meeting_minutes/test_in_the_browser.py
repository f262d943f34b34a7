"""The page in a real browser, as with the network cable out: pasted into, read, stopped, by mouse, keyboard and ear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
STATUS = "document.querySelector('#status').textContent"
PROBLEM = "document.querySelector('#problem').textContent"
MINUTES = "document.querySelector('#minutes').innerText"
WORKS = "document.querySelectorAll('#parts li').length > 0 && !document.querySelector('#stop').disabled"
IDLE = "!document.querySelector('#take').disabled"


@pytest.fixture(scope="module")
def board(start: Callable[..., Any]) -> Any:
    return start()


@pytest.fixture
def page(browser: Any, board: Any) -> Any:
    """The page, opened; at the end nothing may have been asked for elsewhere, and nothing complained about."""
    browser.open(f"{board.address}/")
    yield browser
    own = f"http://127.0.0.1:{board.port}/"
    addresses = browser.addresses()
    assert [found for found in addresses if not found.startswith((own, "about:", f"blob:{own}"))] == []
    assert f"{own}about" in addresses
    assert browser.complaints() == []


def paste(page: Any, text: str) -> None:
    """Paste a transcript."""
    page.click("#text")
    page.run("document.querySelector('#text').select()")
    page.type(text)


def choose(page: Any, path: Path) -> None:
    """Choose a file."""
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)


def test_a_pasted_transcript_becomes_minutes(page: Any, meeting: str) -> None:
    page.run(
        "(() => { window.seen = []; setInterval(() => { const n = document.querySelectorAll('#parts li').length;"
        " if (n !== window.seen.at(-1)) window.seen.push(n); }, 1); })()"
    )
    page.click("#title")
    page.type("Spring fair")
    paste(page, meeting)
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    grown = [count for count in page.run("window.seen") if count]
    assert grown == sorted(grown)
    assert len(grown) > 1
    shown = page.run(MINUTES)
    for words in (
        "Spring fair", "About 0:00:41 long", "Anna Bell, Ravi Shah, Carla Novak", "By part", "Decisions",
        "“Then let's go with hall 3.” (Anna Bell, 0:00:25)", "Ravi Shah: sign the contract (by Friday)",
    ):  # fmt: skip
        assert words in shown
    assert page.run("document.querySelectorAll('#minutes input[type=checkbox]').length") == 2
    assert page.run("document.querySelector('#parts').hidden && document.querySelector('#progress').hidden")


def test_the_example_and_its_markdown(page: Any, tmp_path: Path) -> None:
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#example")
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    shown = page.run(MINUTES)
    assert "Ravi Shah: send you the floor plan" in shown
    assert "(on Monday)" in shown
    assert "“The budget was approved by the board in March.” (Carla Novak" in shown
    page.click("#copy")
    page.wait(f"{STATUS} === 'Copied.'")
    page.click("#download")
    path = tmp_path / "Spring fair and heating.md"
    page.wait_for(path.exists)
    markdown = path.read_text(encoding="utf-8")
    assert markdown.startswith("# Spring fair and heating\n")
    assert "- [ ] **Ravi Shah**: sign the contract (by Friday)" in markdown


def test_a_file_is_chosen(page: Any, meeting: str, tmp_path: Path) -> None:
    path = tmp_path / "spring_fair.vtt"
    path.write_bytes(meeting.replace("\n", "\r\n").encode("utf-8-sig"))
    choose(page, path)
    page.wait("document.querySelector('#text').value.includes('Carla Novak')")
    assert page.run("document.querySelector('#title').value") == "Spring fair"
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    assert "Carla Novak" in page.run(MINUTES)
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    choose(page, tmp_path / "photo.txt")
    page.wait(f"{PROBLEM}.includes('photo.txt is not a text in UTF-8')")
    (tmp_path / "wide.txt").write_text("Zoë: in two bytes", encoding="utf-16")
    choose(page, tmp_path / "wide.txt")
    page.wait("document.querySelector('#text').value === 'Zoë: in two bytes'")


def test_a_transcript_cannot_put_anything_into_the_page(page: Any) -> None:
    wild = "<img src=x onerror=document.title=1>: We agreed on <script>document.title=2</script> <b>this</b>."
    paste(page, f"WEBVTT\n\n00:01.000 --> 00:02.000\n&lt;b&gt;We agreed on {wild}&lt;/b&gt;\n")
    page.click("#title")
    page.type(wild)
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    assert page.run("document.title") == "Meeting minutes"
    assert page.run("document.querySelectorAll('#minutes img, #minutes script, #minutes b').length") == 0
    assert wild in page.run(MINUTES)


def test_stop_stops_it_and_the_next_one_follows(page: Any, meeting: str, long_meeting: str) -> None:
    page.run(f"document.querySelector('#text').value = {json.dumps(long_meeting)}")
    page.click("#take")
    page.wait(WORKS)
    assert page.run("document.querySelector('#progress').value") < 1
    page.click("#stop")
    page.wait(IDLE)
    assert page.run(STATUS) == "Stopped."
    assert page.run("document.querySelector('#copy').disabled")
    paste(page, meeting)
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")


def test_by_keyboard_alone(page: Any, long_meeting: str) -> None:
    def focused() -> str:
        return str(page.run("document.activeElement.id"))

    way = []
    for _ in range(5):
        page.press("Tab", 9)
        way.append(focused())
    assert way == ["title", "example", "text", "file", "take"]
    page.run(f"document.querySelector('#text').value = {json.dumps(long_meeting)}")
    page.press("Enter", 13, "\r")
    page.wait(WORKS)
    assert focused() == "stop"
    page.press("Escape", 27)
    page.wait(IDLE)
    assert page.run(STATUS) == "Stopped."
    assert focused() == "take"


def test_it_can_be_heard(page: Any, meeting: str) -> None:
    paste(page, meeting)
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    heard = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    ]
    roles = {"textbox", "button", "heading", "checkbox", "progressbar"}
    assert [role for role, name in heard if role in roles and not name] == []
    assert {"Title", "Transcript"} <= {name for role, name in heard if role == "textbox"}
    assert {"main", "banner", "contentinfo", "status", "article"} <= {role for role, _ in heard}
    assert {"Minutes", "Decisions", "Action items"} <= {name for role, name in heard if role == "heading"}
    assert ("checkbox", "Ravi Shah: sign the contract (by Friday)") in heard


def test_problems_are_said(page: Any) -> None:
    page.click("#take")
    assert "Paste one" in page.run(PROBLEM)
    assert page.run("document.activeElement.id") == "text"
    page.run("document.querySelector('#text').value = 'words '.repeat(400000)")
    page.click("#take")
    page.wait(f"{PROBLEM}.includes('2,000,000 are allowed')")
    assert page.run(IDLE)
    # the browser's own note of the answer's status
    assert all("413" in each for each in page.complaints())
    page.events = [event for event in page.events if event["method"] != "Log.entryAdded"]


def test_another_browser_waits_and_is_told(page: Any, board: Any, meeting: str, long_meeting: str) -> None:
    other = board.take(long_meeting, "another-browser")
    id = other.until("started")["id"]
    paste(page, meeting)
    page.click("#take")
    page.wait(f"{STATUS} === 'Waiting: 1 transcript is before yours.'")
    board.stop(id)
    page.wait(f"{STATUS} === 'Done.'")


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_phones_and_desks(page: Any, board: Any, meeting: str, width: int) -> None:
    phone = width < 800
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=phone)
    page.open(f"{board.address}/?{width}")
    paste(page, meeting.replace("hall 3", "h" * 200))
    page.click("#take")
    page.wait(f"{STATUS} === 'Done.'")
    assert page.run("document.documentElement.scrollWidth") <= width
    small = page.run(
        "[...document.querySelectorAll('input:not([type=checkbox]), textarea, button:not(.plain)')]"
        ".filter((e) => e.getBoundingClientRect().height < 44).map((e) => e.id || e.textContent)"
    )
    assert small == []  # a finger's breadth, in CSS pixels
    sizes = page.run("[...document.querySelectorAll('input, textarea')].map((e) => getComputedStyle(e).fontSize)")
    assert min(float(size.removesuffix("px")) for size in sizes) >= 16  # or phones zoom into what is typed
