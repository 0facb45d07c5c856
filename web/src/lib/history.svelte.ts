// The last hour: what the node kept, and what came since.

import { get } from './api';
import { live } from './live.svelte';
import type { Timeseries } from './types';

const HOUR = 720;

class History {
  t = $state.raw<number[]>([]);
  series = $state.raw<Record<string, number[]>>({});
  #begun = false;

  begin(): void {
    if (this.#begun) return;
    this.#begun = true;
    this.#fetch();
  }

  #fetch(): void {
    get<Timeseries>('/api/v1/timeseries')
      .then((all) => {
        this.t = all.t;
        this.series = all.series;
      })
      .catch(() => {
        this.#begun = false;
      });
  }

  /** One more point, as it came with the events. */
  take(): void {
    const metric = live.metric;
    const at = (metric?.time_ms ?? 0) / 1000;
    const newest = this.t.at(-1);
    if (!metric || newest === undefined || at <= newest) return;
    // What was slept through is fetched.
    if (at - newest > 60) return this.#fetch();
    this.t = [...this.t, at].slice(-HOUR);
    const series: Record<string, number[]> = {};
    for (const [name, values] of Object.entries(this.series)) series[name] = [...values, metric[name] ?? 0].slice(-HOUR);
    this.series = series;
  }

  /** As it is counted. */
  of(name: string): number[] {
    return this.series[name] ?? [];
  }

  /** How much a second; nothing across a restart. */
  rate(name: string): (number | null)[] {
    const values = this.of(name);
    return values.map((value, i) => {
      const before = values[i - 1];
      const since = (this.t[i] ?? 0) - (this.t[i - 1] ?? 0);
      return before === undefined || since <= 0 || value < before ? null : (value - before) / since;
    });
  }
}

export const past = new History();
