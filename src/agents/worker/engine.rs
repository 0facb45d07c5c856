//! The one engine there is: wasmtime's line with long-term support, compiling with Cranelift. See `docs/adr/0040`.

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, Linker, Module, OptLevel, PoolingAllocationConfig,
    ResourceLimiter, Store, Trap,
};

use super::{
    abi,
    guest::Guest,
    runtime::{Ended, Program, Ran, Runtime},
};
use crate::agents::limits::{Limits, MEMORY_MAX, OUTPUT_MAX, STACK, TABLE_ELEMENTS, TABLES};

/// Words of a trap that are passed on.
const MESSAGE_MAX: usize = 2_048;

/// What the module lives with, and how much memory it may have.
pub(super) struct Held {
    pub(super) guest: Guest,
    memory: usize,
}

impl ResourceLimiter for Held {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.memory)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Wasmtime {
    engine: Engine,
}

impl Wasmtime {
    /// Reserves the addresses of one instance, whatever module comes.
    pub(super) fn new() -> wasmtime::Result<Self> {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(1)
            .total_memories(1)
            .total_tables(TABLES)
            .max_memories_per_module(1)
            .max_tables_per_module(TABLES)
            .max_core_instance_size(4 << 20)
            .table_elements(TABLE_ELEMENTS)
            .max_memory_size(MEMORY_MAX)
            .max_unused_warm_slots(0)
            .pagemap_scan(Enabled::No);
        let mut config = Config::new();
        config
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
            .cranelift_opt_level(OptLevel::Speed)
            // The same result on every machine, for those who compare.
            .cranelift_nan_canonicalization(true)
            .consume_fuel(true)
            .epoch_interruption(true)
            .max_wasm_stack(STACK)
            .memory_reservation(MEMORY_MAX as u64)
            .memory_reservation_for_growth(0)
            .memory_guard_size(64 << 10)
            // Would take a file descriptor.
            .memory_init_cow(false)
            .wasm_simd(true)
            .wasm_bulk_memory(true)
            .wasm_multi_value(true)
            .wasm_extended_const(true)
            .wasm_relaxed_simd(false)
            .wasm_tail_call(false)
            .wasm_multi_memory(false)
            .wasm_memory64(false)
            .wasm_custom_page_sizes(false)
            .wasm_wide_arithmetic(false);
        Ok(Self { engine: Engine::new(&config)? })
    }

    /// What ends a run whose time is over.
    pub(super) fn interrupter(&self) -> impl Fn() + Send + 'static {
        let engine = self.engine.clone();
        move || engine.increment_epoch()
    }
}

impl Runtime for Wasmtime {
    fn compile(&self, module: &[u8]) -> Result<Box<dyn Program>, String> {
        // `from_binary` takes no text, whatever features are on.
        let module = Module::from_binary(&self.engine, module)
            .map_err(|e| format!("the module cannot be compiled: {}", short(&format!("{e:#}"))))?;
        Ok(Box::new(Compiled { module }))
    }
}

struct Compiled {
    module: Module,
}

impl Program for Compiled {
    fn run(self: Box<Self>, entry: &str, limits: Limits, guest: Guest) -> Ran {
        let engine = self.module.engine().clone();
        let mut store = Store::new(&engine, Held { guest, memory: limits.memory });
        store.limiter(|held| held);
        store.set_epoch_deadline(1);
        if let Err(error) = store.set_fuel(limits.fuel) {
            return Ran::refused(error.to_string());
        }
        let mut linker = Linker::new(&engine);
        if let Err(error) = abi::define(&mut linker) {
            return Ran::refused(format!("the host functions cannot be defined: {error}"));
        }
        store.data().guest.clock.set(limits.deadline());
        let called = call(&mut store, &linker, &self.module, entry);
        let fuel = limits.fuel.saturating_sub(store.get_fuel().unwrap_or_default());
        let held = store.into_data();
        let said = held.guest.error.and_then(|at| held.guest.arena.block(at)).map(text);
        let (ended, message) = match (called, said) {
            (Ok(0), None) => (Ended::Ok, String::new()),
            (Ok(_), Some(said)) => (Ended::Failed, said),
            (Ok(code), None) => (Ended::Failed, format!("{entry} returned {code}")),
            (Err(Failure::NotThere(said)), _) => (Ended::Refused, said),
            (Err(Failure::Trap(error)), said) => why(&error, said),
        };
        let output = if held.guest.output.len() <= OUTPUT_MAX { held.guest.output } else { Vec::new() };
        Ran { ended, fuel, message, output }
    }
}

enum Failure {
    NotThere(String),
    Trap(wasmtime::Error),
}

fn call(store: &mut Store<Held>, linker: &Linker<Held>, module: &Module, entry: &str) -> Result<i32, Failure> {
    let ready = linker.instantiate_pre(module).map_err(|e| Failure::NotThere(short(&format!("{e:#}"))))?;
    // A start function runs here.
    let instance = ready.instantiate(&mut *store).map_err(Failure::Trap)?;
    // What compilers for reactors have run first.
    for name in ["_initialize", "__wasm_call_ctors"] {
        if let Ok(first) = instance.get_typed_func::<(), ()>(&mut *store, name) {
            first.call(&mut *store, ()).map_err(Failure::Trap)?;
            break;
        }
    }
    if let Ok(entry) = instance.get_typed_func::<(), i32>(&mut *store, entry) {
        return entry.call(&mut *store, ()).map_err(Failure::Trap);
    }
    match instance.get_typed_func::<(), ()>(&mut *store, entry) {
        Ok(entry) => entry.call(&mut *store, ()).map(|()| 0).map_err(Failure::Trap),
        Err(_) => Err(Failure::NotThere(format!("the module exports no function {entry:.64} without parameters"))),
    }
}

/// How a run ended that did not return.
fn why(error: &wasmtime::Error, said: Option<String>) -> (Ended, String) {
    let ended = match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Ended::OutOfFuel,
        Some(Trap::Interrupt) => Ended::Timeout,
        _ => Ended::Trapped,
    };
    // The root of it; what comes before names addresses of code.
    let cause = said.unwrap_or_else(|| short(&error.root_cause().to_string()));
    (ended, cause)
}

fn text(bytes: &[u8]) -> String {
    short(&String::from_utf8_lossy(bytes))
}

fn short(text: &str) -> String {
    text.chars().take(MESSAGE_MAX).collect()
}
