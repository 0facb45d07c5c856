//! The functions that a module may import.
//!
//! `extism:host/env` is what the kits of the extism project expect (<https://extism.org/docs/concepts/pdk>): blocks, input and
//! output, variables, logs, HTTP. `extism:host/user` is ours, and each of its functions that can fail returns a block of JSON:
//! `{"ok": …}` or `{"error": {"code", "message"}}`.
//!
//! | ours | takes | `ok` is |
//! |---|---|---|
//! | `kv_get` | block: key | the value, or null |
//! | `kv_set` | blocks: key, value; an empty value removes the key | true |
//! | `http_fetch` | block: JSON `{"url", "method"?, "headers"?, "body"?}` | `{"status", "headers", "body"}` |
//! | `infer` | block: JSON `{"prompt", "model"?, "max_tokens"?, "system"?, "temperature"?, "seed"?}` | `{"text", "model", "tokens", "spent"}` |
//! | `call` | block: JSON `{"service", "input"}` | what the service gives |
//! | `log` | i64 level (0 trace … 4 error), block | – |
//! | `now` | – | i64: Unix milliseconds |
//! | `random` | i64: how many bytes, at most 65,536 | – (a block of them) |
//!
//! Every call costs fuel: a call as such, and bytes moved. So what a module uses is the same wherever it runs.

use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::{Caller, Linker, Trap, bail};

use super::{
    engine::Held,
    gate::{ENV, USER},
    guest::HostFunction,
};
use crate::agents::limits::{ARENA_MAX, OUTPUT_MAX};

type Call<'a> = Caller<'a, Held>;
type Done<T> = wasmtime::Result<T>;

/// Fuel of a call of a host function, and of each 8 bytes that it moves.
const CALL_FUEL: u64 = 100;

/// Fuel of a call that leaves the process.
const ASK_FUEL: u64 = 10_000;

/// Bytes of variables that a run may keep.
const VARS_MAX: usize = 1 << 20;

/// Random bytes that one call gives.
const RANDOM_MAX: u64 = 65_536;

/// Takes fuel, or ends the run.
fn pay(caller: &mut Call<'_>, fuel: u64) -> Done<()> {
    let left = caller.get_fuel()?;
    match left.checked_sub(fuel) {
        Some(left) => caller.set_fuel(left),
        None => {
            caller.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
    }
}

fn pay_bytes(caller: &mut Call<'_>, bytes: u64) -> Done<()> {
    pay(caller, CALL_FUEL.saturating_add(bytes / 8))
}

/// The bytes of a block that the module names.
fn block(caller: &mut Call<'_>, at: u64, what: &str) -> Done<Vec<u8>> {
    let len = caller.data().guest.arena.length(at);
    pay_bytes(caller, len.unwrap_or(0))?;
    // Nothing is an empty block, as the kits have it.
    if at == 0 {
        return Ok(Vec::new());
    }
    match caller.data().guest.arena.block(at) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => bail!("{what}: no block begins at {at:#x}"),
    }
}

/// A new block with these bytes.
fn give(caller: &mut Call<'_>, bytes: &[u8]) -> Done<u64> {
    pay_bytes(caller, bytes.len() as u64)?;
    match caller.data_mut().guest.arena.put(bytes) {
        Some(at) => Ok(at),
        None => bail!("no room for {} bytes beside what is handed over already (at most {ARENA_MAX})", bytes.len()),
    }
}

/// Defines all of them.
pub(super) fn define(linker: &mut Linker<Held>) -> Done<()> {
    blocks(linker)?;
    input_and_output(linker)?;
    kept_for_the_run(linker)?;
    logs(linker)?;
    http(linker)?;
    ours(linker)
}

