// Talks to the board that served it, and to nothing else. Keeps nothing: no cookie, no storage.
"use strict";

const part = (id) => document.getElementById(id);
// Any name will do, so that the board knows one page from another; randomUUID is there over https alone.
const browser = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
let about = null;
let current = null; // what is at work: {id, abort, ended, characters}
let markdown = "";
let shownTitle = "";

const EXAMPLE = `WEBVTT

00:00:04.000 --> 00:00:11.000
<v Anna Bell>Good morning. Today is about the stand at the spring fair and about the new heating.

00:00:12.000 --> 00:00:24.000
<v Ravi Shah>The fair has offered us hall 3 or hall 5. Hall 5 costs 4,200 euros, hall 3 costs 3,100, and it is nearer to the entrance.

00:00:25.000 --> 00:00:31.000
<v Anna Bell>Then let's go with hall 3. Ravi, can you sign the contract by Friday?

00:00:32.000 --> 00:00:40.000
<v Ravi Shah>Yes. I'll send you the floor plan tomorrow, so that you see where the stand is.

00:00:41.000 --> 00:00:55.000
<v Carla Novak>About the heating: two firms have been here. The first one takes eight weeks, the second one five, for nearly the same price.

00:00:56.000 --> 00:01:03.000
<v Anna Bell>We agreed last time that it has to run before October. So we take the second one.

00:01:04.000 --> 00:01:10.000
<v Carla Novak>I will order it on Monday. The budget was approved by the board in March.
`;

