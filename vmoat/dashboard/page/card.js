// One worktree: its state, stages, failure, pages, memory and disk, and the buttons.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { ago, clock, gib, size } from "./format.js";
import { failed, isUp, statusOf } from "./status.js";
import { sparkline } from "./sparkline.js";

const MARKS = { done: "✓", failed: "✕", running: "", waiting: "·" };

/** `ui`: {now, past, followed, act(vm, verb, stop), follow(vm, source), dismissed, dismiss(id)}. */
export function card(vm, ui) {
  const status = statusOf(vm);
  return html`<article class="card ${status.tone}" data-key=${vm.key}
      aria-label="${vm.folder}: ${status.word}">
    <header>
      <h3>${title(vm)}</h3>
      <span class="pill ${status.tone}" data-status><i></i>${status.word}</span>
      ${vm.path ? html`<p class="where">${place(vm)}</p>` : nothing}
    </header>
    ${vm.gone ? html`<p class="note warn">${ticked(vm.gone)}</p>` : nothing}
    ${vm.reasons.map((reason) => html`<p class="note bad">${ticked(reason)}</p>`)}
    ${failed(vm) ? failure(vm.run) : nothing}
    ${vm.stages.length ? stages(vm, ui) : nothing}
    ${notices(vm, ui)}
    ${vm.urls.length ? pages(vm) : nothing}
    ${meters(vm, ui)}
    ${buttons(vm, ui)}
  </article>`;
}

const title = (vm) => html`${vm.repository && vm.repository !== vm.folder
  ? html`<span class="dim">${vm.repository} /</span> ` : nothing}${vm.folder}`;

const place = (vm) => html`
  <span class="branch" title="branch ${vm.branch}">${branchMark}<span>${vm.branch || "detached"}</span></span>
  <span class="path" title=${vm.path}><bdi>${vm.path}</bdi></span>`;

const branchMark = html`<svg viewBox="0 0 16 16" aria-hidden="true"><path
  d="M5 3.500v9M5 9.500c0-2.500 6-1.500 6-4.500" /><circle cx="5" cy="2.800" r="1.500" /><circle
  cx="5" cy="13.200" r="1.500" /><circle cx="11" cy="3.800" r="1.500" /></svg>`;

// stages

function stages(vm, ui) {
  const longest = Math.max(1, ...vm.stages.map((stage) => took(stage, ui.now)));
  return html`<ol class="stages" aria-label="stages">
    ${repeat(vm.stages, (stage) => stage.name, (stage) => stageRow(stage, longest, ui.now))}
  </ol>`;
}

const took = (stage, now) =>
  stage.state === "running" ? Math.max(0, now - stage.began) : stage.seconds;

function stageRow(stage, longest, now) {
  const seconds = took(stage, now);
  const ran = stage.began > 0;
  const when = ran ? `${stage.name}: ${stage.state}, ${clock(seconds)}, began ${ago(now - stage.began)}` : `${stage.name}: ${stage.state}`;
  return html`<li class=${stage.state} data-stage=${stage.name} data-state=${stage.state} title=${when}>
    <span class="mark" role="img" aria-label=${stage.state}>${MARKS[stage.state] ?? "·"}</span>
    <span class="name">${stage.name}</span>
    <span class="reason">${stage.reason}</span>
    <svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
      <rect class="track" width="100" height="4" rx="2"></rect>
      <rect class="fill" width=${ran ? Math.max(2, (100 * seconds) / longest).toFixed(1) : 0}
        height="4" rx="2"></rect></svg>
    <span class="time">${ran ? clock(seconds) : ""}</span>
  </li>`;
}

const failure = (run) => html`<div class="failure" role="group" aria-label="failure">
  <p>${ticked(run.message)}</p>
  ${run.details.length ? html`<pre>${run.details.slice(-8).join("\n")}</pre>` : nothing}
  ${run.hint ? html`<p class="hint">→ ${ticked(run.hint)}</p>` : nothing}
</div>`;

