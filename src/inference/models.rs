//! The models this node can ask about: their files, opened once.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use quelea_engine::{
    Gguf, GgufError, Manifest, Span, Stage, StageOptions, template::ChatTemplate, tokenizer::Tokenizer,
};
use quelea_wire::{ErrorCode, ModelId};
use tokio::sync::Mutex;

use super::types::InferError;
use crate::demo::DEMO_GGUF;

/// The name of the embedded model.
pub(crate) const DEMO: &str = "demo";

/// Files kept open for requests. The ends of a model (embedding and head) may take hundreds of megabytes.
const MAX_OPEN: usize = 4;

/// A model file with its identity.
#[derive(Debug, Clone)]
pub(crate) struct ModelFile {
    pub(crate) name: String,
    pub(crate) gguf: Gguf,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) id: ModelId,
}

impl ModelFile {
    /// Opens `demo` or a GGUF file and hashes it. Blocking: takes a second per gigabyte or so.
    pub(crate) fn open(reference: &str) -> Result<Self, InferError> {
        let gguf = open_gguf(reference)?;
        let manifest = Manifest::from_gguf(&gguf).map_err(|e| unusable(reference, &e))?;
        let id = ModelId(manifest.id());
        Ok(Self { name: reference.into(), gguf, manifest: Arc::new(manifest), id })
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> u16 {
        u16::try_from(self.manifest.n_layers).unwrap_or(u16::MAX)
    }
}

/// Opens `demo` or a GGUF file.
pub(crate) fn open_gguf(reference: &str) -> Result<Gguf, InferError> {
    let gguf = if reference == DEMO { Gguf::from_static(DEMO_GGUF) } else { Gguf::open(Path::new(reference)) };
    gguf.map_err(|error| match &error {
        GgufError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => missing(reference),
        _ => unusable(reference, &error),
    })
}

/// A file that is there and will not do.
pub(crate) fn unusable(reference: &str, error: &dyn std::fmt::Display) -> InferError {
    let place = if reference == DEMO { "the embedded model".to_owned() } else { format!("{reference:?}") };
    InferError::new(ErrorCode::ModelFile, format!("{place} cannot be used: {error}")).hint(
        "pass a complete GGUF file of a supported family; one that was cut off or damaged on its way must be fetched again",
    )
}

fn missing(reference: &str) -> InferError {
    let message = format!("there is no file {reference:?}, nor a model of that name");
    InferError::new(ErrorCode::ModelUnknown, message).hint("pass a GGUF file, a model id of 64 hex digits, or 'demo'")
}

/// What the coordinator needs of a model: everything but the layers.
pub(crate) struct Ends {
    pub(crate) file: ModelFile,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) stage: Stage,
    /// How the layers are computed when this process runs them.
    pub(crate) compute: StageOptions,
}

impl Ends {
    /// Loads tokenizer, template, embedding and head. Blocking.
    pub(crate) fn load(file: ModelFile, compute: StageOptions) -> Result<Self, InferError> {
        let tokenizer = Tokenizer::from_gguf(&file.gguf).map_err(|e| unusable(&file.name, &e))?;
        let template = ChatTemplate::from_gguf(&file.gguf, &tokenizer).map_err(|e| unusable(&file.name, &e))?;
        let stage = Stage::load_with(&file.gguf, Span::ends(), &compute).map_err(|e| unusable(&file.name, &e))?;
        Ok(Self { file, tokenizer, template, stage, compute })
    }
}

/// Opens models on demand and keeps the last few.
pub(crate) struct Models {
    compute: StageOptions,
    /// Most recently used last. The lock is held while a file is opened, so that two requests do not load it twice.
    open: Mutex<Vec<(Source, Arc<Ends>)>>,
    /// Files that this node serves, by which an id alone finds its file.
    served: std::sync::Mutex<Vec<ModelFile>>,
}

/// Where a model came from, and which edition of the file it was.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Demo,
    File { path: PathBuf, len: u64, modified: Option<std::time::SystemTime> },
}

impl Models {
    /// No models yet; those to come are computed like this.
    pub(crate) fn new(compute: StageOptions) -> Self {
        Self { compute, open: Mutex::default(), served: std::sync::Mutex::default() }
    }

    /// Remembers a file that this node serves layers of.
    pub(crate) fn add_served(&self, file: ModelFile) {
        let mut served = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.retain(|known| known.id != file.id);
        served.push(file);
    }

    /// The ends of the model that `reference` names: `demo`, a file, or the id of a model whose file is known here.
    pub(crate) async fn ends(&self, reference: &str) -> Result<Arc<Ends>, InferError> {
        let reference = self.resolve(reference).await?;
        let source = source_of(&reference).await?;
        let mut open = self.open.lock().await;
        if let Some(at) = open.iter().position(|(known, _)| *known == source) {
            let entry = open.remove(at);
            let ends = entry.1.clone();
            open.push(entry);
            return Ok(ends);
        }
        let compute = self.compute;
        let ends = tokio::task::spawn_blocking(move || Ends::load(ModelFile::open(&reference)?, compute))
            .await
            .map_err(|e| InferError::new(ErrorCode::Internal, format!("loading the model failed: {e}")))??;
        let ends = Arc::new(ends);
        if open.len() >= MAX_OPEN {
            open.remove(0);
        }
        open.push((source, ends.clone()));
        Ok(ends)
    }

    /// Turns an id into the name of the file it belongs to.
    async fn resolve(&self, reference: &str) -> Result<String, InferError> {
        let Ok(id) = reference.parse::<ModelId>() else { return Ok(reference.into()) };
        let served = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(file) = served.into_iter().find(|file| file.id == id) {
            return Ok(file.name);
        }
        let demo = tokio::task::spawn_blocking(|| ModelFile::open(DEMO))
            .await
            .map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))??;
        if demo.id == id {
            return Ok(DEMO.into());
        }
        Err(InferError::new(
            ErrorCode::ModelFileNeeded,
            format!(
                "model {id} is known by its id only: this node needs its GGUF file for tokenizer, embedding and head"
            ),
        )
        .hint("pass the file: --model path/to/model.gguf"))
    }
}

async fn source_of(reference: &str) -> Result<Source, InferError> {
    if reference == DEMO {
        return Ok(Source::Demo);
    }
    let path = PathBuf::from(reference);
    match tokio::fs::metadata(&path).await {
        Ok(meta) if meta.is_file() => Ok(Source::File { path, len: meta.len(), modified: meta.modified().ok() }),
        Ok(_) => Err(InferError::new(ErrorCode::ModelFile, format!("{reference:?} is not a file"))
            .hint("pass a GGUF file, a model id, or 'demo'")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(reference)),
        Err(error) => Err(InferError::new(ErrorCode::ModelFile, format!("{reference:?} cannot be read: {error}"))),
    }
}
