// Events in words.

import { bytes, count, credits, seconds, short } from './format';
import type { NodeEvent } from './types';

export type Tone = 'good' | 'warn' | 'bad' | 'off';

export function say(event: NodeEvent): { tone: Tone; text: string; peer?: string } {
  const s = (name: string) => String(event[name] ?? '');
  const n = (name: string) => Number(event[name] ?? 0);
  switch (event.type) {
    case 'peer':
      return event.connected
        ? { tone: 'good', text: 'connected', peer: s('peer') }
        : { tone: 'off', text: 'disconnected', peer: s('peer') };
    case 'model': {
      const offers = (event.offers as { model: string; layers: string }[] | undefined) ?? [];
      const what = offers.map((offer) => `${offer.layers} of ${short(offer.model)}`).join(', ');
      const left = event.change === 'left';
      return { tone: left ? 'off' : 'good', text: left ? 'serves no layers any more' : `serves layers ${what}`, peer: s('peer') };
    }
    case 'message':
      return { tone: 'off', text: `says “${s('text')}”`, peer: s('author') };
    case 'job': {
      const failed = event.error != null;
      const what = failed
        ? `Request failed: ${s('error')}`
        : `Answered ${count(n('output_tokens'))} tokens to ${count(n('input_tokens'))} in ${seconds(n('duration_s'))}`;
      return { tone: failed ? 'bad' : 'good', text: `${what} (model ${s('model')})` };
    }
    case 'ledger':
      return event.note === 'made'
        ? { tone: 'off', text: `was signed an IOU of ${credits(n('amount'))} credits`, peer: s('peer') }
        : { tone: 'good', text: `signed us an IOU of ${credits(n('amount'))} credits`, peer: s('peer') };
    case 'dht':
      return {
        tone: event.ok ? 'good' : 'warn',
        text: `DHT ${s('query').replace('_', ' ')} ${event.ok ? 'done' : 'found nothing'} in ${seconds(n('duration_s'))}`,
      };
    case 'storage':
      return { tone: 'good', text: `Model ${short(s('model'))} ${s('change')}` };
    case 'log':
      return { tone: event.level === 'error' ? 'bad' : 'warn', text: s('message') };
    default:
      return { tone: 'off', text: `${event.type} ${bytes(JSON.stringify(event).length)}` };
  }
}