fn blocks(linker: &mut Linker<Held>) -> Done<()> {
    linker.func_wrap(ENV, "alloc", |mut caller: Call<'_>, len: u64| {
        // What there is no room for is not paid for.
        pay_bytes(&mut caller, if len > ARENA_MAX as u64 { 0 } else { len })?;
        // 0 is "no room", which the kits know.
        Ok(caller.data_mut().guest.arena.alloc(len).unwrap_or(0))
    })?;
    linker.func_wrap(ENV, "free", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        caller.data_mut().guest.arena.free(at);
        Ok(())
    })?;
    for name in ["length", "length_unsafe"] {
        linker.func_wrap(ENV, name, |mut caller: Call<'_>, at: u64| {
            pay(&mut caller, CALL_FUEL)?;
            Ok(caller.data().guest.arena.length(at).unwrap_or(0))
        })?;
    }
    linker.func_wrap(ENV, "load_u8", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        load::<1>(&caller, at).map(|[byte]| u32::from(byte))
    })?;
    linker.func_wrap(ENV, "load_u64", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        load::<8>(&caller, at).map(u64::from_le_bytes)
    })?;
    linker.func_wrap(ENV, "store_u8", |mut caller: Call<'_>, at: u64, value: u32| {
        pay(&mut caller, CALL_FUEL)?;
        let [low, ..] = value.to_le_bytes();
        store(&mut caller, at, &[low])
    })?;
    linker.func_wrap(ENV, "store_u64", |mut caller: Call<'_>, at: u64, value: u64| {
        pay(&mut caller, CALL_FUEL)?;
        store(&mut caller, at, &value.to_le_bytes())
    })?;
    Ok(())
}

fn load<const N: usize>(caller: &Call<'_>, at: u64) -> Done<[u8; N]> {
    match caller.data().guest.arena.slice(at, N as u64).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(bytes),
        None => bail!("{N} bytes at {at:#x} are in no block"),
    }
}

fn store(caller: &mut Call<'_>, at: u64, bytes: &[u8]) -> Done<()> {
    match caller.data_mut().guest.arena.slice_mut(at, bytes.len() as u64) {
        Some(place) => {
            place.copy_from_slice(bytes);
            Ok(())
        }
        None => bail!("{} bytes at {at:#x} are in no block", bytes.len()),
    }
}

fn input_and_output(linker: &mut Linker<Held>) -> Done<()> {
    linker.func_wrap(ENV, "input_length", |caller: Call<'_>| caller.data().guest.input_len)?;
    linker.func_wrap(ENV, "input_offset", |caller: Call<'_>| caller.data().guest.input)?;
    linker.func_wrap(ENV, "input_load_u8", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        let at = of_input(&caller, at, 1)?;
        load::<1>(&caller, at).map(|[byte]| u32::from(byte))
    })?;
    linker.func_wrap(ENV, "input_load_u64", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        let at = of_input(&caller, at, 8)?;
        load::<8>(&caller, at).map(u64::from_le_bytes)
    })?;
    linker.func_wrap(ENV, "output_set", |mut caller: Call<'_>, at: u64, len: u64| {
        if len > OUTPUT_MAX as u64 {
            bail!("an output of {len} bytes; at most {OUTPUT_MAX} are taken");
        }
        pay_bytes(&mut caller, len)?;
        if len == 0 {
            caller.data_mut().guest.output = Vec::new();
            return Ok(());
        }
        let Some(output) = caller.data().guest.arena.slice(at, len).map(<[u8]>::to_vec) else {
            bail!("an output of {len} bytes at {at:#x}, which are in no block");
        };
        caller.data_mut().guest.output = output;
        Ok(())
    })?;
    linker.func_wrap(ENV, "error_set", |mut caller: Call<'_>, at: u64| {
        pay(&mut caller, CALL_FUEL)?;
        caller.data_mut().guest.error = (at != 0).then_some(at);
        Ok(())
    })?;
    linker.func_wrap(ENV, "error_get", |caller: Call<'_>| caller.data().guest.error.unwrap_or(0))?;
    linker.func_wrap(ENV, "reset", |mut caller: Call<'_>| pay(&mut caller, CALL_FUEL))?;
    Ok(())
}

/// The address of so many bytes of the input.
fn of_input(caller: &Call<'_>, at: u64, len: u64) -> Done<u64> {
    let guest = &caller.data().guest;
    match at.checked_add(len).filter(|end| *end <= guest.input_len).and_then(|_| guest.input.checked_add(at)) {
        Some(at) => Ok(at),
        None => bail!("{len} bytes at {at} of an input of {} bytes", guest.input_len),
    }
}

fn kept_for_the_run(linker: &mut Linker<Held>) -> Done<()> {
    // There are no settings that a module could read.
    linker.func_wrap(ENV, "config_get", |mut caller: Call<'_>, key: u64| {
        block(&mut caller, key, "config_get")?;
        Ok(0_u64)
    })?;
    linker.func_wrap(ENV, "var_get", |mut caller: Call<'_>, key: u64| {
        let key = block(&mut caller, key, "var_get")?;
        match caller.data().guest.vars.get(&key).cloned() {
            Some(value) => give(&mut caller, &value),
            None => Ok(0),
        }
    })?;
    linker.func_wrap(ENV, "var_set", |mut caller: Call<'_>, key: u64, value: u64| {
        let key = block(&mut caller, key, "var_set")?;
        let keep = value != 0;
        let value = block(&mut caller, value, "var_set")?;
        let vars = &mut caller.data_mut().guest.vars;
        vars.remove(&key);
        if keep {
            let size = |(key, value): (&Vec<u8>, &Vec<u8>)| key.len().saturating_add(value.len()).saturating_add(64);
            let total = vars.iter().map(size).fold(size((&key, &value)), usize::saturating_add);
            if total > VARS_MAX {
                bail!("var_set: more than {VARS_MAX} bytes of variables");
            }
            vars.insert(key, value);
        }
        Ok(())
    })?;
    Ok(())
}

