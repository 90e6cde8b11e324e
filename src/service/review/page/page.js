// The review page. Its words, a case's columns and the meaning of its keys come from the service, which knows the task; what
// comes from a case is only ever put into the page as text.
"use strict";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 1500;
// unseen: the verdict that the steward chose before the model's was shown; statistics: how often they were asked for
const state = { card: null, page: null, labels: [], since: 0, chosen: null, busy: false, seen: false, unseen: null, statistics: 0 };

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function ask(path, body, mayBeSaved = false) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
  } catch {
    const unknown = !mayBeSaved ? "" : " It is not known whether the last step was saved; reload the page.";
    throw new Error(`The service cannot be reached.${unknown}`);
  }
  const told = await response.json().catch(() => ({ error: `the service answered ${response.status}` }));
  if (response.status === 401) $("key-label").hidden = false;
  else if (key) $("key-label").hidden = true;
  if (!response.ok) throw Object.assign(new Error(told.error || `the service answered ${response.status}`), { status: response.status });
  return told;
}

function say(words, isError = false) {
  $("message").textContent = words;
  $("message").className = isError ? "error" : "";
}

// One thing at a time: a key held down must not decide the next card unseen.
async function once(work) {
  if (state.busy) return;
  state.busy = true;
  try {
    await work();
  } catch (error) {
    say(error.message, true);
    // The model is still being loaded, or another one has come.
    if (error.status === 503) setTimeout(() => once(next), RETRY_MS);
    if (error.status === 409 && state.card) setTimeout(() => once(next), RETRY_MS);
  } finally {
    state.busy = false;
  }
}

// What depends on the task: set once.
function usePage(page, labels) {
  state.page = page;
  state.labels = labels;
  $("skip-link").textContent = `To the ${page.case}`;
  $("caption").textContent = page.caption;
  const titles = ["Field", ...Object.values(page.columns), ...(compares() ? ["Compared"] : [])];
  $("heads").replaceChildren(...titles.map((title) => element("th", title, { scope: "col" })));
  $("differences-label").hidden = !compares();
  $("reason").replaceChildren(...page.reasons.map((reason) => element("option", reason)),
    element("option", "another reason, below", { value: "" }));
  $("label-keys").replaceChildren(...labels.flatMap((_, at) => [element("kbd", String(at + 1)), " "]));
  $("label-words").textContent = `your verdict: ${labels.join(", ")}`;
}

const compares = () => Object.keys(state.page.relations).length > 0;
const predicted = (card) => card[state.page.verdict_key];

async function next() {
  const told = await ask("/review/next", { reviewer: $("reviewer").value.trim() });
  if (!state.page) usePage(told.page, told.labels);
  showProgress(told.progress);
  showCard(told.card);
  if (!told.card) {
    const { pairs, answered, decided, unreadable } = told.progress;
    const left = pairs - decided - unreadable;
    if (pairs > answered) say(`${pairs - answered} ${state.page.cases} wait for the model's answer`);
    else if (left > 0) say(`${left} ${state.page.cases} are left; other reviewers are looking at them`);
    else say(pairs ? `All ${state.page.cases} are decided.` : `No ${state.page.case} to review yet.`);
    if (left > 0 || !pairs) setTimeout(() => state.card || once(next), RETRY_MS);
  }
  showStatistics();
}

// A card that was shown before there was a name may be shown to others too: now it is kept for this one, or another comes.
async function claim() {
  const before = state.card;
  let told;
  try {
    told = await ask("/review/next", { reviewer: $("reviewer").value.trim() });
  } catch (error) {
    say(error.message, true);
    return;
  }
  const isStill = !state.busy && state.card === before && before;
  if (isStill && told.card?.pair !== before.pair) showCard(told.card);
}

function showProgress(progress) {
  $("progress").max = Math.max(1, progress.pairs);
  $("progress").value = progress.decided;
  const unread = progress.unreadable ? `, ${progress.unreadable} too long for the model` : "";
  $("progress-words").textContent = `${progress.decided} of ${progress.pairs} ${state.page.cases} decided${unread}`;
  showCounts(progress);
}

