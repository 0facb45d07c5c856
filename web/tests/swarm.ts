// Real nodes, each a process, on loopback. Killed with the tests.

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

const BINARY = resolve(process.env.QUELEA_BIN ?? '../target/debug/quelea');

/** How long anything may take that takes a moment on an idle machine. */
export const PATIENCE = 40_000;

export async function until<T>(what: string, look: () => Promise<T | null | undefined | false>, ms = PATIENCE): Promise<T> {
  const end = Date.now() + ms;
  for (;;) {
    const seen = await look();
    if (seen) return seen;
    if (Date.now() > end) throw new Error(`in vain: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

export class Node {
  private constructor(
    readonly home: string,
    readonly process: ChildProcess,
    readonly told: Map<string, string[]>,
    readonly said: () => string,
  ) {}

  static async start(args: string[], listen = ['--host', '127.0.0.1', '--port', '0']): Promise<Node> {
    const home = await mkdtemp(join(tmpdir(), 'quelea-web-'));
    const all = ['daemon', '--data-dir', home, ...listen, '--api-listen', '127.0.0.1:0', '--metrics-listen', '127.0.0.1:0', ...args];
    const child = spawn(BINARY, all, { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let err = '';
    child.stdout.on('data', (bytes) => (out += bytes));
    child.stderr.on('data', (bytes) => (err += bytes));
    await until(`a daemon that is ready: ${BINARY} ${all.join(' ')}`, async () => {
      if (child.exitCode !== null) throw new Error(`the daemon ended with ${child.exitCode}: ${err}`);
      return out.split('\n').includes('ready');
    });
    const told = new Map<string, string[]>();
    for (const line of out.split('\n')) {
      const at = line.indexOf(':');
      if (at > 0) told.set(line.slice(0, at), [...(told.get(line.slice(0, at)) ?? []), line.slice(at + 1).trim()]);
    }
    return new Node(home, child, told, () => err);
  }

  get api(): string {
    return this.told.get('api')![0]!;
  }

  get peer(): string {
    return this.told.get('peer id')![0]!;
  }

  get addr(): string {
    return this.told.get('listen')!.find((addr) => addr.includes('/tcp/'))!;
  }

  async command(...args: string[]): Promise<string> {
    return (await run(BINARY, [...args, '--data-dir', this.home])).stdout;
  }

  /** The page's address, with a code that holds once. */
  async door(): Promise<string> {
    return (await this.command('ui', '--print')).trim();
  }

  async token(): Promise<string> {
    return (await readFile(join(this.home, 'api.token'), 'utf8')).trim();
  }

  async get(path: string): Promise<any> {
    return (await fetch(this.api + path, { headers: { authorization: `Bearer ${await this.token()}` } })).json();
  }

  /** At once, without a goodbye. */
  async kill(): Promise<void> {
    const ended = new Promise((done) => this.process.once('exit', done));
    if (this.process.exitCode === null && this.process.kill('SIGKILL')) await ended;
    await rm(this.home, { recursive: true, force: true });
  }
}

export interface Swarm {
  /** Serves nothing; its page is looked at. */
  front: Node;
  workers: Node[];
}

/** The demo model in two halves, the first of which has a price. */
export async function swarm(): Promise<Swarm> {
  const front = await Node.start([]);
  const spans = [
    ['--layers', '0..3', '--price', '100'],
    ['--layers', '3..6'],
  ];
  const workers = await Promise.all(spans.map((span) => Node.start(['--bootstrap', front.addr, '--model', 'demo', ...span])));
  await until('all layers', async () => (await front.get('/api/v1/coverage?model=demo')).missing?.length === 0);
  return { front, workers };
}
