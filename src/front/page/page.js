// The test page of webws: one WebSocket, a log, and nothing hidden. No library, no build step.
//
// It is also the smallest example of a client that behaves: exponential backoff with jitter, no
// return after a close code that says "do not", and a payload limit known before sending.

"use strict";

const MAX_LINES = 500;
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
/** A connection that lasted this long was a good one: the next backoff starts from the beginning. */
const STABLE_MS = 5_000;
/** A handshake that takes longer is given up: browsers themselves wait for minutes. */
const HANDSHAKE_MS = 15_000;

/** Close codes in words (RFC 6455 §7.4.1 and the IANA registry), and whether coming back makes sense. */
const CLOSE_CODES = {
  1000: ["normal end", false],
  1001: ["the server is going away", true],
  1002: ["protocol error", false],
  1003: ["this kind of data is not accepted", false],
  1005: ["closed without a code", true],
  1006: ["no close frame: the connection was lost, or the handshake refused (a browser does not tell which)", true],
  1007: ["text that is not UTF-8", false],
  1008: ["against the server's policy", false],
  1009: ["message too big", false],
  1010: ["extension missing", false],
  1011: ["the server failed", true],
  1012: ["the server restarts", true],
  1013: ["try again later", true],
  1014: ["bad gateway", true],
  1015: ["TLS failed", true],
};

const $ = (id) => document.getElementById(id);
const ui = {};
for (const id of ["state", "detail", "connection", "endpoint", "channel", "connect", "disconnect", "wire", "url",
  "twin", "outside", "redis-channel", "shell", "counts", "strip", "strip-label", "clear", "log", "lines", "latest",
  "composer", "message", "send", "size", "problem"]) {
  ui[id] = $(id);
}

// --- what is going on -----------------------------------------------------------------------

/** "disconnected" | "connecting" | "connected" | "reconnecting" */
let state = "disconnected";
/** The live WebSocket, or null. An event of any other socket is stale and ignored. */
let socket = null;
/** What the live connection was opened with: see currentTarget. */
let target = null;
let attempts = 0;
let openedAt = 0;
let retryAt = 0;
let retryTimer = 0;
let handshakeTimer = 0;
let received = 0;
let sent = 0;

// --- where to connect to --------------------------------------------------------------------

/** An endpoint, as its option describes it (wire, rule, argument, prefix, command, max, receives, sends), and a channel. */
function currentTarget() {
  const option = ui.endpoint.selectedOptions[0];
  return { ...option.dataset, path: option.value, channel: ui.channel.value };
}

/** Where a browser connects to. Throws on half a surrogate pair. */
function url(to) {
  const base = `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${to.path}`;
  if (to.rule === "path") return `${base}/${encodeURIComponent(to.channel)}`;
  const value = to.rule === "json" ? JSON.stringify(to.channel) : to.channel;
  return `${base}?${encodeURIComponent(to.argument)}=${encodeURIComponent(value)}`;
}

/** One word of a command line. */
function quoted(text) {
  return /^[\w.:/@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Command lines that publish on the channel; there are none where nginx serves the page. */
function shell(to) {
  const { redisCli, publish } = ui.endpoint.dataset;
  const name = to.prefix + to.channel;
  const lines = [];
  if (redisCli) lines.push(`${redisCli} ${to.command} ${quoted(name)} hello`);
  if (publish) {
    const query = `channel=${encodeURIComponent(name)}&message=hello`;
    lines.push(`curl -X POST ${quoted(`${location.origin}${publish}?${query}`)}`);
  }
  return lines.length ? lines.join("\n") : `redis-cli ${to.command} ${quoted(name)} hello`;
}

function hash(to) {
  return `#channel=${encodeURIComponent(to.channel)}&endpoint=${encodeURIComponent(to.path).replaceAll("%2F", "/")}`;
}

/** Takes the fields from the address, so that a link or a second tab starts where this one is. */
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("channel")) ui.channel.value = given.get("channel");
  const path = given.get("endpoint");
  if (path && [...ui.endpoint.options].some((option) => option.value === path)) ui.endpoint.value = path;
  return given.get("connect") === "1";
}

