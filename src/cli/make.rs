//! Commands that write model files.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use clap::Args;
use quelea_engine::{
    gguf::write::WriteError,
    quantize::{Mix, Plan, QuantizeError},
    synth::{ModelShape, SHAPES, Synth},
};
use quelea_wire::ErrorCode;
use serde_json::json;

use super::{
    args::Global,
    exit::{CliError, Exit},
    output::{data_line, note},
};
use crate::inference::models::{not_quantised, open_gguf};

#[derive(Debug, Args)]
pub(crate) struct SynthArgs {
    /// The shape; --list shows them
    #[arg(required_unless_present = "list", value_parser = parse_shape)]
    shape: Option<&'static ModelShape>,
    /// The file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Types of the weights, by llama.cpp's names: f32, f16, q8_0, q4_0, q4_k_m, q6_k …
    #[arg(long = "type", value_name = "MIX", default_value = "q4_k_m", value_parser = parse_mix)]
    mix: Mix,
    /// Another seed gives other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a file of that name
    #[arg(short, long)]
    force: bool,
    /// Show the shapes there are
    #[arg(long, conflicts_with_all = ["shape", "output"])]
    list: bool,
}

pub(crate) fn parse_shape(text: &str) -> Result<&'static ModelShape, String> {
    let names = || SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
    ModelShape::named(text).ok_or_else(|| format!("there is no shape of that name; there are {}", names()))
}

pub(crate) fn parse_mix(text: &str) -> Result<Mix, String> {
    Mix::from_name(text)
        .ok_or_else(|| format!("not a mix of types; there are {}", Mix::names().collect::<Vec<_>>().join(", ")))
}

/// `quelea model synth`.
pub(super) async fn synth(global: &Global, args: SynthArgs) -> Result<(), CliError> {
    let (Some(shape), Some(output)) = (args.shape, args.output) else { return list(global, args.mix) };
    let model = Synth::new(shape, args.mix, args.seed).map_err(write_error)?;
    let size = model.size();
    check_space(&output, size)?;
    let started = Instant::now();
    let (path, force) = (output.clone(), args.force);
    let mut bar = Bar::new(global, size);
    interruptible(move |stop| {
        model
            .write_file(&path, force, |done| {
                bar.show(done);
                if stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
            })
            .map_err(write_error)
    })
    .await?;
    report(global, &output, shape.name, args.mix, size, started)
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// A GGUF file of F32, F16 or BF16 weights, or a folder of safetensors
    file: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Types of the weights, by llama.cpp's names: q8_0, q4_0, q4_k_m, q6_k …
    #[arg(long = "type", value_name = "MIX", default_value = "q4_k_m", value_parser = parse_mix)]
    mix: Mix,
    /// Replace a file of that name
    #[arg(short, long)]
    force: bool,
}

/// `quelea model quantize`.
pub(super) async fn quantize(global: &Global, args: QuantizeArgs) -> Result<(), CliError> {
    let started = Instant::now();
    let gguf = open_gguf(&args.file)?;
    let refused = |error: QuantizeError| CliError::from(not_quantised(&args.file, &error));
    let size = Plan::new(&gguf, args.mix).map_err(refused)?.size();
    check_space(&args.output, size)?;
    let (file, path, mix, force) = (args.file.clone(), args.output.clone(), args.mix, args.force);
    let mut bar = Bar::new(global, size);
    interruptible(move |stop| {
        let plan = Plan::new(&gguf, mix).map_err(|error| CliError::from(not_quantised(&file, &error)))?;
        plan.write_file(&path, force, |done| {
            bar.show(done);
            if stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
        })
        .map_err(write_error)
    })
    .await?;
    report(global, &args.output, &args.file, args.mix, size, started)
}

