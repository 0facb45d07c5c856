// Numbers and times as people read them. Every function takes what may be missing and says "–" for it.

const NONE = '–';

type Maybe = number | null | undefined;

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

export function count(n: Maybe): string {
  return n == null ? NONE : whole.format(n);
}

export function bytes(n: Maybe): string {
  if (n == null) return NONE;
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let value = n;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1).replace(/\.0$/, '')} ${units[unit]}`;
}

export function rate(bytesPerSecond: Maybe): string {
  return bytesPerSecond == null ? NONE : `${bytes(bytesPerSecond)}/s`;
}

/** Micro-credits as credits: all digits that are not zero, two at least and six at most. */
export function credits(micro: Maybe, sign = false, digits = 6): string {
  if (micro == null) return NONE;
  const text = (Math.abs(micro) / 1e6).toFixed(digits).replace(/(\.\d\d\d*?)0+$/, '$1');
  const before = micro < 0 ? '−' : sign && micro > 0 ? '+' : '';
  return before + text;
}

export function seconds(s: Maybe): string {
  if (s == null) return NONE;
  if (s < 0.001) return `${(s * 1e6).toFixed(0)} µs`;
  if (s < 0.1) return `${(s * 1e3).toFixed(1)} ms`;
  if (s < 1) return `${(s * 1e3).toFixed(0)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  return span(s);
}

/** Long times in two units. */
export function span(s: Maybe): string {
  if (s == null) return NONE;
  const t = Math.floor(s);
  if (t < 60) return `${t} s`;
  if (t < 3600) return `${Math.floor(t / 60)} min`;
  if (t < 86400) return `${Math.floor(t / 3600)} h ${Math.floor((t % 3600) / 60)} min`;
  return `${Math.floor(t / 86400)} d ${Math.floor((t % 86400) / 3600)} h`;
}

export function ago(unixSeconds: Maybe, now = Date.now() / 1000): string {
  if (unixSeconds == null) return 'never';
  const s = now - unixSeconds;
  return s < 5 ? 'just now' : `${span(s)} ago`;
}

export function clock(unixMs: number): string {
  return new Date(unixMs).toLocaleTimeString('en-GB');
}

export function stamp(unixSeconds: Maybe): string {
  if (unixSeconds == null) return NONE;
  const d = new Date(unixSeconds * 1000);
  const pad = (n: number) => String(n).padStart(2, '0');
  return `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())} ${pad(d.getHours())}:${pad(d.getMinutes())}`;
}

export function number(n: Maybe, digits = 1): string {
  return n == null || !Number.isFinite(n) ? NONE : n.toFixed(digits);
}

export function percent(share: Maybe): string {
  return share == null ? NONE : `${Math.round(share * 100)} %`;
}

/** The part of an id that people tell apart. */
export function short(id: string | null | undefined): string {
  if (!id) return NONE;
  if (/^[0-9a-f]{64}$/.test(id)) return id.slice(0, 12);
  return id.length > 14 ? `…${id.slice(-8)}` : id;
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}
