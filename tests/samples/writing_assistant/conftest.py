"""The writing assistant as a person starts it: a tiny real bundle, and the server's process."""

from __future__ import annotations

import http.client
import json
import re
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
