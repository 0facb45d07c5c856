// What Quelea gives an agent besides the kit's own functions. Each of these answers {"ok": …} or {"error": {"code", "message"}}.

import { Host, Memory } from "@extism/as-pdk";
import { error_set, length } from "@extism/as-pdk/lib/env";

@external("extism:host/user", "kv_get")
declare function kv_get(key: u64): u64;
@external("extism:host/user", "kv_set")
declare function kv_set(key: u64, value: u64): u64;
@external("extism:host/user", "http_fetch")
declare function http_fetch(request: u64): u64;
@external("extism:host/user", "infer")
declare function infer_(request: u64): u64;

/** Where `abort` of AssemblyScript leads: the run ends, and the message is its error. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  fail((message === null ? "aborted" : message) + " (" + line.toString() + ":" + column.toString() + ")");
  unreachable();
}

/** The run has failed: the entry returns what this gives. */
export function fail(message: string): i32 {
  error_set(Memory.allocateString(message).offset);
  return 1;
}

/** Gives text out. The kit's own `outputString` counts characters where bytes are meant. */
export function give(text: string): i32 {
  Host.output(Uint8Array.wrap(String.UTF8.encode(text)));
  return 0;
}

/** An answer of the node. */
export class Answer {
  constructor(public json: string) {}

  /** Why there is no answer; nothing if there is one. */
  get error(): string | null {
    return this.json.startsWith('{"error":') ? text(this.json, "message") : null;
  }
}

function answer(at: u64): Answer {
  return new Answer(new Memory(at, length(at)).toString());
}

export function get(key: string): Answer {
  return answer(kv_get(Memory.allocateString(key).offset));
}

export function set(key: string, value: string): Answer {
  return answer(kv_set(Memory.allocateString(key).offset, Memory.allocateString(value).offset));
}

export function fetch(url: string): Answer {
  return answer(http_fetch(Memory.allocateString('{"url":' + quoted(url) + "}").offset));
}

/** Asks a model. `model` is an id, or "demo". */
export function infer(prompt: string, model: string, maxTokens: i32): Answer {
  const request = '{"prompt":' + quoted(prompt) + ',"model":' + quoted(model) + ',"max_tokens":' + maxTokens.toString() + "}";
  return answer(infer_(Memory.allocateString(request).offset));
}

/** Text as JSON has it. */
export function quoted(text: string): string {
  let out = '"';
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c == 0x22 || c == 0x5c) {
      out += "\\" + String.fromCharCode(c);
    } else if (c < 0x20) {
      out += "\\u00" + (c < 0x10 ? "0" : "") + c.toString(16);
    } else {
      out += String.fromCharCode(c);
    }
  }
  return out + '"';
}

/** The first text of that name in a document; null if there is none. */
export function text(json: string, name: string): string | null {
  const at = json.indexOf('"' + name + '":"');
  if (at < 0) return null;
  let out = "";
  for (let i = at + name.length + 4; i < json.length; i++) {
    const c = json.charAt(i);
    if (c == '"') return out;
    if (c != "\\") {
      out += c;
      continue;
    }
    i++;
    const escaped = json.charAt(i);
    if (escaped == "u") {
      out += String.fromCharCode(<i32>parseInt(json.substr(i + 1, 4), 16));
      i += 4;
    } else {
      out += escaped == "n" ? "\n" : escaped == "t" ? "\t" : escaped == "r" ? "\r" : escaped == "b" ? "\b" : escaped == "f" ? "\f" : escaped;
    }
  }
  return null;
}

/** The first number of that name in a document; 0 if there is none. */
export function number(json: string, name: string): i64 {
  const at = json.indexOf('"' + name + '":');
  return at < 0 ? 0 : i64.parse(json.substr(at + name.length + 3));
}
