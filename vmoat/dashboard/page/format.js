// Numbers and times for a person.

export const gib = (bytes) =>
  bytes < 2 ** 30 ? `${Math.round(bytes / 2 ** 20)} MiB` : `${(bytes / 2 ** 30).toFixed(1)} GiB`;

/** A size that was asked for: `8 GiB`. */
export const size = (bytes) => gib(bytes).replace(".0 ", " ");

/** `4.2 s`, `1 m 05 s`, `2 h 03 m`: as the command line says it. */
export function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  const two = (count) => String(count).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} m`;
}

/** `just now`, `5 min ago`, `3 days ago`. */
export function ago(seconds) {
  if (seconds < 45) return "just now";
  const steps = [["min", 60], ["h", 3600], ["day", 86400]];
  const [unit, size] = steps.findLast(([, length]) => seconds >= length) ?? steps[0];
  const count = Math.max(1, Math.round(seconds / size));
  return `${count} ${unit}${unit === "day" && count > 1 ? "s" : ""} ago`;
}

export const timeOfDay = (time) =>
  new Date(time * 1000).toLocaleTimeString([], { hour12: false });

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