fn logs(linker: &mut Linker<Held>) -> Done<()> {
    for (level, name) in ["log_trace", "log_debug", "log_info", "log_warn", "log_error"].into_iter().enumerate() {
        let level = u8::try_from(level).unwrap_or(2);
        linker.func_wrap(ENV, name, move |mut caller: Call<'_>, at: u64| log(&mut caller, level, at))?;
    }
    // All of them.
    linker.func_wrap(ENV, "get_log_level", |_: Call<'_>| 0_i32)?;
    linker.func_wrap(USER, "log", |mut caller: Call<'_>, level: u64, at: u64| {
        log(&mut caller, u8::try_from(level.min(4)).unwrap_or(2), at)
    })?;
    Ok(())
}

fn log(caller: &mut Call<'_>, level: u8, at: u64) -> Done<()> {
    let text = block(caller, at, "log")?;
    caller.data_mut().guest.log(level, &text)?;
    Ok(())
}

/// What the kits' own HTTP goes through: the same as `http_fetch`.
fn http(linker: &mut Linker<Held>) -> Done<()> {
    linker.func_wrap(ENV, "http_request", |mut caller: Call<'_>, request: u64, body: u64| {
        let request = block(&mut caller, request, "http_request")?;
        let body = block(&mut caller, body, "http_request")?;
        pay(&mut caller, ASK_FUEL)?;
        let answer = caller.data_mut().guest.ask(HostFunction::HttpRequest, &request, &body)?;
        if answer.refused {
            bail!("http_request: {}", String::from_utf8_lossy(&answer.bytes));
        }
        let Some((status, body)) = answer.bytes.split_first_chunk::<2>() else {
            bail!("http_request: the node does not answer");
        };
        caller.data_mut().guest.http_status = u16::from_le_bytes(*status);
        give(&mut caller, body)
    })?;
    linker.func_wrap(ENV, "http_status_code", |caller: Call<'_>| i32::from(caller.data().guest.http_status))?;
    linker.func_wrap(ENV, "http_headers", |_: Call<'_>| 0_u64)?;
    Ok(())
}

fn ours(linker: &mut Linker<Held>) -> Done<()> {
    for (name, function) in [
        ("kv_get", HostFunction::KvGet),
        ("http_fetch", HostFunction::HttpFetch),
        ("infer", HostFunction::Infer),
        ("call", HostFunction::Call),
    ] {
        linker.func_wrap(USER, name, move |mut caller: Call<'_>, at: u64| {
            let request = block(&mut caller, at, name)?;
            ask(&mut caller, function, &request, &[])
        })?;
    }
    linker.func_wrap(USER, "kv_set", |mut caller: Call<'_>, key: u64, value: u64| {
        let key = block(&mut caller, key, "kv_set")?;
        let value = block(&mut caller, value, "kv_set")?;
        ask(&mut caller, HostFunction::KvSet, &key, &value)
    })?;
    linker.func_wrap(USER, "now", |mut caller: Call<'_>| {
        pay(&mut caller, CALL_FUEL)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })?;
    linker.func_wrap(USER, "random", |mut caller: Call<'_>, len: u64| {
        if len > RANDOM_MAX {
            bail!("random: {len} bytes; at most {RANDOM_MAX} are given");
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
        give(&mut caller, &bytes)
    })?;
    Ok(())
}

/// Asks the daemon, whose answer is JSON in either case.
fn ask(caller: &mut Call<'_>, function: HostFunction, first: &[u8], second: &[u8]) -> Done<u64> {
    pay(caller, ASK_FUEL)?;
    let answer = caller.data_mut().guest.ask(function, first, second)?;
    give(caller, &answer.bytes)
}