// What is counted: a file's lines may be more than its cases, and cases may wait for the model or come again.
function showCounts({ pairs, decided, answered, skipped, repeated_lines: repeated }) {
  const parts = [`Each ${state.page.case} counts once, and is decided when a steward has accepted or corrected it`];
  if (repeated) parts.push(`${repeated} ${repeated === 1 ? "line repeats" : "lines repeat"} one that stands before`);
  if (pairs > answered) parts.push(`${pairs - answered} ${pairs - answered === 1 ? "waits" : "wait"} for the model's answer`);
  if (skipped) parts.push(`${skipped} skipped, to come again at the end`);
  if (decided < pairs) parts.push(`${pairs - decided} left`);
  $("progress-note").textContent = `${parts.join("; ")}.`;
  $("progress-note").hidden = !pairs;
}

function showCard(card) {
  state.card = card;
  state.since = performance.now();
  state.chosen = state.unseen = null;
  state.seen = false;
  $("card").hidden = !card;
  $("correction").hidden = true;
  if (!card) return;
  $("card-title").textContent = card.id === null ? state.page.question : `${state.page.question} (${card.id})`;
  showRows();
  showVerdict(!$("blind").checked);
  $("choices").replaceChildren(...state.labels.map((label, at) => {
    const button = element("button", `${label} `, { type: "button" });
    button.append(element("kbd", String(at + 1)));
    if (!$("blind").checked && label === predicted(card)) button.classList.add("models");
    button.addEventListener("click", () => choose(label));
    return button;
  }));
}

function showRows() {
  const onlyDifferent = compares() && $("differences").checked;
  const shown = state.card.rows.filter((row) => !onlyDifferent || kindOf(row) !== "same");
  $("rows").replaceChildren(...shown.map(rowOf));
  const hidden = state.card.rows.length - shown.length;
  $("hidden-rows").textContent = hidden ? `${hidden} equal ${hidden === 1 ? "field is" : "fields are"} hidden` : "";
}

// How a row's values compare: words, and the kind that gives them their colour.
const relationOf = (row) => state.page.relations[row.relation] || ["", ""];
const kindOf = (row) => relationOf(row)[1];

function rowOf(row) {
  const made = element("tr");
  made.dataset.field = row.field;
  made.append(element("th", row.field, { scope: "row" }));
  const columns = Object.entries(state.page.columns);
  const values = columns.map(([key]) => row[key]);
  // Only two values can differ letter by letter.
  const marks = values.length === 2 && kindOf(row) !== "same" && values[0] && values[1] ? differing(...values) : [];
  columns.forEach(([, title], at) => made.append(valueCell(values[at], marks[at] || [], title)));
  if (compares()) {
    const compared = element("td");
    compared.append(element("span", relationOf(row)[0], { class: `chip ${kindOf(row)}` }));
    made.append(compared);
  }
  return made;
}

function valueCell(text, marked, side) {
  const cell = element("td", undefined, { "data-side": side });
  if (!text) {
    cell.append(element("span", "not given", { class: "empty" }));
    return cell;
  }
  const letters = [...text];
  for (let at = 0; at < letters.length;) {
    const on = Boolean(marked[at]);
    let end = at;
    while (end < letters.length && Boolean(marked[end]) === on) end += 1;
    const part = letters.slice(at, end).join("");
    cell.append(on ? element("mark", part) : document.createTextNode(part));
    at = end;
  }
  return cell;
}

// Which letters of two texts are not in their longest common subsequence; of very long texts none are marked.
function differing(left, right) {
  const a = [...left.toLowerCase()], b = [...right.toLowerCase()];
  if (a.length * b.length > 250000) return [[], []];
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const marks = [new Array(a.length).fill(true), new Array(b.length).fill(true)];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      marks[0][i] = marks[1][j] = false;
      i += 1;
      j += 1;
    } else if (longest[i + 1][j] >= longest[i][j + 1]) {
      i += 1;
    } else {
      j += 1;
    }
  }
  return marks;
}

