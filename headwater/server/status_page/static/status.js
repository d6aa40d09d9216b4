// The page: asks for the status, waits for events, asks again. It only reads.
import { BytesChart, MetricChart } from "./charts.js";
import { facts, fill, keyed, make, set } from "./tables.js";
import { ago, bytes, clock, count, moment, NOTHING, number, seconds } from "./text.js";

const REFRESH_MS = 5000, LEAST_MS = 400, MOST_EVENTS = 200;
const LOWER = new Set(["training loss"]); // and those that the server names
const MOODS = { running: "good", finished: "main", waiting: "warn", paused: "warn", failed: "bad", stopped: "", queued: "", online: "good", offline: "", revoked: "bad" };
const $ = (id) => document.getElementById(id);
const state = { token: "", status: null, got: 0, run: "", rows: new Map(), every: 1, chart: "", metric: "", after: -1, events: [], adapters: "", best: 0, said: 0, started: 0, since: 0 };
const metricChart = new MetricChart($("metric-chart"), "metric by round", $("readout"));
const bytesChart = new BytesChart($("bytes-chart"), "bytes by round; arrow keys move between rounds", $("readout"), $("bytes-note"));
bytesChart.resting = () => metricChart.resting();
let news = false, wake = () => {};
const look = () => { news = true; wake(); }; // also while it looks: then once more

class Locked extends Error {}
class Refused extends Error {}

// --- token and requests ---------------------------------------------------------------------------

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("headwater-token", given);
    history.replaceState(null, "", location.pathname); // neither in the address bar nor in the history
  }
  return sessionStorage.getItem("headwater-token") ?? "";
}

async function ask(path) {
  const response = await fetch(path, { headers: { authorization: `Bearer ${state.token}` }, cache: "no-store" });
  if (response.status === 401) throw new Locked();
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Refused(told.error ?? `the daemon answered ${response.status}`);
  }
  return response;
}

const json = async (path) => (await ask(path)).json();

/** `fallback` where the daemon says it has no such thing (yet). */
async function jsonOr(fallback, path) {
  try {
    return await json(path);
  } catch (error) {
    if (error instanceof Refused) return fallback;
    throw error;
  }
}

const rest = (ms) => new Promise((done) => { setTimeout(done, ms); });

// --- what is shown --------------------------------------------------------------------------------

function link(text, mood) {
  set($("link"), text);
  $("link").className = `link ${mood}`;
  $("main").classList.toggle("stale", mood === "lost");
}

function current() {
  const runs = state.status.runs;
  return runs.find((r) => r.run === state.run) ?? runs.findLast((r) => ["running", "waiting", "paused"].includes(r.state)) ?? runs.at(-1);
}

function showDaemon() {
  const { version, started, rss_bytes: rss, certificate_days: days, simulation } = state.status;
  facts($("daemon"), [["version", version], ["up", seconds(Date.now() / 1000 - started)], ["memory", bytes(rss)],
    ...(simulation ? [] : [["certificate", `${count(days)} days`, "", days < 30 ? "warn" : ""]])]);
}

