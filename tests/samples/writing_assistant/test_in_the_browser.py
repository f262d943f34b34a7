"""The page in a real browser, as with the network cable out: typed into, read, stopped, by mouse, keyboard and ear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
SAMPLE = Path(__file__).parents[3] / "samples/raspberry_pi/writing_assistant"
TEXT = "A new bridge was opened on Saturday."
RESULT = "document.querySelector('#result').value"
STATUS = "document.querySelector('#status').textContent"
WRITES = f"{RESULT} !== '' && !document.querySelector('#stop').disabled"
IDLE = "!document.querySelector('#write').disabled"


def choose(browser: Any, **values: str) -> None:
    """Choose in the page's lists, as its person would."""
    for name, value in values.items():
        browser.run(
            f"(() => {{ const e = document.querySelector('#{name}'); e.value = '{value}';"
            " e.dispatchEvent(new Event('change')); })()"
        )


@pytest.fixture(scope="module")
def assistant(start: Callable[..., Any]) -> Any:
    return start()


@pytest.fixture
def page(browser: Any, assistant: Any) -> Any:
    """The page, opened; at the end nothing may have been asked for elsewhere, and nothing complained about."""
    browser.open(f"{assistant.address}/")
    yield browser
    own = f"http://127.0.0.1:{assistant.port}/"
    assert [address for address in browser.addresses() if not address.startswith((own, "about:"))] == []
    assert f"{own}templates" in browser.addresses()
    assert browser.complaints() == []


def test_a_text_streams_into_the_page(page: Any) -> None:
    choose(page, length="medium")
    # how long the result was whenever it grew
    page.run(
        "(() => { window.seen = []; setInterval(() => { const n = document.querySelector('#result').value.length;"
        " if (n !== window.seen.at(-1)) window.seen.push(n); }, 1); })()"
    )
    page.click("#text")
    page.type(TEXT)
    page.click("#write")
    page.wait(f"{STATUS}.startsWith('Done')")
    grown = [count for count in page.run("window.seen") if count]
    assert len(grown) > 1
    assert grown == sorted(grown)
    assert grown[-1] == page.run(f"{RESULT}.length")
    figures = page.run("document.querySelector('#figures').textContent")
    assert "First token after" in figures
    assert "tokens/s" in figures
    assert "60 tokens" in figures


def test_stop_stops_it_and_the_next_text_follows(page: Any, assistant: Any) -> None:
    choose(page, length="long")
    page.click("#text")
    page.type(TEXT)
    page.click("#write")
    page.wait(WRITES)
    page.click("#stop")
    page.wait(IDLE)
    assert page.run(STATUS).startswith("Stopped")
    tokens = int(page.run("document.querySelector('#figures').textContent").split(" · ")[-1].split()[0])
    assert 0 < tokens < 1800
    stopped = page.run(RESULT)
    choose(page, length="short")
    page.click("#write")
    page.wait(f"{STATUS}.startsWith('Done')")
    assert page.run(RESULT) != stopped


def test_by_keyboard_alone(page: Any) -> None:
    def focused() -> str:
        return str(page.run("document.activeElement.id || document.activeElement.value || ''"))

    way = []
    for _ in range(6):
        page.press("Tab", 9)
        way.append(focused())
    assert way[:5] == ["field", "length", "draft", "example", "text"]
    choose(page, length="long")
    page.run("document.querySelector('#text').focus()")
    page.type(TEXT)
    page.press("Tab", 9)
    assert focused() == "write"
    page.press("Enter", 13, "\r")
    page.wait(WRITES)
    assert focused() == "stop"
    page.press("Escape", 27)
    page.wait(IDLE)
    assert page.run(STATUS).startswith("Stopped")
    assert focused() == "write"


