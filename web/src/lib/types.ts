// What the API says, as far as the page reads it.

export interface Health {
  status: string;
  live: boolean;
  ready: boolean;
  uptime_seconds: number;
  components: Record<string, { status: string; message: string }>;
}

export interface Served {
  model: string;
  name: string;
  layers: string;
  layers_total: number;
  price_decode: number;
  price_prefill: number;
  profile: string;
  sessions: number;
  queue: number;
  kv_pages_free: number;
  kv_pages_cached: number;
  kv_pages_total: number;
}

export interface Announced {
  peer_id: string;
  model: string;
  layers: string;
}

export interface Status {
  peer_id: string;
  version: string;
  addresses: string[];
  health: Health;
  peers_connected: number;
  peers_known: number | null;
  serves: Served[];
  announced: Announced[];
}

export interface Peer {
  peer_id: string;
  agent: string | null;
  direction: string;
  path: string;
  transport: string;
  ip: string | null;
  relay: string | null;
  rtt_s: number | null;
  streams: number | null;
  sent_bytes: number | null;
  received_bytes: number | null;
  protocols: string[];
  conduct: number;
  addresses: string[];
  connected_s: number;
}

export interface KnownPeer {
  peer_id: string;
  agent: string | null;
  connected: boolean;
  source: string;
  conduct: number;
  failures: number;
  last_seen_at_s: number | null;
  addresses: string[];
}

export interface Ban {
  subject: string;
  since_at_s: number;
  until_at_s: number;
  by: string;
  times: number;
  reason: string;
}

export interface Account {
  peer_id: string;
  owed: number;
  held: number;
  limit: number;
  limit_by_operator: boolean;
  proven: boolean;
  synced: boolean;
  overdue: number;
  issued: number;
  received: number;
  asks: { amount: number; deadline_s: number } | null;
  default_since_s: number | null;
  frozen: string | null;
}

export interface Ledger {
  items: Account[];
  totals: { owed: number; owing: number; held: number };
  pool: { limit: number };
}

export interface Entry {
  id: string;
  peer_id: string;
  kind: string;
  by: string;
  seq: number;
  at_s: number;
  amount: number;
  total: number;
  due_at_s: number | null;
  method: string | null;
  acknowledged: boolean | null;
  envelope: string;
}

export interface KeptModel {
  model: string;
  name: string;
  architecture?: string;
  quantisation: string;
  layers_total: number;
  layers: string[];
  bytes: number;
  bytes_total: number;
  whole: boolean;
  path: string;
}

export interface Loaded {
  model: string;
  name: string;
  layers: string;
  profile: string;
  weight_bytes: number;
  kv_bytes: number;
  kv_used_bytes: number;
  sessions: number;
}

export interface DhtStats {
  mode: string;
  peers: number;
  buckets: { bucket: number; peers: number }[];
  records: { held: number; held_bytes: number; own: number };
  providers: { held: number; keys: number; own: number };
  store: Record<string, number>;
  queries_running: number;
  queries: Record<string, { ok: number; failed: number; success_ratio: number | null }>;
}

export interface Coverage {
  model: string;
  name: string;
  layers: number;
  weight_bytes: number;
  replicas: number[];
  missing: string[];
  missing_bytes: number;
  holders: {
    peer: string;
    layers: string;
    state: string;
    here: boolean;
    decode_rows_per_s: number;
    price_decode: number;
    price_prefill: number;
  }[];
}

export type Metric = { time_ms: number } & Record<string, number>;

export interface Snapshot {
  cursor: number;
  generated_at: string;
  status: Status;
  peers: Peer[];
  ledger: Ledger | null;
  dht: DhtStats | null;
  models: { items: KeptModel[]; chunks_given: number } | null;
  loaded: Loaded[];
  metric: Metric | null;
}

export interface NodeEvent {
  id: number;
  time_ms: number;
  type: string;
  [field: string]: unknown;
}

export interface Timeseries {
  step_s: number;
  t: number[];
  series: Record<string, number[]>;
}

export interface List<T> {
  generated_at: string;
  items: T[];
}

/** A setting, and how it may be changed from here, where it may. */
export interface Setting {
  key: string;
  values: string[];
  origin: string;
  help: string;
  edit: { kind: 'switch' | 'one' | 'many'; choices: string[]; written: string[] | null } | null;
}
