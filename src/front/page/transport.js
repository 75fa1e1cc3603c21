// How the test page reaches a channel: one entry of TRANSPORTS for each way, with one function that opens a connection.
// May not enter: the page's elements.

"use strict";

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
  4401: ["the permission has expired", true],
  1014: ["bad gateway", true],
  1015: ["TLS failed", true],
};

/**
 * The transports. Each opens a connection with `open(to, since, on)`: `to` is an endpoint and a channel (see
 * currentTarget), `since` a position or "". It calls on.open(), on.message(payload, position), on.position(position) for
 * a position without a message, on.gap(reason), and once on.closed(text, comeBack). A payload is a text, or
 * an ArrayBuffer. It returns { url, close(), send(text) }; close() calls on.closed, too. A transport that cannot send has no send.
 */
const TRANSPORTS = {
  websocket: {
    label: "WebSocket",
    scheme: "ws",
    hasPositions: false,
    sends: true,
    isOffered: (to) => to.wire !== "sse",
    open: (to, since, on) => openWebSocket(url(to), [], on),
  },
  meta: {
    label: "WebSocket with positions (ws+meta.nchan)",
    scheme: "ws",
    hasPositions: true,
    sends: true,
    isOffered: (to) => to.wire !== "sse" && to.history !== "",
    open: (to, since, on) => openWebSocket(url(to, since), ["ws+meta.nchan"], on, takeMessage),
  },
  events: {
    label: "Server-sent events",
    scheme: "http",
    hasPositions: true,
    sends: false,
    isOffered: (to) => to.receives !== "no",
    open: (to, since, on) => openFetched(url(to), on, (...rest) => readEvents(url(to), since, on, ...rest)),
  },
  poll: {
    label: "Long-poll",
    scheme: "http",
    hasPositions: true,
    sends: false,
    isOffered: (to) => to.wire !== "sse" && to.history !== "" && to.receives !== "no",
    open: (to, since, on) => openFetched(url(to), on, (...rest) => readPolls(to, since, on, ...rest)),
  },
};

/** Where a browser connects to. Throws on half a surrogate pair. */
function url(to, since = "") {
  const base = `${location.origin}${to.path}`;
  const query = [];
  const value = to.rule === "json" ? JSON.stringify(to.channel) : to.channel;
  if (to.rule !== "path") query.push(`${encodeURIComponent(to.argument)}=${encodeURIComponent(value)}`);
  if (since) query.push(`last_event_id=${encodeURIComponent(since)}`);
  const path = to.rule === "path" ? `${base}/${encodeURIComponent(value)}` : base;
  return query.length ? `${path}?${query.join("&")}` : path;
}

// --- WebSockets -----------------------------------------------------------------------------

function openWebSocket(address, subprotocols, on, take = (data) => on.message(data, "")) {
  const socket = new WebSocket(address.replace(/^http/, "ws"), subprotocols);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => on.open();
  socket.onmessage = (event) => take(event.data, on);
  socket.onclose = (event) => on.closed(closeText(event.code, event.reason), comesBack(event.code));
  return {
    url: socket.url,
    send: (text) => socket.send(text),
    close: () => socket.close(1000, ""),
  };
}

/** The subprotocol ws+meta.nchan: lines with a position and a type, an empty line, the payload. */
function takeMessage(data, on) {
  // The header of a binary message has no more than a position.
  const start = typeof data === "string" ? data : new TextDecoder("latin1").decode(data.slice(0, 64));
  const end = start.startsWith("\n") ? 0 : start.indexOf("\n\n") + 1;
  const lines = start.slice(0, end).split("\n").filter(Boolean);
  const { id = "", event } = Object.fromEntries(lines.map((line) => line.split(": ")));
  const payload = data.slice(end + 1);
  if (event === "gap") on.gap(payload);
  else if (event === "position") on.position(id);
  else on.message(payload, id);
}

// --- server-sent events and long-poll -------------------------------------------------------