def test_it_can_be_heard(page: Any) -> None:
    choose(page, field="medical")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    heard = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    ]
    roles = {"combobox", "radio", "textbox", "button", "group", "heading", "link"}
    assert [role for role, name in heard if role in roles and not name] == []
    assert {"Field", "Length (tokens)"} <= {name for role, name in heard if role == "combobox"}
    assert [name for role, name in heard if role == "radio"] == ["Draft", "Rewrite", "Summarise", "Continue"]
    assert {"main", "banner", "contentinfo", "status", "note"} <= {role for role, _ in heard}
    assert ("textbox", "Result") in heard
    assert "must check" in page.run("document.querySelector('#notice').textContent")


def test_medical_texts_are_marked_as_not_checked(page: Any) -> None:
    choose(page, field="medical", length="short")
    page.click("#text")
    page.type("Woman, 54, cough")
    page.click("#write")
    page.wait(f"{STATUS}.startsWith('Done')")
    assert page.run("!document.querySelector('#check').hidden")
    assert "must check" in page.run("document.querySelector('#check').textContent")
    choose(page, field="teaching")  # what is shown belongs to the text, not to what is chosen next
    assert page.run("document.querySelector('#notice').hidden && !document.querySelector('#check').hidden")


def test_problems_are_said(page: Any, assistant: Any) -> None:
    page.click("#write")
    assert "Type some" in page.run("document.querySelector('#problem').textContent")
    assert page.run("document.activeElement.id") == "text"
    page.type("ß" * 6000)
    page.click("#write")
    page.wait("document.querySelector('#problem').textContent.includes('too long')")
    assert page.run(IDLE)
    # the browser's own note of the answer's status
    assert all("413" in each for each in page.complaints())
    page.events = [event for event in page.events if event["method"] != "Log.entryAdded"]


def test_another_browser_waits_and_is_told(page: Any, assistant: Any) -> None:
    other = assistant.write(TEXT, "another-browser")
    id = other.until("started")["id"]
    choose(page, length="short")
    page.click("#text")
    page.type(TEXT)
    page.click("#write")
    page.wait(f"{STATUS} === 'Waiting: 1 text is before yours.'")
    assistant.stop(id)
    page.wait(f"{STATUS}.startsWith('Done')")


def test_closing_the_page_frees_the_writer(page: Any, assistant: Any) -> None:
    choose(page, length="long")
    page.click("#text")
    page.type(TEXT)
    page.click("#write")
    page.wait(WRITES)
    page.call("Page.navigate", url="about:blank")
    texts = assistant.write(TEXT, "another-browser", length="short")
    assert texts.rest()[1]["reason"] == "length"


def test_examples_results_and_the_text_box(page: Any) -> None:
    choose(page, length="short")
    page.click("#example")
    example = page.run("document.querySelector('#text').value")
    assert "footbridge" in example
    page.click("input[value=continue]")
    page.click("#example")
    beginning = page.run("document.querySelector('#text').value")
    assert beginning != example
    page.click("#write")
    page.wait(f"{STATUS}.startsWith('Done')")
    page.click("#reuse")
    text = page.run("document.querySelector('#text').value")
    assert text.startswith(beginning.strip())
    assert len(text) > len(beginning)
    page.click("#copy")
    page.wait(f"{STATUS} === 'Copied.'")


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_phones_and_desks(page: Any, assistant: Any, width: int) -> None:
    phone = width < 800
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=phone)
    page.open(f"{assistant.address}/?{width}")
    choose(page, field="medical")
    assert page.run("document.documentElement.scrollWidth") <= width
    small = page.run(
        "[...document.querySelectorAll('select, textarea, button:not(.plain), .action')]"
        ".filter((e) => e.getBoundingClientRect().height < 44).map((e) => e.id || e.textContent)"
    )
    assert small == []  # a finger's breadth, in CSS pixels
    sizes = page.run("[...document.querySelectorAll('select, textarea')].map((e) => getComputedStyle(e).fontSize)")
    assert min(float(size.removesuffix("px")) for size in sizes) >= 16  # or phones zoom into what is typed
