"""Make the student that ships: a small T5 that writes a package's one-line synopsis from its long description.

    python samples/debian_synopses/make_student.py --data FOLDER --out FOLDER [--minutes 70]
    python samples/debian_synopses/make_student.py --evaluate

``--data``: what ``build_pairs.py --out`` wrote. Training takes about an hour on two cores and is taken up where it was
left. There is no teacher: everything is learned from the training split, in two stages of one run.

1. Denoising: a span of the description is damaged, the model writes it out again; or a sentence is taken out, the
   model writes it from the rest (Zhang et al., PEGASUS, 2020). This teaches to look things up in the source.
2. The pairs themselves.

The learning rate follows a cosine down to nothing at ``STEPS``, or when ``--minutes`` are over, whichever is nearer.
What ships is the evaluation of the highest ROUGE-L on validation. ``--evaluate`` reads the shipped test split and
writes ``figures.json``: ROUGE of the student and of two plain methods, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration, T5Tokenizer

HERE = Path(__file__).resolve().parent
PAD, END, UNKNOWN = 0, 1, 2
SOURCE_TOKENS, TARGET_TOKENS = 192, 32
PIECES = 8000
SHAPE = {
    "vocab_size": PIECES,
    "d_model": 192,
    "d_kv": 32,
    "num_heads": 6,
    "d_ff": 576,
    "num_layers": 4,
    "num_decoder_layers": 2,
}
STEPS, WARMUP, BATCH = 7000, 300, 32
DENOISING = 0.15  # part of the run
RATE, EMBEDDING_RATE = 1.2e-3, 8e-3  # T5's embeddings start at a deviation of 1, its matrices at under a tenth
SMOOTHING = 0.1
DROPOUT = 0.05  # of hidden states, in the second stage alone; that of attention maps costs a third of the time here
VALIDATION_ROWS = 300
MEASURES = ("rouge1", "rouge2", "rougeL")

Row = dict[str, str]
Pair = tuple[list[int], list[int]]


def read_rows(folder: Path, name: str) -> list[Row]:
    """Rows of ``name.jsonl`` or ``name.jsonl.gz``."""
    plain = folder / f"{name}.jsonl"
    content = plain.read_bytes() if plain.is_file() else gzip.decompress(Path(f"{plain}.gz").read_bytes())
    return [json.loads(line) for line in content.splitlines()]


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A unigram vocabulary learned from ``texts``, in T5's conventions: pad 0, end 1, unknown 2, end put last."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=special, unk_token="<unk>", max_piece_length=16
    )
    learner.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def encode(tokenizer: Any, rows: list[Row]) -> list[Pair]:
    """Token ids of texts and summaries, the end token last, cut to what the student reads and writes."""

    def ids(texts: list[str], most: int) -> list[list[int]]:
        return [i[: most - 1] + [END] if len(i) > most else i for i in tokenizer(texts)["input_ids"]]

    sources = ids([row["text"] for row in rows], SOURCE_TOKENS)
    return list(zip(sources, ids([row["summary"] for row in rows], TARGET_TOKENS), strict=True))


def damaged(source: list[int], ends: set[int], chance: random.Random) -> Pair:
    """A denoising pair: a span damaged in its place, or a whole sentence out of it; unknown tokens mark where."""
    body = source[:-1]
    stops = [0] + [at + 1 for at, token in enumerate(body) if token in ends] + [len(body)]
    sentences = [(a, b) for a, b in pairwise(stops) if 5 <= b - a < TARGET_TOKENS]
    if sentences and len(stops) > 3 and chance.random() < 0.5:
        start, stop = chance.choice(sentences)
        inside: list[int] = []
    else:
        length = min(chance.randint(4, 16), len(body))
        start = chance.randint(0, len(body) - length)
        stop = start + length
        inside = [token if chance.random() < 0.6 else UNKNOWN for token in body[start:stop]]
    marked = body[:start] + [UNKNOWN] + inside + [UNKNOWN] + body[stop:]
    return marked + [END], body[start:stop] + [END]


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """One tensor of the rows, filled up at their ends."""
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def batches(pairs: list[Pair], chance: random.Random) -> Iterator[list[Pair]]:
    """One epoch in batches of rows that are about as long as one another."""
    order = sorted(pairs, key=lambda pair: len(pair[0]) + chance.uniform(0, 12))
    parts = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    chance.shuffle(parts)
    yield from parts


def loss_of(model: Any, pairs: list[Pair], smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of the targets' tokens in nats."""
    sources, labels = padded([s for s, _ in pairs], PAD), padded([t for _, t in pairs], -100)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=sources, attention_mask=(sources != PAD).long(), labels=labels, use_cache=False)
    logits = found.logits.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, label_smoothing=smoothing)