function showVerdict(open) {
  state.seen = state.seen || open;
  $("verdict").hidden = !open;
  $("blind-note").hidden = open;
  if (!open) return;
  const card = state.card, shares = card.probabilities || {};
  const verdict = predicted(card), reason = card[state.page.reason_key] || "";
  $("model-result").textContent = verdict;
  $("model-share").textContent = verdict in shares ? `(${percent(shares[verdict])})` : "";
  $("sentence").replaceChildren(...linked(reason, card.rows, card.unsupported));
  $("unsupported").replaceChildren(...card.unsupported.map(doubt));
  $("unsupported").hidden = !card.unsupported.length;
  $("shares").replaceChildren(...Object.entries(shares).map(([label, share]) => {
    const entry = element("div");
    entry.append(element("dt", label), element("dd", percent(share)));
    return entry;
  }));
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

// What the sentence states of a field and the comparison does not show.
function doubt(one) {
  const [shown] = relationOf({ relation: one.evidence });
  const stated = one.stated.replace("_", " ");
  return element("li", `Not supported: ${one.words} (stated: ${stated}; compared: ${shown || one.evidence})`);
}

// A field's name however a key writes it: first_name, FirstName, first name.
const plainName = (name) => name.toLowerCase().replace(/[ _]/g, "");

// The sentence with each field that it names as a link to the field's row; what the comparison does not show is marked.
function linked(text, rows, unsupported) {
  const fields = new Map(rows.map((row) => [plainName(row.field), row.field]));
  const doubted = new Set(unsupported.map((one) => plainName(one.words)));
  for (const one of unsupported) if (!fields.has(plainName(one.words))) fields.set(plainName(one.words), one.field);
  const names = [...rows.map((row) => row.field), ...unsupported.map((one) => one.words)].sort((a, b) => b.length - a.length)
    .map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/[ _]/g, "[ _]?"));
  if (!names.length) return [document.createTextNode(text)];
  const parts = [];
  let last = 0;
  for (const found of text.matchAll(new RegExp(`(?<![\\p{L}\\p{N}_])(?:${names.join("|")})(?![\\p{L}\\p{N}_])`, "giu"))) {
    const name = plainName(found[0]);
    const link = element("a", found[0], { href: "#card" });
    if (doubted.has(name)) link.className = "unsupported";
    link.addEventListener("click", (event) => {
      event.preventDefault();
      point((fields.get(name) ?? found[0]).toLowerCase());
    });
    parts.push(document.createTextNode(text.slice(last, found.index)), link);
    last = found.index + found[0].length;
  }
  return [...parts, document.createTextNode(text.slice(last))];
}

function point(field) {
  if ($("differences").checked && ![...$("rows").children].some((row) => row.dataset.field.toLowerCase() === field)) {
    $("differences").checked = false;
    showRows();
  }
  for (const row of $("rows").children) {
    const is = row.dataset.field.toLowerCase() === field;
    row.classList.toggle("pointed", is);
    if (is) row.scrollIntoView({ block: "nearest" });
  }
}

function choose(label) {
  if (!state.card || !hasName()) return;
  if (!state.seen) state.unseen = label;
  if (label === predicted(state.card)) {
    once(() => decide(label, null));
    return;
  }
  state.chosen = label;
  showVerdict(true);
  $("own-result").textContent = label;
  $("other-result").textContent = predicted(state.card);
  $("reason").value = state.page.likely_reasons[label] ?? "";
  $("reason-words").value = "";
  $("correction").hidden = false;
  $("reason").focus();
}

// 1, 2 or 3
function keysInWords() {
  const keys = state.labels.map((_, at) => String(at + 1));
  return `${keys.slice(0, -1).join(", ")} or ${keys.at(-1)}`;
}

function hasName() {
  if ($("reviewer").value.trim()) return true;
  say("Give your name first; it stands beside your decisions.", true);
  $("reviewer").focus();
  return false;
}

async function decide(label, reason) {
  const card = state.card, seconds = Math.round((performance.now() - state.since) / 100) / 10;
  const told = await ask("/review/decide", {
    pair: card.pair, action: "decide", verdict: label, reason, reviewer: $("reviewer").value.trim(), seconds, shown: predicted(card),
    blind: state.unseen === label,
  }, true);
  const blind = $("blind").checked ? `; the model said ${predicted(card)}` : "";
  say(`${label} saved as decision ${told.n} (${told.action === "accept" ? "accepted" : "corrected"}${blind}).`);
  await next();
  $("card").focus({ preventScroll: true });
}

