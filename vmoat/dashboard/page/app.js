// The page: what the stream says, drawn; what is pressed, sent.

import { html, nothing, render } from "./vendor/lit-html/lit-html.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { bareRow, card } from "./card.js";
import { gib } from "./format.js";
import { LogPane } from "./logpane.js";
import { isUp, statusOf } from "./status.js";

const POINTS = 720; // an hour, as the server keeps it
const RETRY = 2000; // milliseconds

// The first page hands it over in its fragment (gate.py); this port's pages alone can read it.
if (location.hash.length > 1) {
  localStorage.setItem("page", location.hash.slice(1));
  history.replaceState(null, "", "/");
}
const secret = localStorage.getItem("page") ?? "";

const state = {
  link: "new", // new, live, lost
  vms: [],
  version: "",
  trouble: "",
  host: { memory: 0 },
  skew: 0, // seconds that this clock is behind the server's
  past: new Map(),
  dismissed: new Set(),
};
const logs = new LogPane(draw, connect);
let stream = null;

// the stream

function connect() {
  stream?.close();
  const log = logs.key ? { key: logs.key, log: logs.source } : {};
  stream = new EventSource(`events?${new URLSearchParams({ page: secret, ...log })}`);
  stream.onerror = lost;
  on("fleet", fleet);
  on("history", (past) => { state.past = new Map(Object.entries(past)); });
  on("lines", (message) => logs.take(message));
  draw();
}

function on(name, take) {
  stream.addEventListener(name, (event) => {
    take(JSON.parse(event.data));
    draw();
  });
}

function lost() {
  stream.close();
  state.link = "lost";
  draw();
  setTimeout(() => document.hidden || stream.readyState !== EventSource.CLOSED || connect(), RETRY);
}

function fleet(message) {
  announce(state.vms, message.vms);
  const cameUp = logs.follows(state.vms, message.vms);
  state.link = "live";
  state.skew = message.time - Date.now() / 1000;
  for (const name of ["vms", "version", "trouble", "host"]) state[name] = message[name];
  for (const vm of message.vms) {
    const points = state.past.get(vm.key) ?? [];
    const last = points.at(-1);
    // The server's own rhythm: what comes in between is no point.
    if (!last || message.time - last[0] >= 5) points.push([message.time, vm.memory, vm.disk]);
    if (points.length > POINTS) points.shift();
    state.past.set(vm.key, points);
  }
  if (cameUp) connect();
}

/** Says to a screen reader what changed. */
function announce(before, after) {
  const words = new Map(before.map((vm) => [vm.key, statusOf(vm).word]));
  const news = after.filter((vm) => words.has(vm.key) && words.get(vm.key) !== statusOf(vm).word);
  if (news.length) {
    document.getElementById("said").textContent =
      news.map((vm) => `${vm.folder}: ${statusOf(vm).word}`).join(", ");
  }
}

// A browser has six connections to a server for all its tabs, and a stream takes one.
document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : connect()));

// the buttons

async function act(vm, verb, stop = false) {
  const shown = logs.key === vm.key && logs.source === "test";
  if (verb === "test" && !stop && !shown) logs.open(vm.key, "test");
  await fetch(`act?${new URLSearchParams({ page: secret })}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ key: vm.key, verb, stop }),
  }).catch(lost);
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && logs.key) logs.close();
});

// drawing

function draw() {
  const now = Date.now() / 1000 + state.skew;
  const bad = state.vms.filter((vm) => statusOf(vm).tone === "bad").length;
  document.title = bad ? `(${bad}) vmoat` : "vmoat";
  render(page(now), document.getElementById("app"));
  logs.settle();
}

const page = (now) => html`
  ${head()}
  ${state.link === "lost" ? banner("bad", html`No answer. Where the dashboard has ended, start it again
    with <code>vmoat dashboard</code>; the VMs go on without it.`) : nothing}
  ${state.trouble ? banner("warn", html`The last look at this machine failed: ${state.trouble}`) : nothing}
  <main class=${state.link === "lost" ? "stale" : ""}>
    ${state.link === "new" ? nothing : worktrees(now)}
  </main>
  ${logs.view(state.vms.find((vm) => vm.key === logs.key))}`;

const banner = (tone, text) => html`<p class="banner ${tone}" role="alert">${text}</p>`;

function head() {
  const up = state.vms.filter(isUp);
  const memory = up.reduce((sum, vm) => sum + vm.memory, 0);
  const disk = state.vms.reduce((sum, vm) => sum + vm.disk, 0);
  const tones = state.vms.map((vm) => statusOf(vm).tone);
  const count = (tone) => tones.filter((each) => each === tone).length;
  return html`<header class="top">
    <h1><img src="icon.svg" alt="">vmoat</h1>
    <ul class="sums" ?hidden=${!state.vms.length} aria-label="all worktrees">
      <li><b>${state.vms.length}</b> ${state.vms.length === 1 ? "worktree" : "worktrees"}</li>
      <li><b>${up.length}</b> up</li>
      ${count("busy") ? html`<li class="busy"><b>${count("busy")}</b> working</li>` : nothing}
      ${count("bad") ? html`<li class="bad"><b>${count("bad")}</b> failing</li>` : nothing}
      <li class="wide"><b>${gib(memory)}</b> ${state.host.memory ? `of ${gib(state.host.memory)} ` : ""}memory</li>
      <li class="wide"><b>${gib(disk)}</b> disk</li>
    </ul>
    <span class="link ${state.link}"><i></i>${{ new: "connecting", live: "live", lost: "no answer" }[state.link]}</span>
  </header>`;
}

function worktrees(now) {
  const ui = {
    now, act, followed: logs.key, dismissed: state.dismissed,
    past: (key) => state.past.get(key) ?? [],
    follow: (vm, source) => (logs.key === vm.key ? logs.close() : logs.open(vm.key, source)),
    dismiss: (id) => { state.dismissed.add(id); draw(); },
  };
  const made = state.vms.filter((vm) => vm.name);
  const bare = state.vms.filter((vm) => !vm.name);
  return html`
    ${made.length ? html`<section class="cards" aria-label="worktrees">
      ${repeat(made, (vm) => vm.key, (vm) => card(vm, ui))}</section>` : empty}
    ${bare.length ? html`<section class="bare"><h2>Without a VM</h2>
      <ul>${repeat(bare, (vm) => vm.key, (vm) => bareRow(vm, ui))}</ul></section>` : nothing}`;
}

const empty = html`<section class="empty">
  <img src="icon.svg" alt="" width="72" height="72">
  <h2>No worktree has a VM yet</h2>
  <p>Bring one up, here or in a terminal, and watch it:</p>
  <pre><code>cd your-repository
git worktree add ../feature
cd ../feature
vmoat up</code></pre>
</section>`;

connect();
setInterval(() => state.link === "live" && draw(), 1000);
