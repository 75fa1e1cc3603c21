// The test page of webws: one connection, a log, and nothing hidden. No library, no build step.
//
// It is also the smallest example of a client that behaves: exponential backoff with jitter, no
// return after a close code that says "do not", the last position shown at each return, and a payload
// limit known before sending.

"use strict";

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
/** A connection that lasted this long was a good one: the next backoff starts from the beginning. */
const STABLE_MS = 5_000;
/** A handshake that takes longer is given up: browsers themselves wait for minutes. */
const HANDSHAKE_MS = 15_000;
/** How long the page stays away after it dropped its connection: time to publish something that it misses. */
const AWAY_MS = 5_000;
/** What comes so soon after a return counts as missed before, where a transport does not say which messages were. */
const RETURN_MS = 300;

const $ = (id) => document.getElementById(id);
const ui = {};
for (const id of ["state", "detail", "connection", "endpoint", "transport", "channel", "oldest", "oldest-label",
  "connect", "disconnect", "drop", "wire", "url", "position", "position-label", "recovered", "twin", "outside", "redis-channel", "shell", "counts", "strip", "strip-label", "clear", "log", "lines", "latest",
  "composer", "message", "send", "size", "problem"]) {
  ui[id] = $(id);
}

// --- what is going on -----------------------------------------------------------------------

/** "disconnected" | "connecting" | "connected" | "reconnecting" */
let state = "disconnected";
/** The live connection (see TRANSPORTS), or null. An event of any other connection is stale and ignored. */
let connection = null;
/** The last position that the target's client was told; "" before the first. */
let position = "";
/** From a return to the end of what was missed: the number of messages, and the reason of a gap. */
let returning = null;
/** What the live connection was opened with: see currentTarget. */
let target = null;
let attempts = 0;
let openedAt = 0;
let retryAt = 0;
let retryTimer = 0;
let handshakeTimer = 0;
let received = 0;
let sent = 0;

// --- the connection -------------------------------------------------------------------------

function setState(next) {
  state = next;
  ui.state.textContent = next;
  ui.state.dataset.state = next;
  const idle = next === "disconnected";
  // readOnly and not disabled: the focus stays where it is. A list has no readOnly, so its focus moves on.
  ui.channel.readOnly = !idle;
  if (!idle && [ui.endpoint, ui.transport, ui.oldest].includes(document.activeElement)) ui.channel.focus();
  ui.endpoint.disabled = ui.transport.disabled = ui.oldest.disabled = !idle;
  enable(ui.connect, connection === null);
  enable(ui.drop, next === "connected");
  ui.connect.textContent = next === "reconnecting" ? "Try now" : "Connect";
  enable(ui.disconnect, !idle);
  enable(ui.send, next === "connected" && sends(target));
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

/** Whether clients of a target may send. */
function sends(to) {
  return to.sends !== "no" && TRANSPORTS[to.transport].sends;
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
    text = connection ? `attempt ${attempts} under way` : `attempt ${attempts} in ${left.toFixed(1)} s`;
  }
  if (ui.detail.textContent !== text) ui.detail.textContent = text;
}

function connect() {
  clearTimeout(retryTimer);
  if (state === "disconnected") {
    if (!ui.connection.reportValidity()) return;
    target = currentTarget();
    attempts = 0;
    place("");
    ui.recovered.textContent = "";
  }
  open();
}

function open() {
  const isOldest = ui.oldest.checked && !ui["oldest-label"].hidden;
  const since = position || (isOldest ? "-1" : "");
  const on = {};
  let next;
  try {
    next = TRANSPORTS[target.transport].open(target, since, on);
  } catch (error) {
    line("trouble", `cannot connect: ${error.message}`);
    setState("disconnected");
    return;
  }
  connection = next;
  connection.on = on;
  setState(attempts === 0 ? "connecting" : "reconnecting");
  if (attempts === 0) line("state", `connecting to ${next.url}`);
  let everOpen = false;
  handshakeTimer = setTimeout(() => {
    line("trouble", `no answer to the handshake for ${HANDSHAKE_MS / 1000} s`);
    next.close();
  }, HANDSHAKE_MS);

  on.open = () => {
    clearTimeout(handshakeTimer);
    everOpen = true;
    openedAt = performance.now();
    line("state", `connected to channel ${JSON.stringify(target.channel)}`);
    if (since) onReturn(since);
    setState("connected");
  };
  on.message = (payload, at) => {
    received += 1;
    if (returning) returning.messages += 1;
    if (typeof payload !== "string") line("received", `(binary, ${payload.byteLength} bytes)`);
    else line("received", payload, target);
    if (at) place(at);
  };
  on.position = (at) => {
    place(at);
    endReturn();
  };
  on.gap = (reason) => {
    line("trouble", `gap: messages may be missing (${reason})`);
    if (returning) returning.gap = reason;
    else ui.recovered.textContent = "Messages may be missing: gap.";
  };
  on.closed = (how, comeBack) => {
    clearTimeout(handshakeTimer);
    endReturn();
    connection = null;
    onLost(how, comeBack, everOpen);
  };
}