/** Text with `commands` in it. */
const ticked = (text) =>
  text.split("`").map((part, n) => (n % 2 ? html`<code>${part}</code>` : part));

// what the buttons' commands came to

function notices(vm, ui) {
  return Object.values(vm.actions).map((action) => {
    const id = `${vm.key} ${action.verb} ${action.began}`;
    if (action.code === null || action.stopped || ui.dismissed.has(id)) return nothing;
    if (action.code === 0 && action.verb !== "test") return nothing;
    const good = action.code === 0;
    const span = clock(action.ended - action.began);
    return html`<div class="notice ${good ? "good" : "bad"}" data-notice=${action.verb}>
      <p><b>${action.verb}</b> ${good ? `passed in ${span}` : `ended with ${action.code} after ${span}`}
        <span class="dim">${ago(ui.now - action.ended)}</span></p>
      ${action.said.length ? html`<pre>${action.said.join("\n")}</pre>` : nothing}
      <button class="quiet" aria-label="dismiss" @click=${() => ui.dismiss(id)}>✕</button>
    </div>`;
  });
}

// pages, memory, disk

const pages = (vm) => html`<ul class="pages" aria-label="URLs">${vm.urls.map((each) => html`
  <li><a href=${each.url} target="_blank" rel="noopener noreferrer"><b>${each.service || `port ${each.guest}`}</b>
    ${each.url.replace("http://", "")}</a></li>`)}</ul>`;

function meters(vm, ui) {
  const past = ui.past(vm.key);
  return html`<dl class="meters">
    <div><dt>memory</dt>
      <dd>${vm.memory ? html`<b>${gib(vm.memory)}</b>
        ${vm.memory_size ? html`<small>of ${size(vm.memory_size)}</small>` : nothing}` : "–"}</dd>
      ${sparkline("memory", past.map(([time, memory]) => [time, memory]), vm.memory_size, ui.now)}</div>
    <div><dt>disk</dt><dd><b>${gib(vm.disk)}</b></dd>
      ${sparkline("disk", past.map(([time, , disk]) => [time, disk]), 0, ui.now)}</div>
    <div class="cpu"><dt>CPU</dt>
      <dd>${isUp(vm) && vm.cpu !== null ? html`<b>${Math.round(vm.cpu)} %</b>` : "–"}</dd>
      <dd class="used">${vm.used_at ? `used ${ago(ui.now - vm.used_at)}` : "never used"}</dd></div>
  </dl>`;
}

// buttons

function buttons(vm, ui) {
  const running = (verb) => vm.actions[verb]?.code === null;
  const up = isUp(vm);
  const button = (verb, label, off, main) => html`<button class=${main ? "main" : ""} data-verb=${verb}
    ?disabled=${off || running(verb)} aria-busy=${running(verb)}
    @click=${() => ui.act(vm, verb)}>${label}</button>`;
  return html`<footer>
    ${button("up", "Up", vm.gone || vm.working, !(vm.state === "running" && vm.health === "healthy"))}
    ${running("test")
      ? html`<button data-verb="stop" @click=${() => ui.act(vm, "test", true)}>Stop test</button>`
      : button("test", "Test", vm.gone)}
    ${button("open", "Open", vm.gone || vm.state !== "running", vm.health === "healthy" && up)}
    ${button("down", "Down", !up && !vm.working)}
    <span class="space"></span>
    <button class="quiet" data-verb="logs" aria-pressed=${ui.followed === vm.key}
      @click=${() => ui.follow(vm, "stages")}>Logs</button>
  </footer>`;
}

/** A worktree without a VM: a line with the one button that makes sense. */
export const bareRow = (vm, ui) => html`<li data-key=${vm.key}>
  <b>${title(vm)}</b> <span class="where">${place(vm)}</span>
  <button data-verb="up" aria-label="bring ${vm.folder} up" ?disabled=${vm.actions.up?.code === null}
    aria-busy=${vm.actions.up?.code === null} @click=${() => ui.act(vm, "up")}>Up</button>
  ${notices(vm, ui)}
</li>`;
