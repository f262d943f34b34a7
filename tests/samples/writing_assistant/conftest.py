"""The writing assistant as a person starts it: a tiny real bundle, the server's process, and a browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SAMPLE = Path(__file__).parents[3] / "samples/raspberry_pi/writing_assistant"
PATIENCE = 120.0  # seconds to wait for something that has to happen
CONTEXT = 2048
LAYERS = 24  # deep enough that a text takes seconds, so that it can be stopped on a busy machine too
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONG = 1800  # tokens of a long text in the tests
# Drawn at random, so that no loop arises that prompt lookup would guess; the end token is never among the likely half.
SETTINGS = f"""[writing]
temperature = 1.0
top_p = 0.5

[lengths]
short = 12
medium = 60
long = {LONG}

"""


def tiny_writer() -> Any:
    """A Llama with random weights and a byte-level tokenizer, whose end token is never the likeliest one."""
    import torch
    from edgescribe.converters.student import Student
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([(SAMPLE / "templates.toml").read_text(encoding="utf-8")], trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=768, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        initializer_range=0.1, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = LlamaForCausalLM(config).state_dict()
    state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    # a row of zeros has the logit zero, and of some hundreds of random ones there is always a larger one
    state["model.embed_tokens.weight"][0] = 0
    fields = json.loads(config.to_json_string(use_diff=False))
    named = {"eos_token": SPECIALS[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    return Student(
        fields, state, tokenizer, named, "generate", (), CONTEXT, 0, "tiny", "0" * 64, chat_template=CHAT
    )  # fmt: skip


@pytest.fixture(scope="session")
def writer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny writer for ONNX Runtime."""
    import torch
    from edgescribe.converters.make_writer_bundle import make_writer_bundle
    from edgescribe.converters.torch_decoder import TorchDecoder

    torch.set_num_threads(1)
    student = tiny_writer()
    out = tmp_path_factory.mktemp("writers") / "tiny"
    make_writer_bundle(
        student,
        {"fp32": TorchDecoder(student, "fp32").eval()},
        ["onnxruntime"],
        out,
        texts=["The new footbridge over the river was opened on Saturday by the mayor of the town."],
        source=student,
        recipe={"precision": "fp32"},
        seed=0,
        data_sha256={},
    )
    return out


@pytest.fixture(scope="session")
def long_templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's templates with a long text that is long, and without ends before."""
    path = tmp_path_factory.mktemp("templates") / "templates.toml"
    text = (SAMPLE / "templates.toml").read_text(encoding="utf-8")
    text = re.sub(r"^\[writing\].*?(?=^\[\[)", SETTINGS, text, flags=re.M | re.S)
    path.write_text(re.sub(r"^stop = .*\n", "", text, flags=re.M), encoding="utf-8")
    return path


@dataclass
class Texts:
    """A text that is being written, as its events tell."""

    answer: http.client.HTTPResponse
    connection: http.client.HTTPConnection

    def next(self) -> dict[str, Any]:
        """The next event."""
        line = self.answer.readline()
        assert line, "the answer broke off"
        return dict(json.loads(line))

    def until(self, *names: str) -> dict[str, Any]:
        """The next event of one of these kinds."""
        while True:
            event = self.next()
            if event["event"] in names:
                return event
            assert event["event"] not in ("end", "error"), event

    def rest(self) -> tuple[str, dict[str, Any]]:
        """The pieces to come, joined, and the last event."""
        text = ""
        while True:
            event = self.next()
            if event["event"] in ("end", "error"):
                assert not self.answer.read()
                return text, event
            text += event.get("text", "")


@dataclass
class Assistant:
    """A running writing assistant."""

    process: subprocess.Popen[str]
    log_path: Path
    port: int = 0
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request; a body that is no bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.connections.append(connection)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, sent, {"Content-Type": "application/json"} | (headers or {}))
        return connection, connection.getresponse()

    def answer(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """A request's status, and its answer from JSON."""
        connection, found = self.ask(method, path, body, headers)
        content = found.read()
        connection.close()
        return found.status, json.loads(content) if found.headers.get_content_type() == "application/json" else content

    def write(self, text: str, browser: str = "browser-1", **body: str) -> Texts:
        """Let a text be written."""
        asked = {"browser": browser, "field": "news", "action": "draft", "length": "long", "text": text} | body
        connection, found = self.ask("POST", "/write", asked)
        assert found.status == 200, found.read()
        return Texts(found, connection)

    def stop(self, id: str) -> bool:
        """Stop a text by its id."""
        status, found = self.answer("POST", "/stop", {"id": id})
        assert status == 200
        return bool(found["stopped"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def start(
    writer_bundle: Path, long_templates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Assistant]]:
    """Starts a writing assistant at a free port; it is killed at the end."""
    started = []

    def start(*options: str, bundle: Path = writer_bundle, templates: Path = long_templates) -> Assistant:
        log = tmp_path_factory.mktemp("log") / "log"
        program = [sys.executable, str(SAMPLE / "writing_assistant.py")]
        command = [*program, f"--bundle={bundle}", "--port=0", "--threads=1", f"--templates={templates}", *options]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, text=True)
        made = Assistant(process, log)
        started.append(made)
        end = time.monotonic() + PATIENCE
        while not (found := re.search(r"the page is at http://\S+:(\d+)/", made.log)):
            assert process.poll() is None, made.log
            assert time.monotonic() < end, made.log
            time.sleep(0.02)
        made.port = int(found[1])
        return made

    yield start
    for made in started:
        for connection in made.connections:
            connection.close()
        made.process.kill()
        made.process.wait()


class Browser:
    """Headless Chromium, driven through its DevTools protocol over a pair of pipes."""

    def __init__(self, program: str, profile: Path) -> None:
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            # as with the network cable out: no name leads anywhere, no address but this machine's
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]  # fmt: skip
        # the browser reads from descriptor 3 and writes to 4
        script = f"exec {shlex.join(command)} 3<&{read_end} 4>&{write_end}"
        self._process = subprocess.Popen(
            ["bash", "-c", script], pass_fds=(read_end, write_end), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and give its result; events meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            found = self._receive(end)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])
            if "method" in found:
                self.events.append(found)

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true, and give its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return value

    def open(self, address: str) -> None:
        """Open the assistant's page."""
        self.call("Page.navigate", url=address)
        self.wait("document.body?.dataset.ready === 'yes'")

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        named: dict[str, Any] = {"key": key, "code": key if text != " " else "Space", "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def click(self, selector: str) -> None:
        """Click into the middle of an element with the mouse."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        middle = "({x, y, width, height}) => [x + width / 2, y + height / 2]"
        box = self.run(f"({middle})({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def addresses(self) -> set[str]:
        """Every address that the page asked for."""
        self.run("0")  # what happened until now is read with the answer
        return {
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        }

    def complaints(self) -> list[str]:
        """What the console shows: exceptions, errors, violations of the policy."""
        self.run("0")
        names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in names]

    def close(self) -> None:
        """End the browser with all its processes."""
        os.close(self._out)
        os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A fresh browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Debian's package chromium")
    made = Browser(program, tmp_path / "profile")
    yield made
    made.close()