/** The client has shown its position: what it missed comes first. */
function onReturn(since) {
  returning = { since, messages: 0, gap: null, timer: setTimeout(endReturn, RETURN_MS) };
}

function endReturn() {
  if (!returning) return;
  const { since, messages, gap, timer } = returning;
  clearTimeout(timer);
  returning = null;
  const from = since === "-1" ? "the oldest kept message" : `position ${since}`;
  const count = `${messages} ${messages === 1 ? "message" : "messages"} recovered`;
  line("state", `back from ${from}: ${gap === null ? count : `may be missing: gap; ${count}`}`);
  ui.recovered.textContent = gap === null ? `${count}.` : `Messages may be missing: gap; ${count}.`;
}

function place(at) {
  position = at;
  ui.position.textContent = at || "none yet";
}

/** The connection ended and nobody here asked for it: say how, and come back unless the reason says not to. */
function onLost(how, comeBack, wasOpen) {
  line("trouble", `${wasOpen ? "closed" : "not connected"}: ${how}`);
  if (!comeBack) {
    line("state", "not reconnecting after this");
    setState("disconnected");
    return;
  }
  if (wasOpen && performance.now() - openedAt >= STABLE_MS) attempts = 0;
  attempts += 1;
  // Half of the delay is fixed and half random: no hammering, and after an outage no stampede.
  const ceiling = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempts - 1, 16));
  reopenIn(ceiling * (0.5 + Math.random() / 2));
}

function reopenIn(delay) {
  retryAt = performance.now() + delay;
  retryTimer = setTimeout(open, delay);
  line("state", `attempt ${attempts} to reconnect in ${(delay / 1000).toFixed(1)} s`);
  setState("reconnecting");
}

/** Ends the connection, and tells how it ended, which the live connection's events do not. */
function closeConnection() {
  const old = connection;
  const asked = performance.now();
  connection = null;
  endReturn();
  Object.assign(old.on, {
    open: () => {},
    message: () => {},
    position: () => {},
    gap: () => {},
    closed: (how) => line("state", `closed after ${Math.round(performance.now() - asked)} ms: ${how}`),
  });
  old.close();
}

function disconnect() {
  clearTimeout(retryTimer);
  clearTimeout(handshakeTimer);
  if (connection) {
    line("state", state === "connected" ? "closing" : "attempt given up");
    closeConnection();
  } else {
    line("state", "no further attempts");
  }
  setState("disconnected");
}

/** Drops the connection, as a bad network would, and comes back with the last position. */
function drop() {
  line("state", `dropping the connection${position ? ` at position ${position}` : ""}`);
  closeConnection();
  attempts = 1;
  reopenIn(AWAY_MS);
}

function send() {
  const text = ui.message.value;
  const why = whyNot(text);
  ui.problem.textContent = why;
  ui.message.setAttribute("aria-invalid", String(why !== ""));
  ui.message.focus();
  if (why) return;
  connection.send(text);
  sent += 1;
  line("sent", text);
  ui.message.value = "";
  showSize();
}

/** Why a message cannot be sent; empty when it can. */
function whyNot(text) {
  if (state !== "connected") return "Not sent: there is no connection. Connect first.";
  if (!sends(target)) return "Not sent: clients only receive at this endpoint or over this transport.";
  if (text === "") return "Not sent: the message is empty.";
  const bytes = sizeOf(text);
  return bytes > target.max ? `Not sent: ${bytes} bytes, and one message holds at most ${target.max}.` : "";
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
  if (!connection) connect();
});
ui.disconnect.addEventListener("click", () => {
  if (!isEnabled(ui.disconnect)) return;
  disconnect();
  ui.channel.focus();
});
ui.drop.addEventListener("click", () => {
  if (isEnabled(ui.drop)) drop();
});
ui.channel.addEventListener("input", showTarget);
ui.transport.addEventListener("change", showTarget);
ui.endpoint.addEventListener("change", () => {
  showTransports();
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
  if (state === "reconnecting" && !connection) {
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

place("");
setInterval(showDetail, 100);
const connectNow = readHash();
showTarget();
showSize();
setState("disconnected");
if (connectNow) connect();