function showRun(run) {
  const title = run ? run.name || run.run : "No run yet";
  set($("run-name"), title);
  document.title = run ? `${run.round}/${run.rounds} ${title} – Headwater` : "Headwater";
  for (const id of ["run-state", "run-body", "charts", "adapters-box"]) $(id).hidden = !run;
  if (!run) for (const id of ["run-reason", "run-note", "run-privacy", "run-warnings"]) $(id).hidden = true;
  if (state.status.simulation) $("adapters-box").hidden = true; // they are in its run folder
  $("run-none").hidden = Boolean(run);
  if (!run) return;
  set($("run-state"), run.state);
  $("run-state").className = `pill ${MOODS[run.state] ?? ""}`;
  set($("run-reason"), run.reason);
  $("run-reason").hidden = !run.reason;
  $("run-reason").classList.toggle("bad", run.state === "failed");
  set($("run-note"), run.note);
  $("run-note").hidden = !run.note;
  set($("run-privacy"), run.privacy);
  $("run-privacy").hidden = !run.privacy;
  keyed($("run-warnings"), run.warnings, (text) => text, () => make("li"), (item, text) => set(item, text));
  $("run-warnings").hidden = !run.warnings.length;
  $("progress").max = run.rounds || 1;
  $("progress").value = run.round;
  const open = run.asked ? ` · ${count(run.accepted)} of ${count(run.asked)} updates of round ${count(run.round + 1)} are in` : "";
  set($("progress-text"), `Round ${count(run.round)} of ${count(run.rounds)}${open}`);
  const left = run.state === "running" && run.round < run.rounds ? run.seconds_per_round * (run.rounds - run.round) : NaN;
  set($("eta"), run.seconds_per_round !== null && Number.isFinite(left) ? `about ${seconds(left)} left` : "");
  const best = run.best_value === null ? "" : `round ${count(run.best_round)}`;
  facts($("tiles"), [[`${run.metric || "metric"} now`, number(run.value)], ["best", number(run.best_value), best],
    ["per round", seconds(run.seconds_per_round), "median of the last ones"],
    ["up, from clients", bytes(run.bytes_up)], ["down, to clients", bytes(run.bytes_down)]]);
  const runs = state.status.runs;
  $("run-choice").hidden = runs.length < 2;
  keyed($("run"), [...runs].reverse(), (r) => r.run, () => make("option"), (option, r) => {
    option.value = r.run;
    set(option, `${r.name || r.run} (${r.state})`);
  });
  $("run").value = run.run;
}

const SEEN = (c) => (c.seen_s_ago === null ? "never" : ago(c.seen_s_ago + (Date.now() - state.got) / 1000));
const CLIENTS = [
  { label: "Client", text: (c) => c.client, title: (c) => `fingerprint ${c.fingerprint}`, class: "wrap" },
  { label: "State", text: (c) => c.state, pill: (c) => MOODS[c.state], class: "first" },
  { label: "Seen", text: SEEN }, { label: "Doing", text: (c) => c.doing },
  { label: "Examples", text: (c) => count(c.examples), class: "n" }, { label: "Accepted", text: (c) => count(c.accepted_rounds), class: "n" },
  { label: "Failed", text: (c) => count(c.failed_rounds), class: "n", classes: (c) => (c.failed_rounds ? "fail" : "") },
  { label: "Up", text: (c) => bytes(c.bytes_up), class: "n" }, { label: "Down", text: (c) => bytes(c.bytes_down), class: "n" },
  { label: "Version", text: (c) => c.version }, { label: "Last problem", text: (c) => c.last_error, class: "wrap" },
];

function showClients() {
  const all = state.status.clients;
  const wanted = $("filter").value.trim().toLowerCase();
  const shown = all.filter((c) => !wanted || `${c.client} ${c.state} ${c.doing}`.toLowerCase().includes(wanted));
  fill($("clients"), CLIENTS, shown, (c) => c.client, (c) => (c.state === "revoked" ? "gone" : ""));
  $("filter-label").hidden = all.length < 10;
  $("clients").hidden = !all.length;
  $("clients-none").hidden = Boolean(all.length);
  const online = all.filter((c) => c.state === "online").length;
  set($("clients-count"), all.length ? `${count(online)} of ${count(all.filter((c) => c.state !== "revoked").length)} online` : "");
}

function showLog(list, events) {
  keyed(list, events, (e) => `${e.time}-${e.seq}`, (e) => {
    const item = make("li", `${e.kind}${e.data.failed ? " failed" : ""}${e.data.ended ? " ended" : ""}`);
    const time = make("time", "", clock(e.time));
    time.dateTime = new Date(e.time * 1000).toISOString();
    time.title = moment(e.time);
    item.append(time, make("span", "", e.text));
    return item;
  }, () => {});
}

