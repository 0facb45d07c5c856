//! Hostile modules: by hand where the point is one instruction, by code where it is a great many.

use std::fmt::Write as _;

/// What the kits import, so that every module may use any of it.
pub const IMPORTS: &str = r#"
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "free" (func $free (param i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
    (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
    (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
    (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/env" "error_set" (func $error_set (param i64)))
    (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
    (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
    (import "extism:host/env" "log_info" (func $log_info (param i64)))
    (import "extism:host/env" "http_request" (func $http_request (param i64 i64) (result i64)))
    (import "extism:host/user" "kv_get" (func $kv_get (param i64) (result i64)))
    (import "extism:host/user" "kv_set" (func $kv_set (param i64 i64) (result i64)))
    (import "extism:host/user" "http_fetch" (func $http_fetch (param i64) (result i64)))
    (import "extism:host/user" "infer" (func $infer (param i64) (result i64)))
    (import "extism:host/user" "call" (func $call (param i64) (result i64)))
    (import "extism:host/user" "log" (func $log (param i64 i64)))
    (import "extism:host/user" "now" (func $now (result i64)))
    (import "extism:host/user" "random" (func $random (param i64) (result i64)))
"#;

/// How a module is expected to end: one of these words.
pub const TIMEOUT: &str = "timeout";
pub const TRAP: &str = "trap";
pub const DENIED: &str = "denied";
pub const OK: &str = "ok";
pub const OUT_OF_FUEL: &str = "out_of_fuel";

/// A hostile module.
pub struct Hostile {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Any of these ends is right.
    pub ends: &'static [&'static str],
}

fn with(name: impl Into<String>, ends: &'static [&'static str], wat: &str) -> Hostile {
    let name = name.into();
    let bytes = wat::parse_str(wat).unwrap_or_else(|e| panic!("{name}: {e}\n{wat:.2000}"));
    Hostile { name, bytes, ends }
}

/// A module whose `run` is this.
fn body(name: &str, ends: &'static [&'static str], body: &str) -> Hostile {
    let wat = format!(
        r#"(module {IMPORTS}
            (memory 1)
            (table $t 10 funcref)
            (type $none (func))
            (global $g (mut i64) (i64.const 0))
            (func $again (param i64) (result i64) (i64.add (i64.const 1) (call $again (local.get 0))))
            (func (export "run") (local $i i64) (local $p i64) (local $n i32) {body}))"#
    );
    with(name, ends, &wat)
}

/// Raw bytes that are no module, or not one of ours.
fn raw(name: &str, bytes: &[u8]) -> Hostile {
    Hostile { name: name.into(), bytes: bytes.to_vec(), ends: &[DENIED] }
}

/// `n` times the same text, with a number in the place of `#`.
fn times(n: usize, text: &str) -> String {
    (0..n).fold(String::new(), |mut all, i| {
        let _ = write!(all, "{} ", text.replace('#', &i.to_string()));
        all
    })
}

/// A section: its id, how long it is, its bytes.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(content.len() as u64), content].concat()
}

fn leb(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        bytes.push(if n == 0 { low } else { low | 0x80 });
        if n == 0 {
            return bytes;
        }
    }
}

const HEAD: &[u8] = b"\0asm\x01\0\0\0";

/// So many functions with so many locals, each with some work in it: what a compiler takes long for.
pub fn compile_bomb(functions: usize, locals: usize, instructions: usize) -> Vec<u8> {
    let types = section(1, &[1, 0x60, 0, 1, 0x7e]);
    let declared = section(3, &[leb(functions as u64), vec![0; functions]].concat());
    let exports = section(7, &[1, 3, b'r', b'u', b'n', 0, 0]);
    let mut code = [leb(1), leb(locals as u64), vec![0x7e]].concat();
    for i in 0..instructions {
        let (a, b) = (i * 7919 % locals, i * 104_729 % locals);
        // c = a * b + a, all of them alive to the end.
        code.extend([&[0x20][..], &leb(a as u64), &[0x20], &leb(b as u64), &[0x7e, 0x20], &leb(a as u64)].concat());
        code.extend([&[0x7c, 0x21][..], &leb(((a + b) % locals) as u64)].concat());
    }
    code.extend([0x42, 0]);
    for local in 0..locals {
        code.extend([&[0x20][..], &leb(local as u64), &[0x7c]].concat());
    }
    code.push(0x0b);
    let one = [leb(code.len() as u64), code].concat();
    let mut bodies = leb(functions as u64);
    for _ in 0..functions {
        bodies.extend(&one);
    }
    [HEAD, &types, &declared, &exports, &section(10, &bodies)].concat()
}

/// All of them.
pub fn all() -> Vec<Hostile> {
    [endless(), memory(), declared(), start(), out_of_range(), floods(), malformed()].into_iter().flatten().collect()
}

fn endless() -> Vec<Hostile> {
    vec![
        body("loop", &[TIMEOUT], "(loop $l (br $l))"),
        body(
            "loop with work",
            &[TIMEOUT],
            "(loop $l (global.set $g (i64.mul (global.get $g) (i64.const 31))) (br $l))",
        ),
        body("deep recursion", &[TRAP], "(drop (call $again (i64.const 0)))"),
        with(
            "mutual recursion over a table",
            &[TRAP],
            "(module (type $f (func (param i64) (result i64))) (table 2 2 funcref) (elem (i32.const 0) $a $b)
             (func $a (type $f) (i64.add (call_indirect (type $f) (local.get 0) (i32.const 1)) (i64.const 1)))
             (func $b (type $f) (i64.add (call_indirect (type $f) (local.get 0) (i32.const 0)) (i64.const 1)))
             (func (export \"run\") (drop (call $a (i64.const 1)))))",
        ),
        with(
            "a recursion with large frames",
            &[TRAP],
            &format!(
                "(module (func $f (param i64) (result i64) {} (local.set 1 (call $f (local.get 0))) {} (local.get 1))
                 (func (export \"run\") (drop (call $f (i64.const 1)))))",
                times(1000, "(local i64)"),
                times(999, "(local.set 1 (i64.add (local.get 1) (local.get #)))"),
            ),
        ),
        body("division by zero", &[TRAP], "(drop (i64.div_u (i64.const 1) (local.get $i)))"),
        body("unreachable", &[TRAP], "unreachable"),
        body("an empty place of a table", &[TRAP], "(call_indirect (type $none) (i32.const 5))"),
        body("a place beyond a table", &[TRAP], "(call_indirect (type $none) (i32.const -1))"),
        body(
            "one long instruction after the other",
            // Where memory is fast, the fuel for its bytes is used up first.
            &[TIMEOUT, OUT_OF_FUEL],
            "(drop (memory.grow (i32.const 900)))
             (loop $l (memory.fill (i32.const 0) (i32.const 7) (i32.const 59000000)) (br $l))",
        ),
        body(
            "copies of a whole memory",
            // Where memory is fast, the fuel for its bytes is used up first.
            &[TIMEOUT, OUT_OF_FUEL],
            "(drop (memory.grow (i32.const 900)))
             (loop $l (memory.copy (i32.const 1) (i32.const 0) (i32.const 59000000)) (br $l))",
        ),
    ]
}

fn memory() -> Vec<Hostile> {
    vec![
        body(
            "memory.grow to the end",
            &[TRAP],
            "(if (i32.eq (memory.grow (i32.const -1)) (i32.const -1)) (then unreachable))",
        ),
        body(
            "memory.grow until it is refused, every page touched",
            &[TIMEOUT],
            "(loop $l (local.set $n (memory.grow (i32.const 1)))
               (if (i32.ne (local.get $n) (i32.const -1))
                 (then (i64.store (i32.mul (local.get $n) (i32.const 65536)) (i64.const -1)))) (br $l))",
        ),
        body(
            "table.grow to the end",
            &[TRAP],
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const -1)) (i32.const -1)) (then unreachable))",
        ),
        body(
            "table.grow until it is refused",
            &[TIMEOUT],
            "(loop $l (drop (table.grow $t (ref.null func) (i32.const 100))) (br $l))",
        ),
        body("a load beyond memory", &[TRAP], "(drop (i64.load (i32.const -8)))"),
        body("a load beyond memory by its offset", &[TRAP], "(drop (i64.load offset=4294967295 (i32.const 65535)))"),
        body("a fill beyond memory", &[TRAP], "(memory.fill (i32.const 65535) (i32.const 1) (i32.const 2))"),
        body("a copy that wraps", &[TRAP], "(memory.copy (i32.const -1) (i32.const 0) (i32.const 65535))"),
        with("a memory larger than allowed", &[DENIED], r#"(module (memory 1025) (func (export "run")))"#),
        with("a memory of 4 GiB", &[DENIED], r#"(module (memory 65536) (func (export "run")))"#),
        with("a table larger than allowed", &[DENIED], r#"(module (table 4294967295 funcref) (func (export "run")))"#),
        with(
            "all memory from the start, and all of it touched",
            &[OK],
            r#"(module (memory 1024 1024) (func (export "run")
               (memory.fill (i32.const 0) (i32.const 165) (i32.const 67108864))))"#,
        ),
    ]
}

fn declared() -> Vec<Hostile> {
    let run = r#"(func (export "run"))"#;
    vec![
        with("10,000 memories", &[DENIED], &format!("(module {} {run})", times(10_000, "(memory 0)"))),
        with("10,000 tables", &[DENIED], &format!("(module {} {run})", times(10_000, "(table 0 funcref)"))),
        with("10,000 globals", &[DENIED], &format!("(module {} {run})", times(10_000, "(global i32 (i32.const #))"))),
        with("20,000 types", &[DENIED], &{
            let results = |i: usize| times(i % 97, "i32") + &times(i % 89, "i64") + &times(i % 5, "f32");
            let types = (0..20_000).fold(String::new(), |mut all, i| {
                let _ = write!(all, "(type (func (param {})))", results(i));
                all
            });
            format!("(module {types} {run})")
        }),
        with(
            "2,000 exports",
            &[DENIED],
            &format!("(module (func $f) {} {run})", times(2_000, "(export \"e#\" (func $f))")),
        ),
        with(
            "10,001 segments of data",
            &[DENIED],
            &format!("(module (memory 1) {} {run})", times(10_001, "(data (i32.const 0) \"a\")")),
        ),
        with(
            "a huge br_table",
            &[OK],
            &format!(
                r#"(module (func (export "run") (block $b (br_table {} $b (i32.const 9)))))"#,
                times(60_000, "$b")
            ),
        ),
        with(
            "blocks in blocks",
            &[OK, DENIED],
            &format!(r#"(module (func (export "run") {} {}))"#, times(20_000, "block"), times(20_000, "end")),
        ),
        with(
            "50,000 locals",
            &[DENIED],
            &format!(r#"(module (func (export "run") {}))"#, times(50_000, "(local i64)")),
        ),
        Hostile { name: "50,000 functions with 50 locals".into(), bytes: compile_bomb(50_000, 50, 1), ends: &[DENIED] },
        Hostile {
            name: "20,000 functions of some size".into(),
            bytes: compile_bomb(20_000, 16, 24),
            ends: &[OK, DENIED, TRAP],
        },
        Hostile {
            name: "functions that registers run out for".into(),
            bytes: compile_bomb(60, 4_000, 8_000),
            ends: &[OK, DENIED, TRAP],
        },
        with(
            "a data segment out of range",
            &[TRAP],
            &format!(r#"(module (memory 1) (data (i32.const 65536) "a") {run})"#),
        ),
        with(
            "a data segment at the end of addresses",
            &[TRAP],
            &format!(r#"(module (memory 1) (data (i32.const -1) "ab") {run})"#),
        ),
        with(
            "an element segment out of range",
            &[TRAP],
            &format!(r#"(module (table 1 funcref) (func $f) (elem (i32.const 9) $f) {run})"#),
        ),
        with(
            "an import that is not there",
            &[DENIED],
            &format!(r#"(module (import "extism:host/env" "open" (func (param i64))) {run})"#),
        ),
        with(
            "an import of WASI",
            &[DENIED],
            &format!(r#"(module (import "wasi_snapshot_preview1" "path_open" (func (param i32) (result i32))) {run})"#),
        ),
        with(
            "an import of another type",
            &[DENIED],
            &format!(r#"(module (import "extism:host/env" "alloc" (func (param i32))) {run})"#),
        ),
        with(
            "an import of the host's memory",
            &[DENIED],
            &format!(r#"(module (import "extism:host/env" "memory" (memory 1)) {run})"#),
        ),
        with(
            "200 imports",
            &[DENIED],
            &format!(
                "(module {} {run})",
                times(200, "(import \"extism:host/env\" \"alloc\" (func (param i64) (result i64)))")
            ),
        ),
        with("no entry", &[DENIED], r#"(module (func (export "go")))"#),
        with("an entry with parameters", &[DENIED], r#"(module (func (export "run") (param i32)))"#),
        with("a shared memory", &[DENIED], &format!("(module (memory 1 2 shared) {run})")),
        with("a 64-bit memory", &[DENIED], &format!("(module (memory i64 1) {run})")),
        with("a tag", &[DENIED], &format!("(module (tag) {run})")),
        with("a reference to a structure", &[DENIED], &format!("(module (type (struct (field i32))) {run})")),
        with("a tail call", &[DENIED], r#"(module (func $f (return_call $f)) (func (export "run") (call $f)))"#),
    ]
}

fn start() -> Vec<Hostile> {
    vec![
        with(
            "a start function that loops",
            &[TIMEOUT],
            r#"(module (func $s (loop $l (br $l))) (start $s) (func (export "run")))"#,
        ),
        with(
            "a start function that traps",
            &[TRAP],
            r#"(module (func $s unreachable) (start $s) (func (export "run")))"#,
        ),
        with(
            "a start function that takes all memory",
            &[TIMEOUT, OUT_OF_FUEL],
            r#"(module (memory 1) (func $s (loop $l (drop (memory.grow (i32.const 1)))
               (memory.fill (i32.const 0) (i32.const 1) (i32.mul (memory.size) (i32.const 65536))) (br $l)))
               (start $s) (func (export "run")))"#,
        ),
        with(
            "an initialiser that loops",
            &[TIMEOUT],
            r#"(module (func (export "_initialize") (loop $l (br $l))) (func (export "run")))"#,
        ),
    ]
}

/// Every host function that takes an address, with addresses and lengths that are not the module's.
fn out_of_range() -> Vec<Hostile> {
    let mut all = Vec::new();
    let addresses = ["-1", "1", "65535", "4294967295", "4294967296", "9223372036854775807", "-9223372036854775808"];
    for (function, call) in [
        ("load_u8", "(drop (call $load_u8 (i64.const @)))"),
        ("load_u64", "(drop (call $load_u64 (i64.const @)))"),
        ("store_u8", "(call $store_u8 (i64.const @) (i32.const 1))"),
        ("store_u64", "(call $store_u64 (i64.const @) (i64.const 1))"),
        ("input_load_u8", "(drop (call $input_load_u8 (i64.const @)))"),
        ("input_load_u64", "(drop (call $input_load_u64 (i64.const @)))"),
        ("output_set", "(call $output_set (i64.const @) (i64.const 8))"),
        ("output_set by its length", "(call $output_set (call $alloc (i64.const 8)) (i64.const @))"),
        ("var_get", "(drop (call $var_get (i64.const @)))"),
        ("var_set", "(call $var_set (call $alloc (i64.const 1)) (i64.const @))"),
        ("log_info", "(call $log_info (i64.const @))"),
        ("log", "(call $log (i64.const @) (i64.const @))"),
        ("kv_get", "(drop (call $kv_get (i64.const @)))"),
        ("kv_set", "(drop (call $kv_set (i64.const @) (i64.const @)))"),
        ("http_fetch", "(drop (call $http_fetch (i64.const @)))"),
        ("http_request", "(drop (call $http_request (i64.const @) (i64.const @)))"),
        ("infer", "(drop (call $infer (i64.const @)))"),
        ("call", "(drop (call $call (i64.const @)))"),
        ("random", "(drop (call $random (i64.const @)))"),
    ] {
        for (i, address) in addresses.into_iter().enumerate() {
            // A few of them each, all of them over all: a process for each takes its time.
            if (i + all.len()) % 3 != 0 && i != 0 {
                continue;
            }
            let name = format!("{function} at {address}");
            all.push(body(&name, &[TRAP, OK], &call.replace('@', address)));
        }
    }
    all.push(body(
        "a block after it was given back",
        &[TRAP],
        "(local.set $p (call $alloc (i64.const 8))) (call $free (local.get $p)) (call $log_info (local.get $p))",
    ));
    all.push(body("an error that is no block", &[OK], "(call $error_set (i64.const 12345))"));
    all.push(body(
        "alloc of everything",
        &[OK],
        "(drop (call $alloc (i64.const -1))) (drop (call $alloc (i64.const 4294967296)))",
    ));
    all
}

fn floods() -> Vec<Hostile> {
    vec![
        body("an output of 4 GiB", &[TRAP], "(call $output_set (call $input_offset) (i64.const 4294967296))"),
        body("blocks without end", &[TIMEOUT], "(loop $l (drop (call $alloc (i64.const 1))) (br $l))"),
        body("large blocks without end", &[OUT_OF_FUEL], "(loop $l (drop (call $alloc (i64.const 1000000))) (br $l))"),
        body(
            "a flood of log with escape sequences",
            &[TIMEOUT],
            "(local.set $p (call $alloc (i64.const 8)))
             (call $store_u64 (local.get $p) (i64.const 0x1b5d303b1b5b324a))
             (loop $l (call $log_info (local.get $p)) (br $l))",
        ),
        body("a flood of questions", &[TRAP], "(loop $l (drop (call $kv_get (i64.const 0))) (br $l))"),
        body(
            "variables without end",
            &[TRAP, TIMEOUT],
            "(loop $l (local.set $i (i64.add (local.get $i) (i64.const 1)))
               (local.set $p (call $alloc (i64.const 8))) (call $store_u64 (local.get $p) (local.get $i))
               (call $var_set (local.get $p) (local.get $p)) (call $free (local.get $p)) (br $l))",
        ),
        body("random bytes without end", &[TRAP, TIMEOUT], "(loop $l (drop (call $random (i64.const 65536))) (br $l))"),
        body("the time, again and again", &[TIMEOUT], "(loop $l (drop (call $now)) (br $l))"),
    ]
}

fn malformed() -> Vec<Hostile> {
    let whole = wat::parse_str(r#"(module (memory 1) (func (export "run") (loop (br 0))))"#).unwrap();
    let manifest = br#"{"wasm":[{"path":"/etc/passwd"}],"memory":{"max_pages":1}}"#;
    vec![
        raw("nothing", b""),
        raw("noise", b"\x7fELF\x02\x01\x01 not a module"),
        raw("a manifest", manifest),
        raw("a manifest with a pointer", br#"{"wasm":[{"ptr":140737488355328,"len":4096}]}"#),
        raw("text", b"(module (func (export \"run\")))"),
        raw("a component", b"\0asm\x0d\0\x01\0"),
        raw("half a module", &whole[..whole.len() / 2]),
        raw("a section longer than the module", &[HEAD, &[1, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat()),
        raw("a vector of 2^32-1 types", &[HEAD, &section(1, &[0xff, 0xff, 0xff, 0xff, 0x0f])].concat()),
        raw("a function without code", &[HEAD, &section(1, &[1, 0x60, 0, 0]), &section(3, &[1, 0])].concat()),
    ]
}