function showTarget() {
  const to = currentTarget();
  try {
    ui.url.textContent = url(to);
    ui["redis-channel"].textContent = JSON.stringify(to.prefix + to.channel);
    ui.shell.textContent = shell(to);
    history.replaceState(null, "", hash(to));
    ui.twin.href = `${hash(to)}&connect=1`;
    ui.channel.setCustomValidity("");
  } catch {
    ui.url.textContent = "";
    ui.channel.setCustomValidity("This name holds half a character (a lone surrogate) and cannot be sent.");
  }
  ui.wire.textContent = [
    to.wire === "lua"
      ? "Lua wire: every received text ends with the channel's name, marked in the log."
      : to.wire === "sse"
        ? "Server-sent events only: this page opens WebSockets, so use curl -N or an EventSource."
        : "Plain wire: what is published arrives unchanged.",
    { json: "The channel's name is a JSON string in the query.", plain: "The query has the channel's name unchanged.",
      path: "The channel's name is the last part of the path." }[to.rule],
    to.receives === "no" ? "Clients receive nothing here." : "",
    to.sends === "no" ? "Clients may not send here." : "",
  ].join(" ").trim();
  ui["strip-label"].hidden = to.wire !== "lua";
}

// --- the connection -------------------------------------------------------------------------

function setState(next) {
  state = next;
  ui.state.textContent = next;
  ui.state.dataset.state = next;
  const idle = next === "disconnected";
  // readOnly and not disabled: the focus stays where it is. A list has no readOnly, so its focus moves on.
  ui.channel.readOnly = !idle;
  if (!idle && document.activeElement === ui.endpoint) ui.channel.focus();
  ui.endpoint.disabled = !idle;
  enable(ui.connect, socket === null);
  ui.connect.textContent = next === "reconnecting" ? "Try now" : "Connect";
  enable(ui.disconnect, !idle);
  enable(ui.send, next === "connected" && target.sends !== "no");
  document.title = next === "disconnected" ? "webws test page" : `${target.channel}: ${next}`;
  showDetail();
}

/** For a button: a disabled one would lose the focus, and a keyboard its place on the page. */
function enable(button, can) {
  button.setAttribute("aria-disabled", String(!can));
}

function isEnabled(button) {
  return button.getAttribute("aria-disabled") !== "true";
}

