// What the page knows of the node: one snapshot, kept fresh by the one stream of events.

import { get, onLoggedOut, session } from './api';
import type { Metric, NodeEvent, Snapshot } from './types';

const TYPES = 'peer,model,message,job,ledger,dht,storage,log,metric';

/** Events shown as recent. */
const RECENT = 200;

/** Between two snapshots, in ms: what changes is fetched again at most so often. */
const PACE = 1000;

/** A figure comes every 5 s: after so long without one, what is shown is old. */
const STALE = 12_000;

export type Link = 'starting' | 'live' | 'lost' | 'out';

class Live {
  link = $state<Link>('starting');
  snapshot = $state.raw<Snapshot | null>(null);
  metric = $state.raw<Metric | null>(null);
  /** Newest first. */
  events = $state.raw<NodeEvent[]>([]);
  /** When something was last heard, Unix ms. */
  heard = $state(0);
  now = $state(Date.now());
  missed = $state(0);

  /** Whether the session may change things. */
  writes = $state(true);
  open = $state(false);

  /** What each peer offered last: said again and again, it is no news. */
  #offers = new Map<unknown, string>();
  #source: EventSource | null = null;
  #due: ReturnType<typeof setTimeout> | null = null;
  #fetched = 0;
  #retry: ReturnType<typeof setTimeout> | null = null;

  get stale(): boolean {
    return this.heard > 0 && this.now - this.heard > STALE;
  }

  start(): void {
    onLoggedOut(() => this.#leave());
    setInterval(() => {
      this.now = Date.now();
    }, 1000);
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden && this.link === 'live') this.refresh();
    });
    void this.connect();
  }

  async connect(): Promise<void> {
    this.#close();
    try {
      const who = await session();
      this.writes = who.writes;
      this.open = who.open;
      await this.#fetch();
      this.#follow();
    } catch {
      // Logged out is said by the request itself.
      if (this.link !== 'out') this.#later();
    }
  }

  /** Fetches everything again soon. */
  refresh(): void {
    if (this.#due) return;
    const wait = Math.max(0, this.#fetched + PACE - Date.now());
    this.#due = setTimeout(() => {
      this.#due = null;
      this.#fetch().catch(() => {});
    }, wait);
  }

  async #fetch(): Promise<void> {
    this.#fetched = Date.now();
    const snapshot = await get<Snapshot>('/api/v1/snapshot');
    this.snapshot = snapshot;
    this.metric ??= snapshot.metric;
    this.heard = this.now = Date.now();
  }

  #follow(): void {
    const after = this.snapshot?.cursor ?? 0;
    // What was kept before is shown as recent, too.
    const from = this.events.length ? after : Math.max(0, after - RECENT);
    const source = new EventSource(`/api/v1/events?types=${TYPES}&every_ms=1000&after=${from}`);
    this.#source = source;
    let broken = false;
    source.onopen = () => {
      this.link = 'live';
      this.heard = this.now = Date.now();
      if (broken) this.refresh();
      broken = false;
    };
    source.onmessage = (message) => this.#take(JSON.parse(message.data) as NodeEvent);
    source.addEventListener('gap', (message) => {
      this.missed += Number(JSON.parse((message as MessageEvent<string>).data).missed) || 0;
      this.refresh();
    });
    source.onerror = () => {
      broken = true;
      this.link = 'lost';
      // The browser tries again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) this.#later();
    };
  }

  #take(event: NodeEvent): void {
    this.heard = this.now = Date.now();
    if (event.type === 'metric') {
      this.metric = event as unknown as Metric;
      if (!document.hidden) this.refresh();
      return;
    }
    if (event.type === 'model') {
      const offers = JSON.stringify(event.offers);
      if (event.change === 'updated' && this.#offers.get(event.peer) === offers) return;
      this.#offers.set(event.peer, offers);
    }
    this.events = [event, ...this.events].slice(0, RECENT);
    if (event.type !== 'log' && event.type !== 'message') this.refresh();
  }

  #later(): void {
    this.link = 'lost';
    this.#close();
    this.#retry = setTimeout(() => void this.connect(), 2000);
  }

  #leave(): void {
    this.#close();
    this.link = 'out';
    this.snapshot = null;
    this.events = [];
  }

  #close(): void {
    this.#source?.close();
    this.#source = null;
    if (this.#retry) clearTimeout(this.#retry);
    this.#retry = null;
  }
}

export const live = new Live();
