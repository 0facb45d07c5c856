// Requests to this node. The session's cookie goes along by itself; what changes something shows the second secret, which is
// kept where only this page's origin can read it.

const CSRF = 'quelea.csrf';

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
    readonly hint: string | null = null,
  ) {
    super(message);
  }
}

/** What to say to people when something failed. */
export function explain(error: unknown): string {
  if (error instanceof ApiError) return error.hint ? `${error.message} – ${error.hint}` : error.message;
  if (error instanceof TypeError) return 'the node does not answer';
  return error instanceof Error ? error.message : String(error);
}

let out: () => void = () => {};

/** Calls this when the session has ended. */
export function onLoggedOut(call: () => void): void {
  out = call;
}

export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const csrf = localStorage.getItem(CSRF);
  if (csrf) headers.set('x-quelea-csrf', csrf);
  if (init.body && !headers.has('content-type')) headers.set('content-type', 'application/json');
  const response = await fetch(path, { ...init, headers, credentials: 'same-origin', cache: 'no-store' });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const error = said?.error ?? {};
  if (response.status === 401 && path !== '/api/v1/login') out();
  throw new ApiError(error.message ?? `the node answers ${response.status}`, response.status, error.code, error.hint);
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await request(path, { signal })).json();
}

export async function post<T>(path: string, body: unknown = {}, signal?: AbortSignal): Promise<T> {
  return (await request(path, { method: 'POST', body: JSON.stringify(body), signal })).json();
}

/** The answer's lines of JSON as they come. */
export async function* lines<T>(response: Response): AsyncGenerator<T> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let unread = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      unread += value;
      const parts = unread.split('\n');
      unread = parts.pop() ?? '';
      for (const part of parts) if (part.trim()) yield JSON.parse(part) as T;
    }
    if (unread.trim()) yield JSON.parse(unread) as T;
  } finally {
    await reader.cancel().catch(() => {});
  }
}

export async function login(code: string): Promise<void> {
  const { csrf } = await post<{ csrf: string }>('/api/v1/login', { code });
  localStorage.setItem(CSRF, csrf);
}

export async function logout(): Promise<void> {
  await post('/api/v1/logout').catch(() => {});
  localStorage.removeItem(CSRF);
  out();
}

export interface Session {
  scopes: string[];
  session: boolean;
  writes: boolean;
  open: boolean;
}

export function session(): Promise<Session> {
  return get<Session>('/api/v1/session');
}