/** The line beside the state: since when it is connected, or when it tries again. */
function showDetail() {
  const now = performance.now();
  let text = "";
  if (state === "connected") {
    const seconds = Math.floor((now - openedAt) / 1000);
    text = `for ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  } else if (state === "reconnecting") {
    const left = Math.max(0, retryAt - now) / 1000;
    text = socket ? `attempt ${attempts} under way` : `attempt ${attempts} in ${left.toFixed(1)} s`;
  }
  if (ui.detail.textContent !== text) ui.detail.textContent = text;
}

function connect() {
  clearTimeout(retryTimer);
  if (state === "disconnected") {
    if (!ui.connection.reportValidity()) return;
    target = currentTarget();
    attempts = 0;
  }
  open();
}

function open() {
  let next;
  try {
    next = new WebSocket(url(target));
  } catch (error) {
    line("trouble", `cannot connect: ${error.message}`);
    setState("disconnected");
    return;
  }
  socket = next;
  setState(attempts === 0 ? "connecting" : "reconnecting");
  if (attempts === 0) line("state", `connecting to ${next.url}`);
  let everOpen = false;
  handshakeTimer = setTimeout(() => {
    line("trouble", `no answer to the handshake for ${HANDSHAKE_MS / 1000} s`);
    next.close();
  }, HANDSHAKE_MS);

  next.onopen = () => {
    if (next !== socket) return;
    clearTimeout(handshakeTimer);
    everOpen = true;
    openedAt = performance.now();
    line("state", `connected to channel ${JSON.stringify(target.channel)}`);
    setState("connected");
  };
  next.onmessage = (event) => {
    if (next !== socket) return;
    received += 1;
    if (typeof event.data === "string") line("received", event.data, target);
    else line("received", `(binary, ${event.data.size} bytes)`);
  };
  next.onclose = (event) => {
    if (next !== socket) return;
    clearTimeout(handshakeTimer);
    socket = null;
    onLost(event, everOpen);
  };
}

/** The connection ended and nobody here asked for it: say how, and come back unless the code says not to. */
function onLost(event, wasOpen) {
  const [, comeBack] = CLOSE_CODES[event.code] ?? ["", event.code < 4000];
  line("trouble", `${wasOpen ? "closed" : "not connected"}: ${closeText(event)}`);
  if (!comeBack) {
    line("state", "not reconnecting after this code");
    setState("disconnected");
    return;
  }
  if (wasOpen && performance.now() - openedAt >= STABLE_MS) attempts = 0;
  attempts += 1;
  // Half of the delay is fixed and half random: no hammering, and after an outage no stampede.
  const ceiling = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempts - 1, 16));
  const delay = ceiling * (0.5 + Math.random() / 2);
  retryAt = performance.now() + delay;
  retryTimer = setTimeout(open, delay);
  line("state", `attempt ${attempts} to reconnect in ${(delay / 1000).toFixed(1)} s`);
  setState("reconnecting");
}

function disconnect() {
  clearTimeout(retryTimer);
  clearTimeout(handshakeTimer);
  const old = socket;
  socket = null;
  if (old) {
    const asked = performance.now();
    line("state", old.readyState === WebSocket.OPEN ? "closing with 1000" : "attempt given up");
    old.onopen = null;
    old.onmessage = null;
    old.onclose = (event) => line("state", `closed after ${Math.round(performance.now() - asked)} ms: ${closeText(event)}`);
    old.close(1000, "");
  } else {
    line("state", "no further attempts");
  }
  setState("disconnected");
}

function closeText(event) {
  const [meaning] = CLOSE_CODES[event.code] ?? ["a code of the application"];
  return `${event.code}, ${meaning}${event.reason ? `, reason ${JSON.stringify(event.reason)}` : ""}`;
}

function send() {
  const text = ui.message.value;
  const why = whyNot(text);
  ui.problem.textContent = why;
  ui.message.setAttribute("aria-invalid", String(why !== ""));
  ui.message.focus();
  if (why) return;
  socket.send(text);
  sent += 1;
  line("sent", text);
  ui.message.value = "";
  showSize();
}

/** Why a message cannot be sent; empty when it can. */
function whyNot(text) {
  if (state !== "connected") return "Not sent: there is no connection. Connect first.";
  if (target.sends === "no") return "Not sent: clients may not send at this endpoint.";
  if (text === "") return "Not sent: the message is empty.";
  const bytes = sizeOf(text);
  return bytes > target.max ? `Not sent: ${bytes} bytes, and one message holds at most ${target.max}.` : "";
}

// --- the log --------------------------------------------------------------------------------

/** Lines not shown yet. A burst is shown in one go, and holds no more than the log does. */
let waiting = [];
let flushTimer = 0;
let dropped = 0;
/** Whether the newest line is in view and the log should follow. */
let following = true;

function line(kind, text, from) {
  waiting.push({ kind, text, from, at: new Date() });
  if (waiting.length > MAX_LINES) {
    waiting.shift();
    dropped += 1;
  }
  // A timer and no animation frame: those stop while the tab is in the background.
  flushTimer ||= setTimeout(flush, 16);
}

function flush() {
  flushTimer = 0;
  const lines = document.createDocumentFragment();
  for (const entry of waiting) lines.append(render(entry));
  waiting = [];
  ui.lines.append(lines);
  while (ui.lines.children.length > MAX_LINES) {
    ui.lines.firstElementChild.remove();
    dropped += 1;
  }
  showCounts();
  if (following) ui.log.scrollTop = ui.log.scrollHeight;
  ui.latest.hidden = following;
}

function showCounts() {
  ui.counts.textContent = `${received} received, ${sent} sent` + (dropped ? `, last ${MAX_LINES} lines shown` : "");
}

function render({ kind, text, from, at }) {
  const item = document.createElement("li");
  item.className = kind;
  const time = document.createElement("time");
  time.dateTime = at.toISOString();
  const two = (number) => String(number).padStart(2, "0");
  time.textContent = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  const label = document.createElement("span");
  label.className = "kind";
  label.textContent = { received: "received", sent: "sent", state: "state", trouble: "trouble" }[kind];
  const body = document.createElement("span");
  body.className = "text";
  const suffix = from?.wire === "lua" ? from.channel : "";
  if (suffix && text.endsWith(suffix)) {
    // The lua wire appends the channel's name. It is shown as it came, and marked as what it is.
    const mark = document.createElement("span");
    mark.className = "suffix";
    mark.title = "appended by the lua wire";
    mark.textContent = suffix;
    const payload = text.slice(0, text.length - suffix.length);
    body.append(payload, mark);
    body.classList.toggle("bare", payload === "");
  } else {
    body.textContent = text;
    body.classList.toggle("void", text === "");
  }
  item.append(time, " ", label, " ", body);
  return item;
}

// --- the composer ---------------------------------------------------------------------------

function sizeOf(text) {
  return new TextEncoder().encode(text).length;
}

function showSize() {
  const bytes = sizeOf(ui.message.value);
  const max = Number((state === "disconnected" ? currentTarget() : target).max);
  const over = bytes > max;
  ui.size.classList.toggle("over", over);
  ui.size.textContent = over
    ? `${bytes} bytes: one message holds at most ${max}.`
    : `Enter sends, Shift+Enter starts a new line.${bytes ? ` ${bytes} bytes.` : ""}`;
  ui.message.style.height = "auto";
  ui.message.style.height = `${ui.message.scrollHeight + 2}px`;
}

// --- events ---------------------------------------------------------------------------------

ui.connection.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!socket) connect();
});
ui.disconnect.addEventListener("click", () => {
  if (!isEnabled(ui.disconnect)) return;
  disconnect();
  ui.channel.focus();
});
ui.channel.addEventListener("input", showTarget);
ui.endpoint.addEventListener("change", () => {
  showTarget();
  showSize();
});

ui.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
ui.message.addEventListener("input", () => {
  ui.problem.textContent = "";
  ui.message.removeAttribute("aria-invalid");
  showSize();
});
ui.message.addEventListener("keydown", (event) => {
  // isComposing: the Enter that ends an input method's composition is not meant for us.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});

ui.strip.addEventListener("change", () => ui.log.classList.toggle("strip", ui.strip.checked));
ui.clear.addEventListener("click", () => {
  waiting = [];
  ui.lines.replaceChildren();
  received = sent = dropped = 0;
  following = true;
  ui.latest.hidden = true;
  showCounts();
});
ui.log.addEventListener("scroll", () => {
  following = ui.log.scrollHeight - ui.log.scrollTop - ui.log.clientHeight < 24;
  if (!following) return;
  if (document.activeElement === ui.latest) ui.log.focus();
  ui.latest.hidden = true;
});
ui.latest.addEventListener("click", () => {
  following = true;
  ui.log.scrollTop = ui.log.scrollHeight;
  ui.latest.hidden = true;
  ui.log.focus();
});

addEventListener("online", () => {
  if (state === "reconnecting" && !socket) {
    line("state", "the network is back");
    connect();
  }
});
addEventListener("hashchange", () => {
  // Somebody edited the address (replaceState fires no such event): the old connection goes.
  if (state !== "disconnected") disconnect();
  const now = readHash();
  showTarget();
  if (now) connect();
});

setInterval(showDetail, 100);
const connectNow = readHash();
showTarget();
showSize();
setState("disconnected");
if (connectNow) connect();
