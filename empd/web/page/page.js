"use strict";
// Asks for the status and the newest jobs once a second while the page is visible, and redraws what changed.

const EVERY_MS = 1000;
const JOBS_SHOWN = 25;
const TONES = {
  ready: "good", completed: "good", starting: "warn", probing: "warn", draining: "warn", drained: "warn", backoff: "warn", stopping: "warn",
  cancelling: "warn", delayed: "warn", expired: "warn", cancelled: "warn", failed: "bad", dead_lettered: "bad", dead: "bad",
  killing: "bad", circuit_open: "bad",
};
const byId = (id) => document.getElementById(id);
let jobState = "";
let failures = 0;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (className) made.className = className;
  return made;
}

const number = (value) => element("td", value ?? "", "number");
const note = (value) => element("td", value || "", "note");
const text = (value) => element("td", value ?? "");

function badge(state) {
  const cell = element("td");
  cell.append(element("span", (state || "").replaceAll("_", " "), `badge ${TONES[state] || ""}`));
  return cell;
}

function job(id) {
  const cell = element("td", null, "id");
  if (id) {
    const link = element("a", id);
    link.href = `/v1/jobs/${encodeURIComponent(id)}`;
    cell.append(link);
  }
  return cell;
}

function bar(fraction) {
  const cell = element("td");
  if (typeof fraction === "number") {
    const made = element("progress");
    made.max = 1;
    made.value = fraction;
    made.title = `${Math.round(fraction * 100)} %`;
    cell.append(made);
  }
  return cell;
}

function bytes(value) {
  if (!value) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function span(seconds) {
  if (seconds === undefined || seconds === null) return "";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds % 86400 / 3600)} h`;
}

function took(one) {
  if (!one.started_at) return "";
  const end = one.ended_at ? Date.parse(one.ended_at) : Date.now();
  return span(Math.max(0, (end - Date.parse(one.started_at)) / 1000));
}

function fill(id, rows, columns, emptyText) {
  const body = byId(id);
  const made = rows.map((cells) => { const row = element("tr"); row.append(...cells); return row; });
  if (!made.length) {
    const cell = element("td", emptyText, "empty");
    cell.colSpan = columns;
    const row = element("tr");
    row.append(cell);
    made.push(row);
  }
  const next = element("tbody");
  next.append(...made);
  // Redrawing only what changed keeps focus and selection.
  if (next.innerHTML !== body.innerHTML) body.replaceChildren(...made);
}

function showHealth(status) {
  const health = byId("health");
  health.textContent = status.ready ? "ready" : "not ready";
  health.className = `badge ${status.ready ? "good" : "bad"}`;
  const list = byId("reasons");
  list.replaceChildren(...status.reasons.map((reason) => element("li", reason)));
  list.hidden = !status.reasons.length;
  byId("facts").textContent = `durability ${status.durability} · ${status.mapping}`;
  byId("version").textContent = `· empd ${status.version}`;
  document.title = status.ready ? "empd" : "empd: not ready";
}

function showFigures(status) {
  const jobs = (status.broker && status.broker.jobs) || {};
  const waiting = status.services.reduce((sum, one) => sum + ((one.broker && one.broker.waiting) || 0), 0);
  const working = status.workers.filter((one) => one.state === "ready").length;
  const virtual = status.gpus.length && status.gpus.every((one) => one.virtual);
  const figures = [
    [waiting, "waiting"], [jobs.held ?? 0, "running"], [jobs.dead ?? 0, "dead-lettered"],
    [`${working}/${status.workers.length}`, "workers ready"],
    [status.gpus.length, virtual ? "GPUs (virtual)" : "GPUs"],
    [bytes(jobs.payload_bytes) || "0 B", "payloads held"],
  ];
  byId("figures").replaceChildren(...figures.map(([value, name]) => {
    const figure = element("div", null, "figure");
    figure.append(element("b", value), element("span", name));
    return figure;
  }));
}

// Why a worker takes no jobs, or of which services; of one that was started again, how it ended before.
function workerNote(one) {
  const said = one.broker || {};
  const services = Object.entries(said.services || {}).filter(([, offer]) => offer.reason && offer.reason !== said.reason);
  const notes = [said.reason, ...services.map(([name, offer]) => `${name}: ${offer.reason}`)];
  if (!["clean", "drained"].includes(one.last_exit)) notes.push(one.last_exit && `last exit: ${one.last_exit.replaceAll("_", " ")}`);
  return notes.filter(Boolean).join("; ");
}

// The time of day, with the date when it was not today.
function moment(iso) {
  if (!iso) return "";
  const at = new Date(iso);
  return at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString() : at.toLocaleString();
}

function showWorkers(status) {
  const drained = (status.broker && status.broker.drained) || [];
  const takesNothing = (one) => one.state === "ready" && (drained.includes("*") || drained.includes(one.name));
  fill("workers", status.workers.map((one) => [
    text(one.name), badge(takesNothing(one) ? "drained" : one.state),
    text(one.device_uuid ? `${one.device_uuid}${one.virtual ? " (virtual)" : ""}` : "CPU"),
    job(one.job), bar(one.job ? one.progress : null), number(one.jobs_done), number(one.jobs_failed),
    number(bytes(one.rss_bytes)), number(one.restarts), number(span(one.up_s)), note(workerNote(one)),
  ]), 11, "No worker is configured.");
}

function showServices(status) {
  fill("services", status.services.map((one) => {
    const said = one.broker || {};
    return [
      text(one.name), number(said.waiting ?? ""), number(said.waiting ? span(said.oldest_age_s) : ""),
      number(said.workers ?? ""), number(said.slots ?? ""), text(one.connectors.join(", ")),
      note((said.reasons || []).join("; ")),
    ];
  }), 7, "No service is configured.");
}

function showProcesses(status) {
  fill("processes", status.children.filter((one) => one.kind !== "worker").map((one) => [
    text(one.name), badge(one.state), number(one.pid), number(span(one.heartbeat_age_s)), number(bytes(one.rss_bytes)),
    number(one.restarts), text(one.last_exit), number(span(one.up_s)),
  ]), 8, "Nothing runs.");
}

function showJobs(page) {
  fill("jobs", page.jobs.map((one) => [
    job(one.id), badge(one.state), text(one.service), text(one.worker), number(one.attempts),
    text(moment(one.submitted_at)), number(took(one)),
    note([one.reason || (one.error && `${one.error.failure}: ${one.error.message}`), one.doubt].filter(Boolean).join("; ")),
  ]), 8, "No job is here.");
}

async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function refresh() {
  const query = jobState ? `&state=${encodeURIComponent(jobState)}` : "";
  const [status, page] = await Promise.all([ask("/v1/status"), ask(`/v1/jobs?limit=${JOBS_SHOWN}${query}`)]);
  showHealth(status);
  showFigures(status);
  showWorkers(status);
  showServices(status);
  showProcesses(status);
  showJobs(page);
}

async function loop() {
  if (!document.hidden) {
    try {
      await refresh();
      failures = 0;
    } catch (error) {
      failures += 1;
      // One missed answer is a restart of the web process; two in a row are told.
      if (failures > 1) {
        byId("health").textContent = "no answer";
        byId("health").className = "badge bad";
      }
    }
  }
  setTimeout(loop, EVERY_MS);
}

for (const button of document.querySelectorAll("[data-state]")) {
  button.addEventListener("click", () => {
    jobState = button.dataset.state;
    for (const other of document.querySelectorAll("[data-state]")) other.setAttribute("aria-pressed", String(other === button));
    refresh().catch(() => {});
  });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh().catch(() => {}); });
loop();
