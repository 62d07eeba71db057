// A value over the last hour, as a small area.

import { html } from "./vendor/lit-html/lit-html.js";
import { clock, gib } from "./format.js";

const WIDTH = 120;
const HEIGHT = 28;
const SHORTEST = 300; // seconds: a few points must not look like an hour

/**
 * `points` are [time, value]; `top` is the value of the upper edge (0: fits the highest).
 */
export function sparkline(name, points, top, now) {
  const values = points.map(([, value]) => value);
  const high = Math.max(top, 1, ...(top ? [] : values.map((value) => value * 1.25)));
  const span = Math.max(SHORTEST, points.length ? now - points[0][0] : 0);
  const place = ([time, value]) => [
    Math.max(0, WIDTH * (1 - (now - time) / span)),
    HEIGHT - 1.5 - (HEIGHT - 3) * Math.min(1, value / high),
  ];
  const line = thin(points).map(place);
  if (line.length) line.push([WIDTH, line.at(-1)[1]]);
  const path = line.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const area = line.length ? `${path}L${WIDTH} ${HEIGHT}L${line[0][0].toFixed(1)} ${HEIGHT}Z` : "";
  const told = values.length
    ? `${name} over ${clock(span)}: ${gib(Math.min(...values))} to ${gib(Math.max(...values))}`
    : `${name}: nothing known yet`;
  return html`<svg class="spark" viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none"
    role="img" aria-label=${told}><title>${told}</title>
    <path class="area" d=${area}></path><path class="line" d=${path}></path></svg>`;
}

/** No more points than there are pixels. */
const thin = (points) => {
  const step = Math.ceil(points.length / WIDTH);
  return step > 1 ? points.filter((_, n) => n % step === 0 || n === points.length - 1) : points;
};
