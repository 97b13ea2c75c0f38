// The live view: asks for what changes, and does what buttons say.
"use strict";

const PERIOD = 2000; // milliseconds between two questions
const PATIENCE = 10_000; // for an answer to one of them
const PATIENCE_TO_ACT = 60_000; // a load is answered when it is done, or later
const SHOWN = 10_000; // that a message stays
const STORE = "mlx-guarded-key";

const ACTIONS = {
  load: { path: "models/load", name: "model", said: "Load asked for:" },
  unload: { path: "models/unload", name: "model", said: "Unload asked for:" },
  pin: { path: "models/pin", name: "model", said: "Pinned:" },
  unpin: { path: "models/unpin", name: "model", said: "Unpinned:" },
  cancel: { path: "guard/cancel", name: "request_id", said: "Cancelled:" },
};

const byId = (id) => document.getElementById(id);
const main = byId("main");
const parts = byId("now"); // of it, which change
const form = byId("enter");
const story = byId("story");
const locked = "locked" in document.body.dataset;

let key = sessionStorage.getItem(STORE) ?? "";
let minutes = 5;
let timer = 0;
let stop = new AbortController(); // of the question under way
let gone = false; // the server did not answer the last one
let deaths = null; // of engines, that were told already
let told = null; // the request whose story is shown, and the state that it was told in
const busy = new Set(); // actions under way

// ---- asking ------------------------------------------------------------------

function ask(path, { patience = PATIENCE, signal, ...options } = {}) {
  const signals = [AbortSignal.timeout(patience), ...(signal ? [signal] : [])];
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  return fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.any(signals) });
}

async function reason(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `The server answered ${reply.status}.`;
  }
}

async function look() {
  clearTimeout(timer);
  stop.abort();
  if (document.hidden || (locked && !key)) return;
  const mine = (stop = new AbortController());
  try {
    const width = Math.max(240, (byId("chart") ?? parts).clientWidth);
    const path = `live/now?minutes=${minutes}&width=${width}`;
    const reply = await ask(path, { signal: mine.signal });
    if (reply.status === 401) {
      lock(await reason(reply));
      return;
    }
    if (!reply.ok) throw new Error(await reason(reply));
    show(await reply.text());
    found();
  } catch (error) {
    if (mine.signal.aborted) return; // another question follows, or none is wanted
    lost(error);
  }
  if (!mine.signal.aborted) timer = setTimeout(look, PERIOD);
}

function lost(error) {
  const known = error instanceof TypeError || error.name === "TimeoutError";
  const said = known ? "The server does not answer." : error.message;
  if (!gone) say(`${said} What is shown is old; asking again.`, { stays: true, bad: true });
  gone = true;
  document.body.classList.add("gone");
}

function found() {
  if (gone) say("The server answers again.");
  gone = false;
  document.body.classList.remove("gone");
}

// ---- showing ------------------------------------------------------------------

function show(html) {
  const page = new DOMParser().parseFromString(`<body>${html}`, "text/html");
  const focused = parts.contains(document.activeElement) ? document.activeElement : null;
  const section = focused?.closest("section");
  morph(parts, page.body, { attributes: false });
  if (focused && !focused.isConnected) refocus(focused, section);
  const now = parts.querySelector("[data-deaths]")?.dataset.deaths;
  if (deaths !== null && now !== undefined && now !== deaths) say("The engine died.", { bad: true });
  deaths = now ?? deaths;
  if (story.open) tell(told.id);
}

// What had the focus is gone: its like in another section gets it, or the heading of its own.
function refocus(focused, section) {
  const { do: what, to, story: id } = focused.dataset;
  const like = [...parts.querySelectorAll("button")].find(
    ({ dataset }) => (id && dataset.story === id) || (what && dataset.do === what && dataset.to === to),
  );
  const heading = section?.isConnected ? section.querySelector("h2") : main;
  (like ?? heading).focus({ preventScroll: true });
}