function skip() {
  if (!state.card || !hasName()) return;
  once(async () => {
    await ask("/review/decide", { pair: state.card.pair, action: "skip", reviewer: $("reviewer").value.trim() }, true);
    say("Skipped; it comes again at the end.");
    await next();
  });
}

function undo() {
  if (!hasName()) return;
  once(async () => {
    const told = await ask("/review/undo", { reviewer: $("reviewer").value.trim() }, true);
    showProgress(told.progress);
    if (told.card) showCard(told.card);
    say(`Taken back; the ${state.page.case} is open again.`);
    showStatistics();
  });
}

// Nobody waits for the statistics: the keys answer as soon as the next card is shown.
async function showStatistics() {
  state.statistics += 1;
  const mine = state.statistics;
  let told;
  try {
    told = await ask("/review/statistics");
  } catch (error) {
    say(error.message, true);
    return;
  }
  if (mine !== state.statistics) return;
  if (!told.decided) {
    $("statistics").replaceChildren(element("p", "No decision yet."));
    return;
  }
  const time = told.seconds_median === null ? "" : `, ${told.seconds_median.toFixed(1)} s a ${state.page.case} (median)`;
  const words = element("p", `${told.decided} decided, ${percent(told.agreement)} as the model said${time}.`);
  const table = element("table");
  table.append(element("caption", "The model's verdicts by line, yours by column"));
  const head = element("tr");
  head.append(element("th", "Model", { scope: "col" }), ...told.labels.map((label) => element("th", label, { scope: "col" })));
  const top = element("thead"), body = element("tbody");
  top.append(head);
  told.matrix.forEach((counts, at) => {
    const row = element("tr");
    row.append(element("th", told.labels[at], { scope: "row" }), ...counts.map((count) => element("td", String(count))));
    body.append(row);
  });
  table.append(top, body);
  $("statistics").replaceChildren(words, table);
}

$("correction").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = [$("reason").value, $("reason-words").value.trim()].filter(Boolean).join(": ");
  if (!reason) {
    say("Say why, in your words.", true);
    $("reason-words").focus();
    return;
  }
  once(() => decide(state.chosen, reason));
});
$("back").addEventListener("click", leaveCorrection);
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("help-button").addEventListener("click", () => $("help").showModal());
$("differences").addEventListener("change", () => state.card && showRows());
$("blind").addEventListener("change", () => {
  localStorage.setItem("blind", $("blind").checked ? "1" : "");
  if (!state.card) return;
  // What was seen stays seen: only the next card is blind then.
  const { seen, unseen } = state;
  showCard(state.card);
  if (seen) Object.assign(state, { seen, unseen });
});
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("reviewer").addEventListener("change", () => {
  localStorage.setItem("reviewer", $("reviewer").value.trim());
  if ($("reviewer").value.trim()) claim();
});
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  say("");
  once(next);
});

function leaveCorrection() {
  $("correction").hidden = true;
  state.chosen = null;
  showVerdict(!$("blind").checked);
  $("card").focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("help").open) return;
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && !$("correction").hidden) leaveCorrection();
  if (event.key === "Enter" && typing && event.target.closest("#correction") && event.target.matches("select")) {
    event.preventDefault();
    $("correction").requestSubmit();
    return;
  }
  if (event.key === "Enter" && event.target === $("reviewer") && state.card && $("reviewer").value.trim()) {
    event.preventDefault();
    say("");
    $("card").focus({ preventScroll: true });
    return;
  }
  if (typing || !$("correction").hidden) return;
  const keys = { s: skip, u: undo, "?": () => $("help").showModal(), d: () => $("differences").click() };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  } else if (state.card && /^[1-9]$/.test(event.key) && Number(event.key) <= state.labels.length) {
    event.preventDefault();
    choose(state.labels[Number(event.key) - 1]);
  } else if (event.key === "Enter" && state.card && !event.target.matches("button, a, input")) {
    event.preventDefault();
    if ($("blind").checked) say(`Blind: choose with ${keysInWords()}.`, true);
    else choose(predicted(state.card));
  }
});

$("reviewer").value = localStorage.getItem("reviewer") || "";
$("blind").checked = localStorage.getItem("blind") === "1";
once(next);