function make(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function timed(item, start, text) {
  if (start !== null) item.append(make("span", clock(start), "time"));
  item.append(text);
  return item;
}

function quoted(quote) {
  const said = [quote.speaker, quote.start === null ? "" : clock(quote.start)].filter(Boolean).join(", ");
  return make("blockquote", `“${quote.text}”` + (said ? ` (${said})` : ""));
}

function list(into, kind, items) {
  const made = make(kind);
  made.append(...items);
  into.append(made);
}

function showMinutes(minutes) {
  const box = part("minutes");
  box.replaceChildren(make("h3", minutes.title));
  const facts = [];
  if (minutes.length !== null) facts.push(`About ${clock(minutes.length)} long.`);
  if (minutes.summary) facts.push("Check the summary against the transcript; decisions and action items are found by their wording.");
  box.append(make("p", facts.join(" "), "facts"));
  if (minutes.participants.length) {
    box.append(make("h4", "Participants"), make("p", minutes.participants.join(", ")));
  }
  box.append(make("h4", "Summary"), make("p", minutes.summary || "There are no words in this transcript."));
  if (minutes.sections.length) {
    box.append(make("h4", "By part"));
    list(box, "ol", minutes.sections.map((section) => timed(make("li"), section.start, section.text)));
  }
  box.append(make("h4", "Decisions"));
  for (const decision of minutes.decisions) box.append(quoted(decision));
  if (!minutes.decisions.length) box.append(make("p", "None was found by its wording."));
  box.append(make("h4", "Action items"));
  if (minutes.actions.length) {
    const items = make("ul", undefined, "actions");
    for (const action of minutes.actions) {
      const label = make("label");
      const tick = make("input");
      tick.type = "checkbox";
      const words = make("span");
      if (action.who) words.append(make("strong", `${action.who}: `));
      words.append(action.what + (action.due ? ` (${action.due})` : ""));
      label.append(tick, words);
      const item = make("li");
      item.append(label, quoted(action.quote));
      items.append(item);
    }
    box.append(items);
  } else {
    box.append(make("p", "None was found by its wording."));
  }
  if (minutes.faults) {
    box.append(make("p", `${minutes.faults} subtitles do not follow their format (${minutes.examples.join("; ")}).`, "notice"));
  }
  box.hidden = false;
  part("parts").hidden = true;
}

function showBusy(busy) {
  part("take").disabled = busy;
  part("stop").disabled = !busy;
  part("copy").disabled = busy || !markdown;
  part("download").disabled = busy || !markdown;
  part("progress").hidden = !busy;
  part("minutes").setAttribute("aria-busy", String(busy));
}

const ENDINGS = {
  done: "Done.",
  cancelled: "Stopped.",
  shutdown: "The board is shutting down.",
};

function onEvent(event) {
  switch (event.event) {
    case "waiting":
      current.id = event.id;
      part("status").textContent = event.ahead === 0 ? "You are next."
        : event.ahead === 1 ? "Waiting: 1 transcript is before yours." : `Waiting: ${event.ahead} transcripts are before yours.`;
      break;
    case "started":
      current.id = event.id;
      part("status").textContent = "Reading the beginning …";
      break;
    case "part":
      part("parts").append(timed(make("li"), event.start, event.text));
      part("parts").hidden = false;
      break;
    case "progress":
      part("status").textContent = event.parts === 1 ? "1 part is summarised …" : `${event.parts} parts are summarised …`;
      part("progress").value = Math.min(1, event.characters / current.characters);
      break;
    case "end":
      current.ended = true;
      part("status").textContent = ENDINGS[event.reason];
      if (event.reason === "done") {
        markdown = event.markdown;
        shownTitle = event.minutes.title;
        showMinutes(event.minutes);
      }
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

async function take(event) {
  event.preventDefault();
  if (current) return;
  part("problem").textContent = "";
  const text = part("text").value;
  if (!text.trim()) {
    part("problem").textContent = "There is no transcript. Paste one, or choose a file.";
    part("text").focus();
    return;
  }
  current = { id: null, abort: new AbortController(), ended: false, characters: text.length };
  markdown = "";
  part("parts").replaceChildren();
  part("parts").hidden = true;
  part("minutes").hidden = true;
  part("progress").value = 0;
  part("status").textContent = "Asking the board …";
  const hadFocus = document.activeElement === part("take");
  showBusy(true);
  part("status").scrollIntoView({ block: "nearest" });
  if (hadFocus) part("stop").focus(); // a disabled button loses the focus
  try {
    const answer = await post("/minutes", { browser, title: part("title").value, text }, current.abort.signal);
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
      part("status").textContent = ENDINGS.cancelled;
    } else {
      part("status").textContent = "";
      part("problem").textContent = "The connection to the board is lost. Is it on, and on the same network?";
    }
  }
  current = null;
  const stopHadFocus = document.activeElement === part("stop");
  showBusy(false);
  if (stopHadFocus || document.activeElement === document.body) part("take").focus();
}

async function stop() {
  const stopped = current;
  if (!stopped) return;
  part("stop").disabled = true;
  part("status").textContent = "Stopping …";
  // Breaking off the connection stops it too.
  const give = setTimeout(() => stopped.abort.abort(), 3000);
  try {
    if (!stopped.id) throw new TypeError("not in the line yet");
    await post("/stop", { id: stopped.id });
  } catch {
    clearTimeout(give);
    stopped.abort.abort();
  }
}

async function choose() {
  const file = part("file").files[0];
  if (!file) return;
  part("problem").textContent = "";
  if (file.size > 4 * about.most_characters) {
    part("problem").textContent = `${file.name} is too large for this page. Drop it into the board's folder instead.`;
    return;
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  const first = `${bytes[0]} ${bytes[1]}`;
  const encoding = first === "255 254" ? "utf-16le" : first === "254 255" ? "utf-16be" : "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (text.includes("\0")) throw new TypeError("null bytes");
    part("text").value = text;
  } catch {
    part("problem").textContent = `${file.name} is not a text in UTF-8. Export the transcript as plain text, WebVTT or SRT.`;
    return;
  }
  const stem = file.name.replace(/\.[^.]*$/, "").replace(/[_\s]+/g, " ").trim();
  part("title").value = stem.charAt(0).toUpperCase() + stem.slice(1);
  part("status").textContent = `${file.name} is in the text box.`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(markdown); // over http on this machine alone
  } catch {
    const box = make("textarea");
    box.value = markdown;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    part("copy").focus();
  }
  part("status").textContent = "Copied.";
}

function download() {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([markdown], { type: "text/markdown" }));
  link.download = `${shownTitle.replace(/[^\p{L}\p{N} .-]/gu, "_").slice(0, 80) || "minutes"}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function start() {
  try {
    const answer = await fetch("/about", { cache: "no-store" });
    if (!answer.ok) throw new TypeError(String(answer.status));
    about = await answer.json();
  } catch {
    part("problem").textContent = "The board does not answer. Load the page anew.";
    part("take").disabled = true;
    return;
  }
  part("student").textContent = `Summarised by ${about.student}.`;
  part("form").addEventListener("submit", take);
  part("stop").addEventListener("click", stop);
  part("file").addEventListener("change", choose);
  part("copy").addEventListener("click", copy);
  part("download").addEventListener("click", download);
  part("example").addEventListener("click", () => {
    part("text").value = EXAMPLE;
    part("title").value = "Spring fair and heating";
    part("text").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  document.body.dataset.ready = "yes";
}

start();
