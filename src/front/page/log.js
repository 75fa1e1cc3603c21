// The log of the test page: its lines, its counts, and whether it follows. May not enter: connections.

"use strict";

const MAX_LINES = 500;

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
  const suffix = from?.wire === "lua" && from.transport === "websocket" ? from.channel : "";
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

