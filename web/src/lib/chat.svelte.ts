// Conversations, and what it takes to have a model answer.

import { ApiError, explain, lines, request } from './api';

export interface Hop {
  peer: string;
  layers: string;
  rtt_ms?: number | null;
  sees_tokens?: boolean;
}

export interface Stats {
  ttft_s?: number;
  total_s?: number;
  tokens_per_s?: number | null;
  prompt_tokens?: number;
  output_tokens?: number;
  finish?: string;
  micro_credits?: number;
  stages?: { peer: string; layers: string; credits: string; note: string | null }[];
  receipt?: string;
  saw?: { peer: string; layers: string; tokens: boolean }[];
  recoveries?: { lost: string[]; why: string; recovery_s: number }[];
}

export interface Message {
  role: 'user' | 'assistant';
  text: string;
  state: 'done' | 'asking' | 'stopped' | 'failed';
  error?: string;
  warnings?: string[];
  hops?: Hop[];
  stats?: Stats;
}

export interface Params {
  system: string;
  max_tokens: number;
  temperature: number;
  top_p: number;
  seed: number;
  stop: string;
  route: 'auto' | 'swarm' | 'local';
  receipt: boolean;
}

const KEPT = 'quelea.chat';
const CHOSEN = 'quelea.chat.params';

export const USUAL: Params = {
  system: '',
  max_tokens: 256,
  temperature: 0,
  top_p: 1,
  seed: 0,
  stop: '',
  route: 'auto',
  receipt: true,
};

interface RouteEvent {
  type: 'route';
  hops: Hop[];
}
interface TextEvent {
  type: 'text';
  text: string;
}
interface WarningEvent {
  type: 'warning';
  message: string;
}
interface DoneEvent {
  type: 'done';
  summary: {
    text: string;
    prompt_ids: number[];
    ids: number[];
    finish_reason: string;
    ttft_s: number;
    total_s: number;
    tokens_per_s: number | null;
    cost?: { micro_credits: number; stages: NonNullable<Stats['stages']> };
    receipt?: string;
    saw?: Stats['saw'];
    recoveries?: Stats['recoveries'];
  };
}
interface ErrorEvent {
  type: 'error';
  error: { message: string; hint?: string; code: string };
}
type InferEvent = RouteEvent | TextEvent | WarningEvent | DoneEvent | ErrorEvent;

class Chat {
  messages = $state<Message[]>([]);
  params = $state<Params>({ ...USUAL });
  model = $state('demo');
  /** What a screen reader is told: whole sentences, not tokens. */
  spoken = $state('');

  /** Whether this node takes whole conversations; one that does not has no OpenAI API either. */
  remembers = $state<boolean | null>(null);

  #abort: AbortController | null = null;

  constructor() {
    try {
      this.messages = JSON.parse(sessionStorage.getItem(KEPT) ?? '[]');
      for (const message of this.messages) if (message.state === 'asking') message.state = 'stopped';
      const kept = JSON.parse(localStorage.getItem(CHOSEN) ?? '{}');
      this.params = { ...USUAL, ...kept.params };
      this.model = kept.model ?? 'demo';
    } catch {
      // What cannot be read is forgotten.
    }
  }

  async probe(): Promise<void> {
    if (this.remembers !== null) return;
    this.remembers = await request('/v1/models').then(
      () => true,
      (error) => !(error instanceof ApiError && error.status === 404),
    );
  }

  get busy(): boolean {
    return this.messages.at(-1)?.state === 'asking';
  }

  keep(): void {
    sessionStorage.setItem(KEPT, JSON.stringify(this.messages.slice(-100)));
    localStorage.setItem(CHOSEN, JSON.stringify({ params: $state.snapshot(this.params), model: this.model }));
  }

  clear(): void {
    this.stop();
    this.messages = [];
    this.keep();
  }

  stop(): void {
    this.#abort?.abort();
  }

  async ask(text: string): Promise<void> {
    this.messages.push({ role: 'user', text, state: 'done' });
    await this.#answer();
  }

  /** Asks the last question again. */
  async again(): Promise<void> {
    while (this.messages.at(-1)?.role === 'assistant') this.messages.pop();
    if (this.messages.at(-1)?.role === 'user') await this.#answer();
  }

  async #answer(): Promise<void> {
    this.messages.push({ role: 'assistant', text: '', state: 'asking' });
    const message = this.messages.at(-1)!;
    const abort = new AbortController();
    this.#abort = abort;
    this.spoken = '';
    const unsaid = new Sentences((sentence) => {
      this.spoken = sentence;
    });
    try {
      await this.#infer(message, unsaid, abort.signal);
    } catch (error) {
      if (abort.signal.aborted) message.state = 'stopped';
      else {
        message.state = 'failed';
        message.error = explain(error);
      }
    } finally {
      unsaid.end();
      this.#abort = null;
      this.keep();
    }
  }

  async #infer(message: Message, unsaid: Sentences, signal: AbortSignal): Promise<void> {
    await this.probe();
    // A question without an answer is left out: templates want the two in turns.
    const before = this.messages.filter(
      (one, i, all) =>
        one !== message && one.text && one.state !== 'failed' && (one.role === 'assistant' || all[i + 1] === message || (all[i + 1]?.text && all[i + 1]?.state !== 'failed')),
    );
    const said = this.remembers
      ? { messages: before.map((one) => ({ role: one.role, content: one.text })) }
      : { prompt: before.findLast((one) => one.role === 'user')?.text ?? '' };
    const { system, stop, ...rest } = $state.snapshot(this.params);
    const body = {
      model: this.model,
      ...said,
      ...rest,
      ...(system.trim() ? { system } : {}),
      ...(stop ? { stop: stop.split('\n').filter(Boolean) } : {}),
    };
    const response = await request('/api/v1/infer', { method: 'POST', body: JSON.stringify(body), signal });
    for await (const event of lines<InferEvent>(response)) {
      switch (event.type) {
        case 'route':
          message.hops = event.hops;
          break;
        case 'text':
          message.text += event.text;
          unsaid.add(event.text);
          break;
        case 'warning':
          message.warnings = [...(message.warnings ?? []), event.message];
          break;
        case 'error':
          throw new ApiError(event.error.message, 200, event.error.code, event.error.hint ?? null);
        case 'done': {
          const { summary } = event;
          message.text = summary.text;
          message.state = 'done';
          message.stats = {
            ttft_s: summary.ttft_s,
            total_s: summary.total_s,
            tokens_per_s: summary.tokens_per_s,
            prompt_tokens: summary.prompt_ids.length,
            output_tokens: summary.ids.length,
            finish: summary.finish_reason,
            micro_credits: summary.cost?.micro_credits ?? 0,
            stages: summary.cost?.stages,
            receipt: summary.receipt,
            saw: summary.saw,
            recoveries: summary.recoveries,
          };
          break;
        }
      }
    }
    if (message.state === 'asking') throw new Error('the answer stopped before its end');
  }
}

/** Collects tokens into sentences. */
class Sentences {
  #text = '';

  constructor(readonly say: (sentence: string) => void) {}

  add(text: string): void {
    this.#text += text;
    const end = Math.max(...['. ', '! ', '? ', '\n', ': '].map((mark) => this.#text.lastIndexOf(mark)));
    if (end < 0) return;
    this.say(this.#text.slice(0, end + 1).trim());
    this.#text = this.#text.slice(end + 1);
  }

  end(): void {
    if (this.#text.trim()) this.say(this.#text.trim());
    this.#text = '';
  }
}

export const chat = new Chat();
