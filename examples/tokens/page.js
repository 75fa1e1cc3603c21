// Shows the answer that ?answer=ID names, as far as it is, and then as it comes. The page stores nothing.

"use strict";

const id = new URLSearchParams(location.search).get("answer") ?? "42";
const answer = document.getElementById("answer");
const told = document.getElementById("status");
/** The number of the token that comes next; null before the first. */
let next = null;

// -1: everything that is kept of the answer. When the EventSource comes back by itself, its Last-Event-ID counts instead.
const source = new EventSource(`/webws?channel=${encodeURIComponent(id)}&lastEventID=-1`);

source.onmessage = (event) => {
  const { n, token, end } = JSON.parse(event.data);
  if (next === null && n > 0) answer.append("… ");
  else if (next !== null && n !== next) answer.append(" … ");
  next = n + 1;
  if (token) answer.append(token);
  told.textContent = end ? `complete: ${n} tokens` : `${next} tokens`;
  if (end) source.close();
};

// Some tokens are not kept any more, or were missed: their numbers show where.
source.addEventListener("gap", () => (told.textContent = "some tokens are missing"));

source.onerror = () => {
  told.textContent = source.readyState === EventSource.CLOSED ? "refused: reload the page" : "connecting again";
};
