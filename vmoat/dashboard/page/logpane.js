// The lines of one worktree: which source, which stage, following or paused.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { plural, timeOfDay } from "./format.js";
import { isUp } from "./status.js";

const SOURCES = [["stages", "Stages"], ["stack", "Stack"], ["test", "Test"], ["console", "Console"]];
const RUNS = { stack: (vm) => vm.state === "running" && !vm.working, console: isUp };
const MOST = 5000; // lines that are kept

const cardOf = (key) => document.querySelector(`[data-key="${CSS.escape(key)}"]`);

export class LogPane {
  constructor(render, reconnect) {
    this.render = render;
    this.reconnect = reconnect;
    this.key = "";
    this.source = "stages";
    this.clear();
  }

  clear() {
    this.lines = [];
    this.stage = "";
    this.paused = false;
    this.held = false; // paused by the button: no scrolling ends it
    this.missed = 0;
  }

  open(key, source) {
    if (this.key === key && this.source === source) return this.close();
    [this.key, this.source] = [key, source];
    this.clear();
    this.reconnect();
    requestAnimationFrame(() => {
      // The pane takes the lower part of the window: the card must not be below it.
      cardOf(key)?.scrollIntoView({ block: "nearest" });
      document.querySelector(".logs [aria-selected=true]")?.focus();
    });
  }

  close() {
    const opener = cardOf(this.key)?.querySelector("[data-verb=logs]");
    this.key = "";
    this.clear();
    this.reconnect();
    opener?.focus();
  }

  /** Whether what is followed begins anew: that of the boot before has ended for good. */
  follows(before, after) {
    const runs = RUNS[this.source];
    const [then, now] = [before, after].map((vms) => vms.find((vm) => vm.key === this.key));
    return Boolean(runs && then && now && !runs(then) && runs(now));
  }

  take({ fresh, lines }) {
    if (fresh) this.lines = [];
    this.lines.push(...lines);
    if (this.lines.length > MOST) this.lines.splice(0, this.lines.length - MOST);
    if (this.paused && !fresh) this.missed += lines.length;
  }

  pause(paused) {
    if (this.paused === paused) return;
    this.paused = paused;
    this.missed = 0;
    this.render();
  }

  /** Called after each drawing. */
  settle() {
    const list = document.querySelector(".logs .lines");
    if (list && !this.paused) list.scrollTop = list.scrollHeight;
  }

  scrolled(list) {
    // Who scrolls up wants to read; who comes back to the end wants to follow.
    if (!this.held) this.pause(list.scrollHeight - list.scrollTop - list.clientHeight > 40);
  }

  view(vm) {
    if (!vm) return nothing;
    const known = [...new Set(this.lines.map((line) => line.stage).filter(Boolean))];
    const shown = this.stage ? this.lines.filter((line) => line.stage === this.stage) : this.lines;
    return html`<section class="logs" aria-label="logs of ${vm.folder}">
      <header>
        <h2 title=${vm.folder}>${vm.folder}</h2>
        <div role="tablist" aria-label="log">${SOURCES.map(([id, label]) => html`<button role="tab"
          aria-selected=${id === this.source} @keydown=${(event) => this.step(event, vm)}
          tabindex=${id === this.source ? 0 : -1}
          @click=${() => id !== this.source && this.open(vm.key, id)}>${label}</button>`)}</div>
        ${this.source === "stages" ? html`<label>stage <select
          @change=${(event) => { this.stage = event.target.value; this.render(); }}>
          <option value="" ?selected=${!this.stage}>all</option>
          ${known.map((name) => html`<option value=${name} ?selected=${name === this.stage}>${name}</option>`)}
          </select></label>` : nothing}
        <span class="space"></span>
        <button class="quiet" data-log="pause" aria-pressed=${this.paused}
          @click=${() => this.pause((this.held = !this.paused))}>${this.paused
            ? `Follow${this.missed ? ` (${plural(this.missed, "new line")})` : ""}` : "Pause"}</button>
        <button class="quiet" aria-label="close the logs" @click=${() => this.close()}>✕</button>
      </header>
      <div class="lines" role="log" aria-live="off" tabindex="0" @scroll=${(event) => this.scrolled(event.target)}>
        ${shown.length ? shown.map(line) : html`<p class="dim">${this.nothingYet(vm)}</p>`}
      </div>
    </section>`;
  }

  nothingYet(vm) {
    if (this.source === "test") return "No test was run from here yet.";
    if (this.source === "stages") return "Nothing was ever run in this worktree.";
    return vm.state === "running" ? "Waiting for lines…" : "The VM does not run.";
  }

  step(event, vm) {
    const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!turn) return;
    const ids = SOURCES.map(([id]) => id);
    this.open(vm.key, ids[(ids.indexOf(this.source) + turn + ids.length) % ids.length]);
  }
}

const line = (each) => html`<div class="line is-${each.kind}"><time>${timeOfDay(each.time)}</time><b title=${each.stage}>${each.stage}</b><span>${each.text}</span></div>`;