@torch.inference_mode()
def write_summaries(model: Any, tokenizer: Any, texts: list[str], beams: int = 1) -> list[str]:
    """Summaries in the order of ``texts``: greedy or by beam search, at most TARGET_TOKENS tokens each."""
    model.eval()
    sources = [pair[0] for pair in encode(tokenizer, [{"text": text, "summary": ""} for text in texts])]
    order = sorted(range(len(texts)), key=lambda at: len(sources[at]))
    written = [""] * len(texts)
    for begin in range(0, len(order), BATCH):
        part = order[begin : begin + BATCH]
        ids = padded([sources[at] for at in part], PAD)
        found = model.generate(
            input_ids=ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=TARGET_TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        for at, text in zip(part, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
            written[at] = text
    return written


def rouge(written: list[str], rows: list[Row]) -> dict[str, np.ndarray]:
    """F1 of each row in percent by measure, of the package rouge-score, without stemming."""
    scorer = RougeScorer(list(MEASURES), use_stemmer=False)
    scores = [scorer.score(row["summary"], text) for text, row in zip(written, rows, strict=True)]
    return {measure: np.array([100 * score[measure].fmeasure for score in scores]) for measure in MEASURES}


def interval(scores: np.ndarray) -> dict[str, float]:
    """The mean and its 95 % interval by 2,000 bootstrap samples."""
    picks = np.random.default_rng(1).integers(0, len(scores), (2000, len(scores)))
    low, high = np.percentile(scores[picks].mean(axis=1), (2.5, 97.5))
    return {"mean": round(float(scores.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def lead_sentence(text: str) -> str:
    """The text's first sentence."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text, maxsplit=1)[0]


def set_dropout(model: Any, rate: float) -> None:
    """Dropout of hidden states; attention maps have none."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def save_student(model: Any, tokenizer: Any, folder: Path) -> None:
    """The checkpoint in float16; its configuration says float32, so that transformers computes in that."""
    copy = T5ForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(data: Path, out: Path, minutes: float) -> None:
    """Train, or go on with it, and leave the best student in ``out/student``."""
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    rows = {name: read_rows(data, name) for name in ("train", "validation")}
    if not (out / "tokenizer/tokenizer.json").is_file():
        texts = (row[field] for row in rows["train"] for field in ("text", "summary"))
        make_tokenizer(texts).save_pretrained(out / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    pairs = {name: encode(tokenizer, these) for name, these in rows.items()}
    ends = {token for piece, token in tokenizer.get_vocab().items() if piece[-1] in ".!?"}
    judged = rows["validation"][:VALIDATION_ROWS]

    torch.manual_seed(1)
    config = T5Config(**SHAPE, feed_forward_proj="relu", decoder_start_token_id=PAD, tie_word_embeddings=True)
    config._attn_implementation = "eager"  # a fifth faster here than torch's own, whose masks go the long way
    model = T5ForConditionalGeneration(config)
    embeddings = list(model.shared.parameters())
    others = [p for p in model.parameters() if p is not embeddings[0]]
    optimizer = torch.optim.AdamW(
        [{"params": embeddings, "lr": EMBEDDING_RATE}, {"params": others, "lr": RATE}],
        betas=(0.9, 0.98), weight_decay=0.01, fused=True,
    )  # fmt: skip
    step, spent, best, epoch = 0, 0.0, 0.0, 0
    saved = out / "checkpoint.pt"
    if saved.is_file():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, best, epoch = state["step"], state["spent"], state["best"], state["epoch"]
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(pairs['train']):,} pairs", flush=True)

    def progress() -> float:
        return min(1.0, max(step / STEPS, spent / (60 * minutes)))

    def evaluate() -> None:
        nonlocal best
        model.eval()
        with torch.inference_mode():
            parts = [pairs["validation"][at : at + BATCH] for at in range(0, len(pairs["validation"]), BATCH)]
            loss = float(np.mean([float(loss_of(model, part, 0.0)) for part in parts]))
        score = float(
            rouge(write_summaries(model, tokenizer, [row["text"] for row in judged]), judged)["rougeL"].mean()
        )
        print(f"step {step}: validation loss {loss:.3f}, ROUGE-L {score:.2f}", flush=True)
        if score > best:
            best = score
            save_student(model, tokenizer, out / "student")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
        torch.save(state | {"best": best, "epoch": epoch}, saved.with_suffix(".new"))
        saved.with_suffix(".new").replace(saved)

    evaluated, shown, losses, tokens = max(progress(), DENOISING), time.monotonic(), [], 0
    while progress() < 1:
        epoch += 1
        chance = random.Random(epoch)
        denoising = progress() < DENOISING
        set_dropout(model, 0.0 if denoising else DROPOUT)
        epoch_pairs = [damaged(pair[0], ends, chance) for pair in pairs["train"]] if denoising else pairs["train"]
        for batch in batches(epoch_pairs, chance):
            if progress() >= 1 or (denoising and progress() >= DENOISING):
                break
            began = time.monotonic()
            scale = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress()))
            for group, rate in zip(optimizer.param_groups, (EMBEDDING_RATE, RATE), strict=True):
                group["lr"] = rate * scale
            model.train()
            loss = loss_of(model, batch, SMOOTHING)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            spent += time.monotonic() - began
            losses.append(loss.item())
            tokens += sum(len(source) + len(target) for source, target in batch)
            if step % 50 == 0:
                speed = tokens / (time.monotonic() - shown)
                done = f"{step} ({100 * progress():.1f} %, epoch {epoch})"
                print(f"{done} loss {np.mean(losses):.3f}, {speed:.0f} tokens/s", flush=True)
                losses, tokens, shown = [], 0, time.monotonic()
            if not denoising and progress() - evaluated >= 0.085:
                evaluated = progress()
                evaluate()
    evaluate()


def figures_of(student: Path, data: Path, beams: Iterable[int]) -> dict[str, Any]:
    """ROUGE on the test split: the student's, and of two methods that take what stands first."""
    rows = read_rows(data, "test")
    texts = [row["text"] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = T5ForConditionalGeneration.from_pretrained(student, dtype=torch.float32)
    written = {
        "lead sentence": [lead_sentence(text) for text in texts],
        "first 8 words": [" ".join(text.split()[:8]) for text in texts],
    }
    for count in beams:
        written["student, greedy" if count == 1 else f"student, {count} beams"] = write_summaries(
            model, tokenizer, texts, count
        )
    scores = {
        name: {measure: interval(values) for measure, values in rouge(summaries, rows).items()}
        | {"words": round(sum(len(text.split()) for text in summaries) / len(rows), 1)}
        for name, summaries in written.items()
    }
    return {"split": "test", "rows": len(rows), "weights": sum(p.numel() for p in model.parameters()), "rouge": scores}


def main() -> None:
    """Reads the command line; trains or evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the splits; the shipped ones for --evaluate", default=HERE)
    parser.add_argument("--out", type=Path, help="folder for checkpoints and the student")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time after which training has to be done")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="evaluate --student and write figures.json")
    parser.add_argument("--student", type=Path, default=HERE / "student")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.evaluate:
        told = json.dumps(figures_of(given.student, given.data, (1, 4)), indent=2) + "\n"
        ((given.out or HERE) / "figures.json").write_text(told, encoding="utf-8")
        sys.stdout.write(told)
    elif given.out is None:
        parser.error("--out is needed to train")
    else:
        train(given.data, given.out, given.minutes)


if __name__ == "__main__":
    main()