function showProblems() {
  const { errors, refused } = state.status;
  showLog($("problems"), [...errors].reverse());
  $("problems").hidden = !errors.length;
  $("problems-none").hidden = Boolean(errors.length);
  set($("problems-count"), errors.length ? `the latest ${errors.length}` : "");
  const rows = Object.entries(refused).sort((a, b) => b[1] - a[1]);
  $("refused-box").hidden = !rows.length;
  keyed($("refused"), rows, (r) => r[0], () => { const item = make("li"); item.append(make("span"), make("b")); return item; }, (item, [reason, n]) => {
    set(item.firstElementChild, reason);
    set(item.lastElementChild, count(n));
  });
}

function showCharts() {
  const rows = [...state.rows.values()].sort((a, b) => a.round - b.round);
  const names = [...new Set([state.chart, ...rows.flatMap((row) => Object.keys(row.metrics))])].filter(Boolean);
  keyed($("metric"), names, (name) => name, () => make("option"), (option, name) => { option.value = name; set(option, name); });
  const metric = names.includes(state.metric) ? state.metric : names[0] ?? "";
  $("metric").value = metric;
  metricChart.show(rows, metric || "metric", LOWER.has(metric));
  bytesChart.show(rows);
  $("decimated").hidden = state.every < 2;
  set($("decimated"), `Of this long run every ${count(state.every)}th round is drawn, with the best ones and the last.`);
}

const ADAPTERS = [
  { label: "Version", text: (a) => `${count(a.version)}${a.best ? " · best" : ""}` }, { label: "Made", text: (a) => moment(a.created), class: "first" },
  { label: "Round", text: (a) => count(a.round), class: "n" }, { label: "From", text: (a) => (a.parent ? count(a.parent) : NOTHING), class: "n" },
  { label: "Metric", text: (a) => number(a.value), class: "n" },
  { label: "Clients in it", text: (a) => (a.cohort.length > 6 ? `${count(a.cohort.length)} clients` : a.cohort.join(", ")), title: (a) => a.cohort.slice(0, 200).join(", "), class: "wrap" },
  { label: "SHA-256", text: (a) => a.sha256.slice(0, 12), title: (a) => a.sha256, class: "hash" }, { label: "Note", text: (a) => a.note },
  { label: "Download", text: () => " ", class: "full", button: (button, a) => {
    if (!button.onclick) button.onclick = () => download(button, a.run, a.version);
    if (!button.dataset.busy) { set(button, a.kept ? "Download" : "not kept"); button.disabled = !a.kept; }
    button.setAttribute("aria-label", `Download version ${a.version}`);
  } },
];

function showAdapters({ adapters, made, kept }) {
  fill($("adapters"), ADAPTERS, adapters, (a) => `${a.run}-${a.version}`);
  state.best = adapters.find((a) => a.best && a.kept)?.version ?? 0;
  set($("adapters-metric"), adapters.find((a) => a.metric)?.metric ?? "Metric");
  set($("adapters-count"), made ? `${count(made)} made, ${count(kept)} kept` : "none yet");
  $("download-best").hidden = !kept;
}

async function download(button, run, version) {
  const text = button.textContent;
  Object.assign(button.dataset, { busy: "1" });
  button.disabled = true;
  set(button, "Loading…");
  set($("download-error"), "");
  try {
    const response = await ask(`/api/adapter?run=${encodeURIComponent(run)}&version=${version}`);
    const name = /filename="([^"]+)"/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? "adapter.tar";
    const anchor = make("a");
    anchor.href = URL.createObjectURL(await response.blob());
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 60_000);
  } catch (error) {
    set($("download-error"), `The download failed: ${error.message}`);
  }
  delete button.dataset.busy;
  button.disabled = false;
  set(button, text);
}

// --- two loops ------------------------------------------------------------------------------------

