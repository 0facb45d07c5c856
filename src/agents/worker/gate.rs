//! What a module declares, read before any of it is compiled: anything odd is refused in words.

use serde::{Deserialize, Serialize};
use wasmparser::{BinaryReaderError, Parser, Payload, TypeRef, Validator, WasmFeatures};

use crate::agents::limits::{MODULE_MAX, TABLE_ELEMENTS, TABLES};

/// Kinds of things a module may declare, and how many of each. A module of 8 MiB from an ordinary compiler has some
/// thousands of functions; ten times that compiles in seconds.
const FUNCTIONS: u32 = 20_000;
const TYPES: u32 = 10_000;
const IMPORTS: u32 = 128;
const EXPORTS: u32 = 1_000;
const GLOBALS: u32 = 1_000;
const SEGMENTS: u32 = 10_000;
/// Local variables of one function: registers are allocated in more than linear time.
const LOCALS: u32 = 5_000;
/// Bytes of one function's code, for the same reason.
const BODY: usize = 256 << 10;

/// The languages' kits import from here.
pub(crate) const ENV: &str = "extism:host/env";
/// Host functions of ours.
pub(crate) const USER: &str = "extism:host/user";

/// What a module asks for and offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    /// Host functions that it imports.
    pub(crate) imports: Vec<String>,
    /// Functions that can be called.
    pub(crate) exports: Vec<String>,
}

/// What modules may use: what the ordinary compilers emit, and nothing whose result may differ between machines.
fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::SIMD
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::FLOATS
}

/// Reads a module through.
pub(super) fn check(module: &[u8], memory: usize) -> Result<Wishes, String> {
    if module.len() > MODULE_MAX {
        return Err(format!("the module has {} bytes; at most {MODULE_MAX} are taken", module.len()));
    }
    if !module.starts_with(b"\0asm\x01\0\0\0") {
        return Err("this is no WebAssembly module: it does not begin as one does".into());
    }
    let malformed = |e: BinaryReaderError| format!("the module is malformed: {e}");
    let mut wishes = Wishes::default();
    let mut parser = Parser::new(0);
    parser.set_features(features());
    for payload in parser.parse_all(module) {
        declared(&payload.map_err(malformed)?, memory, &mut wishes).map_err(|refused| match refused {
            Refused::Malformed(e) => malformed(e),
            Refused::TooMuch(said) => said,
        })?;
    }
    Validator::new_with_features(features()).validate_all(module).map_err(malformed)?;
    Ok(wishes)
}

enum Refused {
    Malformed(BinaryReaderError),
    TooMuch(String),
}

impl From<BinaryReaderError> for Refused {
    fn from(e: BinaryReaderError) -> Self {
        Self::Malformed(e)
    }
}

fn most(what: &str, declared: u32, most: u32) -> Result<(), Refused> {
    if declared > most {
        return Err(Refused::TooMuch(format!("the module declares {declared} {what}; at most {most} are taken")));
    }
    Ok(())
}

fn declared(payload: &Payload<'_>, memory: usize, wishes: &mut Wishes) -> Result<(), Refused> {
    match payload {
        Payload::TypeSection(section) => most("types", section.count(), TYPES),
        Payload::FunctionSection(section) => most("functions", section.count(), FUNCTIONS),
        Payload::GlobalSection(section) => most("globals", section.count(), GLOBALS),
        Payload::ElementSection(section) => most("element segments", section.count(), SEGMENTS),
        Payload::DataSection(section) => most("data segments", section.count(), SEGMENTS),
        Payload::MemorySection(section) => {
            most("memories", section.count(), 1)?;
            for one in section.clone() {
                let bytes = one?.initial.saturating_mul(64 << 10);
                if bytes > memory as u64 {
                    let said = format!("the module begins with {bytes} bytes of memory; it may have {memory}");
                    return Err(Refused::TooMuch(said));
                }
            }
            Ok(())
        }
        Payload::TableSection(section) => {
            most("tables", section.count(), TABLES)?;
            for one in section.clone() {
                let initial = u32::try_from(one?.ty.initial).unwrap_or(u32::MAX);
                most("elements in a table", initial, u32::try_from(TABLE_ELEMENTS).unwrap_or(u32::MAX))?;
            }
            Ok(())
        }
        Payload::ImportSection(section) => {
            most("imports", section.count(), IMPORTS)?;
            for one in section.clone().into_imports() {
                let one = one?;
                if !matches!(one.module, ENV | USER) {
                    let said = format!("the module imports {:.64}.{:.64}, which is not there", one.module, one.name);
                    return Err(Refused::TooMuch(said));
                }
                if !matches!(one.ty, TypeRef::Func(_)) {
                    return Err(Refused::TooMuch(format!("the module imports {:.64}, which is no function", one.name)));
                }
                wishes.imports.push(one.name.chars().take(64).collect());
            }
            Ok(())
        }
        Payload::ExportSection(section) => {
            most("exports", section.count(), EXPORTS)?;
            for one in section.clone() {
                let one = one?;
                if one.kind == wasmparser::ExternalKind::Func && wishes.exports.len() < 64 {
                    wishes.exports.push(one.name.chars().take(64).collect());
                }
            }
            Ok(())
        }
        Payload::CodeSectionEntry(body) => {
            let bytes = body.range().len();
            if bytes > BODY {
                return Err(Refused::TooMuch(format!(
                    "a function has {bytes} bytes of code; at most {BODY} are taken"
                )));
            }
            let mut locals = 0_u32;
            for local in body.get_locals_reader()? {
                locals = locals.saturating_add(local?.0);
            }
            most("local variables in one function", locals, LOCALS)
        }
        _ => Ok(()),
    }
}