/** Opens what `read` gets by fetch; `read` calls closed(text, comeBack) at the end. */
function openFetched(address, on, read) {
  const aborting = new AbortController();
  let isClosed = false;
  const closed = (text, comeBack) => {
    if (!isClosed) on.closed(text, comeBack);
    isClosed = true;
    aborting.abort();
  };
  read(closed, aborting.signal).catch((error) => closed(`lost: ${error.message}`, true));
  return { url: address, close: () => closed("the page has ended the stream", true) };
}

/** Returns the answer, or null for a refusal. */
async function get(address, headers, closed, signal) {
  const answer = await fetch(address, { headers, cache: "no-store", signal });
  if (answer.ok) return answer;
  const why = (await answer.text()).trim();
  closed(`${answer.status}, ${why}`, answer.status >= 500);
  return null;
}

/** By fetch and not by EventSource, which shows neither a refusal nor a position without an event. */
async function readEvents(address, since, on, closed, signal) {
  const headers = { Accept: "text/event-stream" };
  if (since) headers["Last-Event-ID"] = since;
  const answer = await get(address, headers, closed, signal);
  if (!answer) return;
  on.open();
  let unread = "";
  let end = ["the stream ended without a reason", true];
  const decoder = new TextDecoderStream("utf-8", { ignoreBOM: true });
  const reader = answer.body.pipeThrough(decoder).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return closed(...end);
    const units = (unread + value).split("\n\n");
    unread = units.pop();
    for (const unit of units) end = takeUnit(unit, on) ?? end;
  }
}

/** Takes lines up to an empty line (WHATWG HTML, §9.2.6; webws ends lines with LF). Returns how the stream ends, if the
 *  unit says so. */
function takeUnit(unit, on) {
  let [id, kind, data, end] = ["", "message", null, null];
  for (const line of unit.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "id") id = value;
    else if (field === "event") kind = value;
    else if (field === "data") data = data === null ? value : `${data}\n${value}`;
    else if (field === "") end = closeOf(value) ?? end;
  }
  if (data === null) {
    if (id) on.position(id);
  } else if (kind === "gap") {
    on.gap(data);
  } else {
    on.message(kind === "binary" ? fromBase64(data) : data, id);
  }
  return end;
}

/** The last comment of a stream has a close code and a reason. */
function closeOf(comment) {
  const [, code, reason] = /^(\d+) (.*)$/.exec(comment) ?? [];
  return code ? [closeText(Number(code), reason), comesBack(Number(code))] : null;
}

/** Asks again and again, each time with the position of the last answer. The first request shows no position: its
 *  answer comes at once, and says whether the page is accepted. */
async function readPolls(to, since, on, closed, signal) {
  const headers = { Accept: "application/json" };
  const first = await get(url(to), headers, closed, signal);
  if (!first) return;
  on.open();
  let position = since || first.headers.get("Stream-Next-Offset");
  if (!since) on.position(position);
  for (;;) {
    const answer = await get(url(to, position), headers, closed, signal);
    if (!answer) return;
    const payloads = answer.status === 204 ? [] : await answer.json();
    const gap = answer.headers.get("Stream-Gap");
    if (gap) on.gap(gap);
    position = answer.headers.get("Stream-Next-Offset") ?? position;
    payloads.forEach((payload, index) => on.message(payloadOf(payload), index === payloads.length - 1 ? position : ""));
    if (answer.headers.get("Stream-Up-To-Date")) on.position(position);
  }
}

function payloadOf(element) {
  return typeof element === "string" ? element : fromBase64(element.binary);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
}

// --- closes ---------------------------------------------------------------------------------

/** A code below 1000 is a status of HTTP, which nginx puts into a stream. */
function closeText(code, reason) {
  if (code < 1000) return `${code}, ${reason}`;
  const [meaning] = CLOSE_CODES[code] ?? ["a code of the application"];
  return `${code}, ${meaning}${reason ? `, reason ${JSON.stringify(reason)}` : ""}`;
}

function comesBack(code) {
  return CLOSE_CODES[code]?.[1] ?? code < 4000;
}
