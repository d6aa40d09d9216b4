// Two charts by round: a curve with its best point, and bytes up and down. Drawn in the pixels they have.
import { bytes, count, number, seconds } from "./text.js";

const NS = "http://www.w3.org/2000/svg";

function node(name, attributes, text) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Multiples of 1, 2 or 5 times a power of ten within lo … hi, about `wanted` of them. */
export function ticks(lo, hi, wanted) {
  const raw = 10 ** Math.floor(Math.log10((hi - lo) / wanted));
  const step = raw * ([1, 2, 5, 10].find((f) => (hi - lo) / (raw * f) <= wanted) ?? 10);
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i <= Math.floor(hi / step + 1e-9); i += 1) found.push(i * step + 0); // + 0: no negative zero
  return found;
}

/** Tick labels with as many digits as tell them apart. */
function labels(values) {
  const step = values.length > 1 ? values[1] - values[0] : Math.abs(values[0] ?? 1) || 1;
  const digits = Math.min(Math.max(-Math.floor(Math.log10(step) + 1e-9), 0), 8);
  return values.map((v) => (Math.abs(v) >= 1e6 || digits > 6 ? number(v) : v.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−")));
}

class Chart {
  constructor(box, name, readout) {
    this.box = box;
    this.readout = readout;
    this.at = -1;
    this.points = [];
    this.svg = node("svg", { tabindex: "0", role: "slider", "aria-label": name, "aria-orientation": "horizontal" });
    box.append(this.svg);
    new ResizeObserver(() => this.draw()).observe(box);
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX - this.svg.getBoundingClientRect().left));
    this.svg.addEventListener("pointerleave", () => this.choose(-1));
    this.svg.addEventListener("blur", () => this.choose(-1));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const last = this.points.length - 1;
    const from = this.at < 0 ? last : this.at;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, ArrowDown: from - 1, ArrowUp: from + 1, PageDown: from - 10, PageUp: from + 10, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose(Math.min(Math.max(to, 0), last));
  }

  point(x) {
    let best = -1;
    this.points.forEach((p, i) => { if (best < 0 || Math.abs(this.x(p.round) - x) < Math.abs(this.x(this.points[best].round) - x)) best = i; });
    this.choose(best);
  }

  choose(index) {
    this.at = index;
    this.mark();
  }

  mark() {
    this.layer?.replaceChildren();
    const p = this.points[this.at] ?? this.points.at(-1);
    if (!p) return;
    const text = this.describe(p);
    this.svg.setAttribute("aria-valuemin", this.points[0].round);
    this.svg.setAttribute("aria-valuemax", this.points.at(-1).round);
    this.svg.setAttribute("aria-valuenow", p.round);
    this.svg.setAttribute("aria-valuetext", text);
    if (this.readout) this.readout.textContent = this.at < 0 ? this.resting() : text;
    if (this.at >= 0 && this.layer) this.cursor(p);
  }

  cursor(p) {
    const x = this.x(p.round);
    this.layer.append(node("line", { class: "cursor", x1: x, x2: x, y1: this.top, y2: this.bottom }));
  }

  frame(height, left, top = 8) {
    this.width = Math.max(this.box.clientWidth, 200);
    [this.left, this.right, this.top, this.bottom] = [left, this.width - 14, top, height - 24];
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.replaceChildren();
  }

  grid(values, texts, y) {
    values.forEach((value, i) => {
      this.svg.append(node("line", { class: "grid", x1: this.left, x2: this.right, y1: y(value), y2: y(value) }),
        node("text", { x: this.left - 8, y: y(value) + 4, "text-anchor": "end" }, texts[i]));
    });
  }

  rounds(first, last) {
    for (const round of ticks(first, last, Math.max(2, Math.floor((this.right - this.left) / 70)))) {
      if (round === Math.round(round)) this.svg.append(node("text", { x: this.x(round), y: this.bottom + 17, "text-anchor": "middle" }, count(round)));
    }
  }

  describe(p) {
    const parts = [`Round ${count(p.round)}`];
    if (this.metric && p.metrics[this.metric] !== undefined) parts.push(`${this.metric} ${number(p.metrics[this.metric])}`);
    parts.push(`up ${bytes(p.up)}`, `down ${bytes(p.down)}`);
    if (p.states) parts.push(`states: ${p.states}`);
    if (p.asked) parts.push(`${count(p.accepted)} of ${count(p.asked)} clients`);
    if (p.seconds) parts.push(seconds(p.seconds));
    return parts.join("  ·  ");
  }

  resting() { return ""; }
}

export class MetricChart extends Chart {
  show(rows, metric, lower) {
    this.metric = metric;
    this.points = rows.filter((row) => row.metrics[metric] !== undefined);
    this.at = Math.min(this.at, this.points.length - 1);
    const better = (a, b) => (lower ? a.metrics[metric] < b.metrics[metric] : a.metrics[metric] > b.metrics[metric]);
    this.best = this.points.reduce((best, p) => (!best || better(p, best) ? p : best), null);
    this.lower = lower;
    this.svg.setAttribute("aria-label", `${metric} by round; arrow keys move between rounds`);
    this.draw();
  }

  resting() {
    return this.best ? `Best: round ${count(this.best.round)}, ${this.metric} ${number(this.best.metrics[this.metric])} (${this.lower ? "lower" : "higher"} is better)` : "";
  }

