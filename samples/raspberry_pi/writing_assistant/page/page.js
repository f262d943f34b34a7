// Talks to the board that served it, and to nothing else. Keeps nothing: no cookie, no storage.
"use strict";

const part = (id) => document.getElementById(id);
// Any name will do, so that the board knows one page from another; randomUUID is there over https alone.
const browser = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
let about = null;
let current = null; // the text being written: {id, abort, tokens, started}

function chosenField() {
  return about.fields.find((field) => field.name === part("field").value);
}

function chosenAction() {
  const checked = document.querySelector("input[name=action]:checked");
  return chosenField().actions.find((action) => checked && action.name === checked.value);
}

function showField() {
  const field = chosenField();
  const before = document.querySelector("input[name=action]:checked");
  const kept = field.actions.some((action) => before && action.name === before.value) ? before.value : field.actions[0].name;
  const box = part("actions");
  for (const old of box.querySelectorAll("label")) old.remove();
  for (const action of field.actions) {
    const label = document.createElement("label");
    label.className = "action";
    const input = document.createElement("input");
    input.type = "radio";
    input.name = "action";
    input.value = action.name;
    input.checked = action.name === kept;
    input.addEventListener("change", showAction);
    label.append(input, action.title);
    box.append(label);
  }
  part("notice").textContent = field.notice;
  part("notice").hidden = !field.notice;
  showAction();
}

function showAction() {
  const action = chosenAction();
  part("text-label").textContent = action.label;
  part("example").hidden = !action.example;
}

function showBusy(busy) {
  part("write").disabled = busy;
  part("stop").disabled = !busy;
  const text = part("result").value;
  part("copy").disabled = busy || !text;
  part("reuse").disabled = busy || !text;
  part("result").readOnly = busy;
  part("result").setAttribute("aria-busy", String(busy));
}