async function refresh() {
  const status = await json("/api/status");
  if (status.started !== state.started) Object.assign(state, { started: status.started, adapters: "" });
  Object.assign(state, { status, got: Date.now() });
  const run = current();
  if (run) {
    if (run.run !== state.shown) Object.assign(state, { shown: run.run, rows: new Map(), every: 1, adapters: "" });
    await refreshRounds(run);
    const news = state.events.find((e) => e.kind !== "client" && e.kind !== "refused")?.seq ?? 0;
    const stamp = `${run.run} ${run.round} ${run.state} ${news}`;
    if (stamp !== state.adapters) {
      state.adapters = stamp;
      const found = await jsonOr({ adapters: [], made: 0, kept: 0 }, `/api/adapters?run=${encodeURIComponent(run.run)}`);
      showAdapters(found);
    }
  }
  showAll();
}

async function refreshRounds(run) {
  const last = Math.max(-1, ...state.rows.keys());
  if (run.round < last) state.rows = new Map(); // it went back
  const from = state.rows.size ? Math.max(...state.rows.keys()) : -1;
  const found = await jsonOr({ rows: [], every: state.every, metric: "" }, `/api/rounds?run=${encodeURIComponent(run.run)}&after=${from}`);
  state.chart = found.metric || run.metric;
  for (const name of found.lower ?? []) LOWER.add(name);
  for (const row of found.rows) state.rows.set(row.round, row);
  if (found.every !== state.every || state.rows.size > 700) {
    const whole = await json(`/api/rounds?run=${encodeURIComponent(run.run)}`);
    Object.assign(state, { every: whole.every, rows: new Map(whole.rows.map((row) => [row.round, row])) });
  }
}

function showAll() {
  const run = current();
  showDaemon();
  showRun(run);
  showClients();
  showProblems();
  if (run) showCharts();
}

async function refreshing() {
  for (;;) {
    try {
      news = false;
      await refresh();
      link("live", "live");
      if (!news) await Promise.race([new Promise((done) => { wake = done; }), rest(document.hidden ? 6 * REFRESH_MS : REFRESH_MS)]);
      await rest(LEAST_MS);
    } catch (error) {
      if (error instanceof Locked) return lock(state.token ? "This token is not the daemon's." : "");
      link("connection lost, trying again", "lost");
      await rest(2000);
    }
  }
}

async function following() {
  for (;;) {
    try {
      const { events, started } = await json(`/api/events?after=${state.after}&wait=${state.since ? 20 : 0}`);
      if (started !== state.since) { // another daemon, which numbers anew
        const asked = state.after;
        Object.assign(state, { since: started, events: [], after: -1 });
        if (asked >= 0) continue;
      }
      if (events.length) state.after = events.at(-1).seq;
      state.events = [...events.reverse(), ...state.events].slice(0, MOST_EVENTS);
      showLog($("events"), state.events);
      $("events-none").hidden = Boolean(state.events.length);
      const ended = state.events.find((e) => e.data.ended);
      if (ended && ended.seq !== state.said) { state.said = ended.seq; set($("say"), ended.text); }
      if (events.length) look();
      await rest(LEAST_MS);
    } catch (error) {
      if (error instanceof Locked) return;
      look(); // the other loop finds out what is wrong, and says so
      await rest(2000);
    }
  }
}

function lock(why) {
  sessionStorage.removeItem("headwater-token");
  Object.assign(state, { token: "" });
  $("main").hidden = true;
  $("login").hidden = false;
  set($("login-error"), why);
  link("locked", "");
  $("token").focus();
}

function begin() {
  $("login").hidden = true;
  $("main").hidden = false;
  refreshing();
  following();
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  sessionStorage.setItem("headwater-token", state.token);
  $("token").value = "";
  begin();
});
$("run").addEventListener("change", () => { state.run = $("run").value; look(); });
$("metric").addEventListener("change", () => { state.metric = $("metric").value; showCharts(); });
$("filter").addEventListener("input", () => showClients());
$("download-best").addEventListener("click", () => download($("download-best"), current().run, state.best));
addEventListener("hashchange", () => { if (location.hash.includes("token=")) { takeToken(); location.reload(); } });
setInterval(() => { if (state.status && !document.hidden) { showDaemon(); showClients(); } }, 1000);

state.token = takeToken();
if (state.token) begin();
else lock("");
