// Numbers as people read them; the same rules as headwater/text.py.
export const NOTHING = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);
const grouped = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");

export function number(value) {
  if (!known(value)) return NOTHING;
  const size = Math.abs(value);
  if (size && (size < 5e-4 || size >= 1e7)) return value.toExponential(1).replace("e+", "e").replaceAll("-", "−");
  return grouped(value, size < 10 ? 3 : size < 100 ? 2 : size < 1000 ? 1 : 0);
}

export const count = (value) => (known(value) ? grouped(Math.round(value), 0) : NOTHING);

export function bytes(value) {
  if (!known(value)) return NOTHING;
  const units = ["B", "KB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (Math.abs(value) >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
  const size = Math.abs(value);
  return `${value.toFixed(!unit || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${units[unit]}`;
}

export function seconds(value) {
  if (!known(value) || value < 0) return NOTHING;
  if (value < 99.95) return value < 9.95 ? `${value.toFixed(1)} s` : `${value.toFixed(0)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(value % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${count(Math.floor(hours / 24))} days ${hours % 24} h`;
}

export function ago(value) {
  if (!known(value)) return "never";
  if (value < 5) return "now";
  return `${value < 99.5 ? `${Math.round(value)} s` : seconds(Math.floor(value / 60) * 60).replace(" 00 s", "")} ago`;
}

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
export const moment = (unix) => new Date(unix * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short", hour12: false });