fn list(global: &Global, mix: Mix) -> Result<(), CliError> {
    let mut shapes = Vec::new();
    for shape in SHAPES {
        let bytes = Synth::new(shape, mix, 0).map_err(write_error)?.size();
        shapes.push((shape, bytes));
    }
    if global.json {
        let shapes: Vec<_> = shapes
            .iter()
            .map(|(shape, bytes)| json!({ "name": shape.name, "architecture": shape.architecture, "bytes": bytes }))
            .collect();
        data_line(&json!({ "schema": "quelea.shapes/v1", "type": mix.name(), "shapes": shapes }).to_string())?;
    } else {
        for (shape, bytes) in shapes {
            let line = format!("{:<16} {:<10} {:>3} layers", shape.name, shape.architecture, shape.layers);
            data_line(&format!("{line}  {:>8.0} MB as {}", megabytes(bytes), mix.name()))?;
        }
    }
    Ok(())
}

fn report(global: &Global, path: &Path, name: &str, mix: Mix, bytes: u64, started: Instant) -> Result<(), CliError> {
    let seconds = started.elapsed().as_secs_f64();
    if global.json {
        let file = path.display().to_string();
        let document = json!({
            "schema": "quelea.written/v1", "file": file, "name": name, "type": mix.name(), "bytes": bytes,
            "seconds": seconds,
        });
        return data_line(&document.to_string());
    }
    data_line(&format!("{}: {name}, {}, {:.0} MB in {seconds:.1} s", path.display(), mix.name(), megabytes(bytes)))
}

/// Runs blocking work that looks at a flag now and then; Ctrl-C raises the flag and waits for the work to clean up.
async fn interruptible(
    work: impl FnOnce(&AtomicBool) -> Result<(), CliError> + Send + 'static,
) -> Result<(), CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let mut task = tokio::task::spawn_blocking(move || work(&seen));
    let result = tokio::select! {
        result = &mut task => result,
        _ = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            task.await
        }
    };
    result.map_err(|e| CliError::new(ErrorCode::Internal, e.to_string()))?
}

/// The error by which work that was told to stop ends.
fn interrupted() -> io::Error {
    io::Error::other(Interrupted)
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

fn write_error(error: WriteError) -> CliError {
    let message = error.to_string();
    match error {
        WriteError::Exists { .. } => CliError::new(ErrorCode::Usage, message).hint("--force replaces it"),
        WriteError::Io { source, .. } if source.get_ref().is_some_and(|inner| inner.is::<Interrupted>()) => {
            CliError::new(ErrorCode::Cancelled, message).exit(Exit::Interrupted)
        }
        // Weights that cannot be stored in the types asked for.
        WriteError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
            CliError::new(ErrorCode::ModelFile, source.to_string())
        }
        WriteError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            CliError::new(ErrorCode::StorageFull, message)
        }
        _ => CliError::new(ErrorCode::Usage, message).exit(Exit::Failed),
    }
}

/// Refuses at once what the disk has no room for.
fn check_space(path: &Path, bytes: u64) -> Result<(), CliError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Where the system does not say, the write itself will.
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < bytes {
        let message = format!(
            "{} needs {:.0} MB, but its disk has {:.0} MB free",
            path.display(),
            megabytes(bytes),
            megabytes(free)
        );
        return Err(CliError::new(ErrorCode::StorageFull, message).hint("free some space, or write to another disk"));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A line on a terminal's stderr that grows with the work.
struct Bar {
    shown: bool,
    total: u64,
    /// Columns filled last.
    columns: u64,
}

impl Bar {
    const WIDTH: u64 = 40;

    fn new(global: &Global, total: u64) -> Self {
        let shown = !global.json && io::stderr().is_terminal();
        Self { shown, total: total.max(1), columns: u64::MAX }
    }

    fn show(&mut self, done: u64) {
        let columns = (done.saturating_mul(Self::WIDTH) / self.total).min(Self::WIDTH);
        if !self.shown || columns == self.columns {
            return;
        }
        self.columns = columns;
        let filled = "#".repeat(usize::try_from(columns).unwrap_or(0));
        let width = usize::try_from(Self::WIDTH).unwrap_or(0);
        let _ = write!(io::stderr().lock(), "\r[{filled:<width$}] {:>3} %", columns.saturating_mul(100) / Self::WIDTH);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown && self.columns != u64::MAX {
            note("");
        }
    }
}