// Make one element like another and keep the nodes that stay, so that focus, selection and
// scroll positions stay as well. Elements with the same data-key are the same.
function morph(from, to, { attributes = true } = {}) {
  if (attributes) {
    for (const name of from.getAttributeNames()) {
      if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name); // of details
    }
    for (const { name, value } of to.attributes) {
      if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    }
  }
  const keyed = new Map([...from.children].map((child) => [child.dataset.key, child]));
  const stays = new Set([...to.children].map((child) => child.dataset.key));
  let at = from.firstChild;
  const drop = (node) => {
    const next = node.nextSibling;
    node.remove();
    return next;
  };
  for (const want of to.childNodes) {
    const name = want.dataset?.key;
    while (at?.dataset?.key && !stays.has(at.dataset.key)) at = drop(at);
    const free = at && !at.dataset?.key && at.nodeName === want.nodeName ? at : undefined;
    const have = name ? keyed.get(name) : free;
    if (have?.nodeName !== want.nodeName) {
      from.insertBefore(document.importNode(want, true), at);
      continue;
    }
    if (have === at) at = at.nextSibling;
    else from.insertBefore(have, at);
    if (have.nodeType === Node.ELEMENT_NODE) morph(have, want);
    else if (have.nodeValue !== want.nodeValue) have.nodeValue = want.nodeValue;
  }
  while (at) at = drop(at);
}

let silence = 0;

function say(text, { stays = false, bad = false } = {}) {
  clearTimeout(silence);
  const said = byId("said");
  said.textContent = text;
  said.classList.toggle("bad", bad);
  if (!stays) silence = setTimeout(() => (said.textContent = ""), SHOWN);
}

// ---- a request's story -----------------------------------------------------------

function openStory(id) {
  told = { id, state: null };
  byId("story-title").textContent = id;
  byId("story-text").textContent = "…";
  story.showModal();
  tell(id);
}

async function tell(id) {
  const row = [...parts.querySelectorAll("[data-of]")].find(({ dataset }) => dataset.of === id);
  const state = row?.dataset.state ?? "";
  if (told.state === state) return; // nothing has happened to it
  told.state = state;
  let text;
  try {
    const reply = await ask(`guard/requests/${encodeURIComponent(id)}`);
    text = reply.ok ? (await reply.json()).story : await reason(reply);
  } catch {
    text = "The server does not answer.";
    told.state = null; // so it is asked again
  }
  if (told.id === id) byId("story-text").textContent = text;
}

story.addEventListener("close", () => {
  if (document.activeElement === document.body) main.focus({ preventScroll: true });
});
story.addEventListener("click", (event) => {
  if (event.target === story) story.close(); // outside of it
});
byId("close-story").addEventListener("click", () => story.close());

// ---- acting ---------------------------------------------------------------------

async function act(what, to) {
  const { path, name, said } = ACTIONS[what];
  const once = `${what} ${to}`;
  if (busy.has(once)) return;
  busy.add(once);
  try {
    const reply = await ask(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ [name]: to }),
      patience: PATIENCE_TO_ACT,
    });
    if (reply.ok) say(`${said} ${to}.`);
    else say(await reason(reply), { bad: true });
  } catch {
    say("The server does not answer.", { bad: true });
  }
  busy.delete(once);
  look();
}

parts.addEventListener("click", (event) => {
  const { do: what, to, story: id } = event.target.closest("button")?.dataset ?? {};
  const bar = event.target.closest("[data-request]")?.dataset.request;
  if (what) act(what, to);
  else if (id ?? bar) openStory(id ?? bar);
});
parts.addEventListener("change", (event) => {
  if (event.target.id !== "minutes") return;
  minutes = Number(event.target.value);
  look();
});

// ---- the key --------------------------------------------------------------------

function keep(value) {
  key = value;
  if (value) sessionStorage.setItem(STORE, value);
  else sessionStorage.removeItem(STORE);
}

function lock(message) {
  const wrong = Boolean(key);
  keep("");
  if (story.open) story.close();
  parts.replaceChildren();
  form.hidden = false;
  byId("forget").hidden = true;
  if (wrong) say(message, { bad: true, stays: true });
  byId("key").focus();
}

function unlock() {
  form.hidden = true;
  byId("forget").hidden = !locked;
  look();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const value = byId("key").value.trim();
  byId("key").value = "";
  if (!/^[\x21-\x7e]+$/.test(value)) {
    say("No key has such characters.", { bad: true });
    return;
  }
  keep(value);
  say("");
  unlock();
  main.focus({ preventScroll: true });
});
byId("forget").addEventListener("click", () => {
  keep("");
  stop.abort();
  clearTimeout(timer);
  lock("");
  say("The key is forgotten.");
});

document.addEventListener("visibilitychange", look);
addEventListener("pageshow", (event) => event.persisted && look());
if (locked && !key) lock("");
else unlock();