  draw() {
    if (!this.metric) return;
    const height = this.box.clientWidth < 560 ? 210 : 270;
    if (!this.points.length) {
      this.frame(60, 8);
      this.svg.append(node("text", { x: 8, y: 34 }, "Not measured yet."));
      if (this.readout) this.readout.textContent = "";
      return;
    }
    const values = this.points.map((p) => p.metrics[this.metric]);
    let [lo, hi] = [Math.min(...values), Math.max(...values)];
    const log = lo > 0 && hi / lo > 30;
    const air = 0.08 * (hi - lo) || Math.abs(hi) * 0.1 || 1e-6;
    [lo, hi] = log ? [lo / 1.15, hi * 1.15] : [lo >= 0 ? Math.max(lo - air, 0) : lo - air, hi + air];
    const map = log ? Math.log10 : (v) => v;
    let marks = log ? [] : ticks(lo, hi, 5);
    if (log) for (let p = Math.floor(Math.log10(lo)); p <= Math.log10(hi); p += 1) for (const f of hi / lo > 1000 ? [1] : [1, 3]) if (f * 10 ** p >= lo && f * 10 ** p <= hi) marks.push(f * 10 ** p);
    const texts = log ? marks.map(number) : labels(marks);
    this.frame(height, 16 + 7 * Math.max(...texts.map((t) => t.length), 3), 26); // room for the best one's label
    const y = (v) => this.bottom - ((map(v) - map(lo)) / (map(hi) - map(lo))) * (this.bottom - this.top);
    const [first, last] = [this.points[0].round, Math.max(this.points.at(-1).round, this.points[0].round + 1)];
    this.x = (round) => this.left + 6 + ((round - first) / (last - first)) * (this.right - this.left - 12);
    this.y = y;
    this.grid(marks, texts, y);
    this.rounds(first, last);
    const at = this.points.map((p) => `${this.x(p.round).toFixed(1)},${y(p.metrics[this.metric]).toFixed(1)}`);
    if (at.length > 1) this.svg.append(node("path", { class: "curve", d: `M${at.join("L")}` }));
    if (at.length <= 60) for (const p of this.points) this.svg.append(node("circle", { class: "dot", cx: this.x(p.round), cy: y(p.metrics[this.metric]), r: 3 }));
    this.marks(y);
    this.layer = node("g", {});
    this.svg.append(this.layer);
    this.mark();
  }

  marks(y) {
    const { best, metric } = this;
    const [x, v] = [this.x(best.round), best.metrics[metric]];
    this.svg.append(node("circle", { class: "best", cx: x, cy: y(v), r: 5.5 }));
    const anchor = x > this.right - 70 ? "end" : x < this.left + 70 ? "start" : "middle";
    this.svg.append(node("text", { class: "strong", x, y: y(v) - 12, "text-anchor": anchor }, `best ${number(v)}`));
  }

  cursor(p) {
    super.cursor(p);
    this.layer.append(node("circle", { class: "cursor-dot", cx: this.x(p.round), cy: this.y(p.metrics[this.metric]), r: 4.5 }));
  }
}

export class BytesChart extends Chart {
  constructor(box, name, readout, note) {
    super(box, name, readout);
    this.note = note;
  }

  show(rows) {
    this.points = rows.filter((row) => row.up || row.down);
    this.at = Math.min(this.at, this.points.length - 1);
    this.draw();
  }

  draw() {
    if (!this.points.length) {
      this.frame(44, 8);
      this.svg.append(node("text", { x: 8, y: 26 }, "Nothing was sent yet."));
      return;
    }
    const height = 150;
    const [up, down] = [Math.max(...this.points.map((p) => p.up), 1), Math.max(...this.points.map((p) => p.down), 1)];
    const top = ticks(0, up, 2).filter(Boolean).slice(-1);
    const below = ticks(0, down, 2).filter(Boolean).slice(-1);
    this.frame(height, 76);
    const share = Math.min(Math.max(up / (up + down), 0.25), 0.75); // one scale, unless one would vanish
    this.note.textContent = share === up / (up + down) ? "" : "each on its own scale";
    const zero = this.top + share * (this.bottom - this.top);
    const y = (v) => (v >= 0 ? zero - (v / up) * (zero - this.top) : zero + (-v / down) * (this.bottom - zero));
    const [first, last] = [this.points[0].round, this.points.at(-1).round];
    const span = Math.max(last - first, 1);
    const wide = Math.min(Math.max((0.7 * (this.right - this.left - 12)) / (span + 1), 1), 16);
    const pad = 4 + wide / 2;
    this.x = (round) => this.left + pad + ((round - first) / span) * (this.right - this.left - 2 * pad);
    const marks = [...top, ...below.map((v) => -v)];
    this.grid(marks, marks.map((v) => bytes(Math.abs(v))), y);
    this.rounds(first, first === last ? first + 1 : last);
    const bars = (pick, name) => this.svg.append(node("path", { class: name, d: this.points.map((p) => `M${(this.x(p.round) - wide / 2).toFixed(1)},${zero.toFixed(1)}h${wide.toFixed(1)}V${y(pick(p)).toFixed(1)}h-${wide.toFixed(1)}z`).join("") }));
    bars((p) => p.up, "bars-up");
    bars((p) => -p.down, "bars-down");
    this.svg.append(node("line", { class: "axis", x1: this.left, x2: this.right, y1: zero, y2: zero }));
    this.layer = node("g", {});
    this.svg.append(this.layer);
    this.mark();
  }
}