function seconds(value) {
  return value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`;
}

function showFigures(first, rate, tokens) {
  const shown = [];
  if (first !== null) shown.push(`First token after ${seconds(first)}`);
  if (rate > 0) shown.push(`${rate.toFixed(1)} tokens/s`);
  if (tokens > 0) shown.push(`${tokens} tokens`);
  part("figures").textContent = shown.join(" · ");
}

function words(text) {
  const count = text.trim() ? text.trim().split(/\s+/).length : 0;
  return count === 1 ? "1 word" : `${count} words`;
}

const ENDINGS = {
  stop: (count) => `Done: ${count}.`,
  length: (count) => `Done: ${count}. It ended at the chosen length; take a longer one, or put it into the text box and continue.`,
  cancelled: (count) => `Stopped: ${count}.`,
  shutdown: (count) => `The board is shutting down: ${count}.`,
};

function onEvent(event) {
  const result = part("result");
  switch (event.event) {
    case "waiting":
      current.id = event.id;
      part("status").textContent = event.ahead === 0 ? "You are next."
        : event.ahead === 1 ? "Waiting: 1 text is before yours." : `Waiting: ${event.ahead} texts are before yours.`;
      break;
    case "started":
      current.id = event.id;
      part("status").textContent = "Reading your text …";
      break;
    case "piece": {
      if (current.pieces === 0) {
        current.first = event.seconds;
        part("status").textContent = "Writing …";
      }
      current.pieces += 1;
      const atEnd = result.scrollTop + result.clientHeight >= result.scrollHeight - 40;
      result.value += event.text;
      if (atEnd) result.scrollTop = result.scrollHeight;
      const past = event.seconds - current.first;
      showFigures(current.first, past > 0 ? (current.pieces - 1) / past : 0, 0);
      break;
    }
    case "end":
      current.ended = true;
      part("status").textContent = ENDINGS[event.reason](words(result.value));
      if (event.tokens) showFigures(event.first_token_seconds, event.tokens_per_second, event.tokens);
      break;
    case "error":
      current.ended = true;
      part("status").textContent = "";
      part("problem").textContent = event.message;
      break;
  }
}

async function readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) onEvent(JSON.parse(line));
  }
}

function post(path, content, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(content), signal, cache: "no-store" });
}

async function write(event) {
  event.preventDefault();
  if (current) return;
  part("problem").textContent = "";
  const text = part("text").value;
  if (!text.trim()) {
    part("problem").textContent = "There is no text. Type some first.";
    part("text").focus();
    return;
  }
  const field = chosenField();
  current = { id: null, abort: new AbortController(), pieces: 0, first: null, ended: false };
  part("result").value = "";
  part("figures").textContent = "";
  part("status").textContent = "Asking the board …";
  part("check").textContent = field.notice;
  part("check").hidden = !field.notice;
  const hadFocus = document.activeElement === part("write");
  showBusy(true);
  part("result").scrollIntoView({ block: "nearest" });
  if (hadFocus) part("stop").focus(); // a disabled button loses the focus
  try {
    const order = { browser, field: field.name, action: chosenAction().name, text, length: part("length").value };
    const answer = await post("/write", order, current.abort.signal);
    if (answer.ok) {
      await readEvents(answer.body);
      if (!current.ended) throw new TypeError("cut off");
    } else {
      part("status").textContent = "";
      const answered = await answer.json().catch(() => ({}));
      part("problem").textContent = answered.error || `The board answered with an error (${answer.status}).`;
    }
  } catch (error) {
    if (error.name === "AbortError") {
      part("status").textContent = ENDINGS.cancelled(words(part("result").value));
    } else {
      part("status").textContent = "";
      part("problem").textContent = "The connection to the board is lost. Is it on, and on the same network?";
    }
  }
  current = null;
  const stopHadFocus = document.activeElement === part("stop");
  showBusy(false);
  if (stopHadFocus || document.activeElement === document.body) part("write").focus();
}

async function stop() {
  const stopped = current;
  if (!stopped) return;
  part("stop").disabled = true;
  // Breaking off the connection stops it too; asking first gets the figures.
  const give = setTimeout(() => stopped.abort.abort(), 3000);
  try {
    if (!stopped.id) throw new TypeError("not in the line yet");
    await post("/stop", { id: stopped.id });
  } catch {
    clearTimeout(give);
    stopped.abort.abort();
  }
}

async function copy() {
  const result = part("result");
  try {
    await navigator.clipboard.writeText(result.value); // over http on this machine alone
  } catch {
    result.select();
    document.execCommand("copy");
  }
  part("status").textContent = "Copied.";
}

function reuse() {
  const text = part("text");
  const written = part("result").value;
  if (chosenAction().name === "continue") {
    const before = text.value.trimEnd();
    text.value = before + (/^[\s.,;:!?)]/.test(written) ? "" : " ") + written;
  } else {
    text.value = written;
  }
  text.focus();
  part("status").textContent = "It is in the text box.";
}

async function start() {
  try {
    const answer = await fetch("/templates", { cache: "no-store" });
    if (!answer.ok) throw new TypeError(String(answer.status));
    about = await answer.json();
  } catch {
    part("problem").textContent = "The board does not answer. Load the page anew.";
    part("write").disabled = true;
    return;
  }
  for (const field of about.fields) part("field").add(new Option(field.title, field.name));
  for (const option of part("length").options) option.textContent += `, ${about.lengths[option.value]}`;
  part("text").maxLength = about.most_characters;
  part("student").textContent = `Written by ${about.student}.`;
  part("field").addEventListener("change", showField);
  part("form").addEventListener("submit", write);
  part("stop").addEventListener("click", stop);
  part("copy").addEventListener("click", copy);
  part("reuse").addEventListener("click", reuse);
  part("example").addEventListener("click", () => {
    part("text").value = chosenAction().example;
    part("text").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  showField();
  document.body.dataset.ready = "yes";
}

start();
