// The models that this node could ask, and who holds them.

import { get } from './api';
import { live } from './live.svelte';
import type { Coverage } from './types';

/** Models looked up: each is a request. */
const MOST = 24;

export interface Model {
  /** How requests name it. */
  ref: string;
  id: string;
  name: string;
  coverage: Coverage | null;
  /** All layers are held by somebody, or all are here. */
  ready: boolean;
}

class Models {
  all = $state.raw<Model[]>([]);
  known = $state(false);
  #seen = '';
  #turn = 0;

  /** Looks again when what is announced or kept has changed. */
  look(): void {
    const snapshot = live.snapshot;
    if (!snapshot) return;
    const whole = (snapshot.models?.items ?? []).filter((kept) => kept.whole).map((kept) => kept.model);
    const ids = [
      ...snapshot.status.serves.map((served) => served.model),
      ...snapshot.status.announced.map((offer) => offer.model),
      ...whole,
    ];
    const offers = snapshot.status.announced.map((offer) => `${offer.peer_id} ${offer.layers}`);
    const seen = JSON.stringify([[...new Set(ids)].sort(), offers.sort(), snapshot.peers.length]);
    if (seen === this.#seen) return;
    this.#seen = seen;
    void this.#fetch(['demo', ...new Set(ids)].slice(0, MOST), new Set(whole));
  }

  async #fetch(refs: string[], whole: Set<string>): Promise<void> {
    const turn = ++this.#turn;
    const asked = await Promise.all(
      refs.map((ref) =>
        get<Coverage>(`/api/v1/coverage?model=${encodeURIComponent(ref)}`)
          .then((coverage) => ({ ref, coverage }))
          .catch(() => ({ ref, coverage: null })),
      ),
    );
    if (turn !== this.#turn) return;
    const models: Model[] = [];
    for (const { ref, coverage } of asked) {
      const id = coverage?.model ?? ref;
      if (models.some((model) => model.id === id) || (ref === 'demo' && !coverage)) continue;
      // The model that is built in needs nobody.
      const ready = ref === 'demo' || whole.has(id) || coverage?.missing.length === 0;
      models.push({ ref, id, name: coverage?.name || id.slice(0, 12), coverage, ready });
    }
    this.all = models;
    this.known = true;
  }
}

export const models = new Models();
