// Where the test page connects to: its fields, its address, and command lines for the same channel. May not enter:
// connections.

"use strict";

/** An endpoint, as its option describes it (wire, rule, argument, prefix, command, history, max, receives, sends), a
 *  transport, and a channel. */
function currentTarget() {
  const option = ui.endpoint.selectedOptions[0];
  return { ...option.dataset, path: option.value, transport: ui.transport.value, channel: ui.channel.value };
}

/** Lists the transports of the endpoint; the one that was chosen stays, if it is there. */
function showTransports() {
  const [chosen, to] = [ui.transport.value, currentTarget()];
  const offered = Object.entries(TRANSPORTS).filter(([, transport]) => transport.isOffered(to));
  ui.transport.replaceChildren(...offered.map(([name, { label }]) => new Option(label, name)));
  if (offered.some(([name]) => name === chosen)) ui.transport.value = chosen;
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
  const path = encodeURIComponent(to.path).replaceAll("%2F", "/");
  const transport = to.transport === "websocket" ? "" : `&transport=${to.transport}`;
  return `#channel=${encodeURIComponent(to.channel)}&endpoint=${path}${transport}`;
}

/** Takes the fields from the address, so that a link or a second tab starts where this one is. */
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("channel")) ui.channel.value = given.get("channel");
  const path = given.get("endpoint");
  if (path && [...ui.endpoint.options].some((option) => option.value === path)) ui.endpoint.value = path;
  showTransports();
  const transport = given.get("transport") ?? "websocket";
  if ([...ui.transport.options].some((option) => option.value === transport)) ui.transport.value = transport;
  return given.get("connect") === "1";
}

function showTarget() {
  const to = currentTarget();
  try {
    ui.url.textContent = url(to).replace(/^http/, TRANSPORTS[to.transport].scheme);
    ui["redis-channel"].textContent = JSON.stringify(to.prefix + to.channel);
    ui.shell.textContent = shell(to);
    history.replaceState(null, "", hash(to));
    ui.twin.href = `${hash(to)}&connect=1`;
    ui.channel.setCustomValidity("");
  } catch {
    ui.url.textContent = "";
    ui.channel.setCustomValidity("This name holds half a character (a lone surrogate) and cannot be sent.");
  }
  const positions = TRANSPORTS[to.transport].hasPositions;
  ui.wire.textContent = [
    to.transport === "websocket" && to.wire === "lua"
      ? "Lua wire: every received text ends with the channel's name, marked in the log."
      : "What is published arrives unchanged.",
    { json: "The channel's name is a JSON string in the query.", plain: "The query has the channel's name unchanged.",
      path: "The channel's name is the last part of the path." }[to.rule],
    to.history
      ? `History: the last ${to.history} of each channel${positions ? "" : ", but this transport has no positions"}.`
      : "No history: what is published while a client is away is missed, and the client is not told.",
    to.receives === "no" ? "Clients receive nothing here." : "",
    sends(to) ? "" : "Clients only receive here.",
  ].filter(Boolean).join(" ");
  ui["position-label"].hidden = ui["oldest-label"].hidden = !positions || to.history === "";
  ui["strip-label"].hidden = to.wire !== "lua" || to.transport !== "websocket";
}
