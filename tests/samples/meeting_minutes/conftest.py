"""The meeting minutes as a person starts them: a tiny real bundle, folders, the server's process."""

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
from fixed_vocabulary import give_unigram

SAMPLE = Path(__file__).parents[3] / "samples/raspberry_pi/meeting_minutes"
sys.path.insert(0, str(SAMPLE))  # its modules import each other by bare name, as they do on the device
PATIENCE = 120.0  # seconds to wait for something that has to happen
SOURCE_CONTEXT, CONTEXT = 96, 24
PAD, END = 0, 1

MEETING = """WEBVTT

00:00:04.000 --> 00:00:11.000
<v Anna Bell>Good morning. Today is about the stand at the spring fair and the new heating.

00:00:12.000 --> 00:00:24.000
<v Ravi Shah>The fair has offered us hall 3 or hall 5. Hall 3 is nearer to the entrance.

00:00:25.000 --> 00:00:31.000
<v Anna Bell>Then let's go with hall 3. Ravi, can you sign the contract by Friday?

00:00:32.000 --> 00:00:40.000
<v Ravi Shah>Yes. I'll send you the floor plan tomorrow, so that you see where the stand is.

00:00:41.000 --> 00:00:55.000
<v Carla Novak>About the heating: two firms have been here. We agreed to take the second one.
"""


def tiny_summarizer() -> Any:
    """A T5 with random weights that writes words of the meeting's until its context is full."""
    import torch
    from edgescribe.converters.student import Student
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    lines = [line for line in MEETING.splitlines() if line.startswith("<v")]
    spoken = [re.sub("<v|>", "", line) for line in lines]
    give_unigram(tokenizer, spoken, 300, ["<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2,
        num_heads=4, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END, dropout_rate=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = T5ForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    state = dict(model.state_dict())
    state["shared.weight"][END] = 0
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        state.pop(name, None)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields["task_specific_params"] = {"summarization": {"no_repeat_ngram_size": 2}}
    named = {"eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return Student(
        config=fields, state=state, tokenizer=tokenizer, tokenizer_config=named, task="summarize", labels=(),
        max_tokens=SOURCE_CONTEXT, pad_id=PAD, source="tiny", sha256="0" * 64,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny summariser for ONNX Runtime."""
    import torch
    from edgescribe.converters.make_summarizer_bundle import make_summarizer_bundle
    from edgescribe.converters.torch_encoder_decoder import TorchEncoderDecoder

    torch.set_num_threads(1)
    student = tiny_summarizer()
    out = tmp_path_factory.mktemp("summarizers") / "tiny"
    make_summarizer_bundle(
        student,
        {"fp32": TorchEncoderDecoder(student, "fp32").eval()},
        ["onnxruntime"],
        out,
        texts=["Good morning. Today is about the stand at the spring fair and the new heating."],
        source=student,
        recipe={"precision": "fp32"},
        seed=0,
        data_sha256={},
        summary_tokens=CONTEXT,
    )
    return out


@pytest.fixture
def meeting() -> str:
    """A short meeting as WebVTT: three people, two decisions, two action items."""
    return MEETING


@pytest.fixture
def long_meeting() -> str:
    """A meeting that takes a while: hundreds of parts."""
    return "".join(
        f"Anna Bell: The fair has offered us hall {number}, and hall 3 is nearer to the entrance.\n"
        f"Ravi Shah: I'll send you the floor plan of hall {number} by Friday.\n"
        for number in range(2000)
    )


@dataclass
class Events:
    """What happens to a transcript, as its events tell."""

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

    def rest(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The events to come, and the last one."""
        found = []
        while True:
            event = self.next()
            if event["event"] in ("end", "error"):
                assert not self.answer.read()
                return found, event
            found.append(event)


@dataclass
class Board:
    """A running program."""

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

    def take(self, text: str, browser: str = "browser-1", title: str = "Fair") -> Events:
        """Have minutes taken."""
        connection, found = self.ask("POST", "/minutes", {"browser": browser, "title": title, "text": text})
        assert found.status == 200, found.read()
        return Events(found, connection)

    def stop(self, id: str) -> bool:
        """Stop what has this id."""
        status, found = self.answer("POST", "/stop", {"id": id})
        assert status == 200
        return bool(found["stopped"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def start(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Board]]:
    """Starts the program at a free port; it is killed at the end."""
    started = []

    def start(*options: str, bundle: Path = tiny_bundle) -> Board:
        log = tmp_path_factory.mktemp("log") / "log"
        program = [sys.executable, str(SAMPLE / "meeting_minutes.py")]
        command = [*program, f"--bundle={bundle}", "--port=0", "--threads=1", *options]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, text=True)
        made = Board(process, log)
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
