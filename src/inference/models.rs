//! The models this node can ask about: their files, opened once.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use quelea_engine::{
    Gguf, GgufError, Hparams, Manifest, Outline, Runner, Span, Stage, StageOptions,
    huggingface::{self, HfError},
    quantize::{Mix, QuantizeError},
    runner::{PrefixKeys, pages_for},
    template::ChatTemplate,
    tokenizer::Tokenizer,
};
use quelea_wire::{ErrorCode, ModelId, SpanRange};
use tokio::sync::{Mutex, OnceCell, watch};

use super::{
    follow::Grammars,
    memory::{self, Needed},
    serve::{self, Served},
    types::{InferError, RequestProfile},
};
use crate::{
    demo::DEMO_GGUF,
    weights::{
        Parts,
        fetch::{Progress, Puller, STALL_OF_REQUEST, blocking},
    },
};

/// The name of the embedded model.
pub(crate) const DEMO: &str = "demo";

/// Models kept open for requests, with the weights that were needed of them.
const MAX_OPEN: usize = 4;

/// The profile whose residual stream is rounded, in the engine's words.
const EXACT_BF16: &str = "exact-bf16";

/// A model file with its identity.
#[derive(Debug, Clone)]
pub(crate) struct ModelFile {
    pub(crate) name: String,
    pub(crate) gguf: Gguf,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) id: ModelId,
    /// Its tensors and their hashes.
    pub(crate) outline: Arc<Outline>,
}

impl ModelFile {
    /// Opens `demo` or a GGUF file and hashes it. Blocking: takes a second per gigabyte or so.
    pub(crate) fn open(reference: &str) -> Result<Self, InferError> {
        Self::of(reference, open_gguf(reference)?)
    }

    /// Hashes a file that is open. Blocking.
    fn of(reference: &str, gguf: Gguf) -> Result<Self, InferError> {
        // What cannot be computed need not be read.
        Hparams::from_gguf(&gguf).map_err(|e| unusable(reference, &e))?;
        let outline = Outline::of(&gguf).map_err(|e| unusable(reference, &e))?;
        let manifest = Manifest::from_outline(&outline, &gguf).map_err(|e| unusable(reference, &e))?;
        let id = ModelId(manifest.id());
        Ok(Self { name: reference.into(), gguf, manifest: Arc::new(manifest), id, outline: Arc::new(outline) })
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> u16 {
        u16::try_from(self.manifest.n_layers).unwrap_or(u16::MAX)
    }
}

/// Stands between a model's name and the mix of types that it is quantised to while it opens: `folder@q4_k_m`.
const QUANTISED: char = '@';

/// `reference`, quantised to `mix` when it opens.
pub(crate) fn quantised(reference: &str, mix: Option<Mix>) -> String {
    mix.map_or_else(|| reference.to_owned(), |mix| format!("{reference}{QUANTISED}{}", mix.name()))
}

/// A reference's file or folder, and the mix that it is to be quantised to. A file whose own name ends like a mix is that
/// file.
fn parts(reference: &str) -> (&str, Option<Mix>) {
    if Path::new(reference).exists() {
        return (reference, None);
    }
    let split = reference.rsplit_once(QUANTISED).and_then(|(path, mix)| Some((path, Some(Mix::from_name(mix)?))));
    split.unwrap_or((reference, None))
}

/// Opens `demo`, a GGUF file or a folder of safetensors, quantised if the reference says so.
pub(crate) fn open_gguf(reference: &str) -> Result<Gguf, InferError> {
    let (name, mix) = parts(reference);
    let path = Path::new(name);
    let gguf = if name == DEMO {
        Gguf::from_static(DEMO_GGUF).map_err(|e| unusable(reference, &e))?
    } else if huggingface::is_folder(path) {
        huggingface::open(path).map_err(|e| folder_error(reference, &e))?
    } else {
        Gguf::open(path).map_err(|error| match &error {
            GgufError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => missing(reference),
            _ => unusable(reference, &error),
        })?
    };
    let Some(mix) = mix else { return Ok(gguf) };
    huggingface::quantised(&gguf, mix, &std::env::temp_dir(), |_, _| Ok(())).map_err(|e| folder_error(reference, &e))
}

fn folder_error(reference: &str, error: &HfError) -> InferError {
    match error {
        HfError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            let message = format!("there is no room for the quantised weights of {reference:?}: {error}");
            InferError::new(ErrorCode::StorageFull, message).hint("set TMPDIR to a folder on a larger disk")
        }
        HfError::Quantize(error) => not_quantised(reference, error),
        _ => unusable(reference, error),
    }
}

/// A model whose weights cannot be turned into the types asked for.
pub(crate) fn not_quantised(reference: &str, error: &QuantizeError) -> InferError {
    let message = format!("{:?} cannot be quantised: {error}", parts(reference).0);
    match error {
        QuantizeError::Already { .. } => InferError::new(ErrorCode::Usage, message)
            .hint("the file is whole and runs as it is: leave the quantisation out, or start from the model's F32, F16 or BF16 weights"),
        _ => InferError::new(ErrorCode::ModelFile, message),
    }
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

/// A model that requests may be answered with: its file and vocabulary, and its weights as far as they are needed here.
/// All requests share them.
pub(crate) struct Ends {
    pub(crate) file: ModelFile,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) hparams: Hparams,
    /// What keys of prompts are made with.
    salt: [u8; 32],
    /// How it is computed when this process does.
    compute: StageOptions,
    /// Embedding and head, for requests whose layers run elsewhere.
    ends: OnceCell<Runner>,
    /// The whole model, for requests that run here.
    whole: OnceCell<Runner>,
    /// So many of the first layers with the embedding, and of the last with the head, for requests that keep them here.
    outer: Mutex<Option<(u16, (Runner, Runner))>>,
    /// The vocabulary, for answers with a format.
    pub(super) grammars: OnceCell<Grammars>,
    /// Fetches what is missing of a model of the store: its file may have holes where its layers would be.
    stored: Option<Puller>,
}

impl Ends {
    /// Loads tokenizer and template. Blocking.
    fn load(
        file: ModelFile,
        compute: StageOptions,
        salt: [u8; 32],
        stored: Option<Puller>,
    ) -> Result<Self, InferError> {
        let tokenizer = Tokenizer::from_gguf(&file.gguf).map_err(|e| unusable(&file.name, &e))?;
        let template = ChatTemplate::from_gguf(&file.gguf, &tokenizer).map_err(|e| unusable(&file.name, &e))?;
        let hparams = Hparams::from_gguf(&file.gguf).map_err(|e| unusable(&file.name, &e))?;
        let (ends, whole, outer) = (OnceCell::new(), OnceCell::new(), Mutex::default());
        let grammars = OnceCell::new();
        Ok(Self { file, tokenizer, template, hparams, salt, compute, ends, whole, outer, grammars, stored })
    }

    /// A stage with embedding and head: the whole model where that is loaded anyway. What is missing of them is fetched.
    pub(crate) async fn ends(&self) -> Result<&Runner, InferError> {
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        let start = async || {
            let gguf = self.fetched(Parts::Ends).await.map_err(|error| self.without_ends(error))?;
            self.start(gguf, Span::ends()).await
        };
        self.ends.get_or_try_init(start).await
    }

    /// Stages with the embedding and the first `n` layers, and with the last `n` and the head: the whole model where that is
    /// loaded anyway. What is missing of them is fetched.
    pub(crate) async fn outer(&self, n: u16) -> Result<(Runner, Runner), InferError> {
        if let Some(whole) = self.whole.get() {
            return Ok((whole.clone(), whole.clone()));
        }
        let mut outer = self.outer.lock().await;
        if let Some((_, runners)) = outer.as_ref().filter(|(known, _)| *known == n) {
            return Ok(runners.clone());
        }
        let last = self.file.layers();
        let spans = [SpanRange::new(0, n), SpanRange::new(last.saturating_sub(n), last)];
        let [front, back] = spans.map(|span| span.map_err(|e| InferError::new(ErrorCode::Usage, e.to_string())));
        let (front, back) = (front?, back?);
        for parts in [Parts::Layers(front), Parts::Layers(back)] {
            self.fetched(parts).await?;
        }
        let gguf = self.fetched(Parts::Ends).await.map_err(|error| self.without_ends(error))?;
        let front = Span { layers: front.as_usize(), embedding: true, head: false };
        let back = Span { layers: back.as_usize(), embedding: false, head: true };
        let runners = (self.start(gguf.clone(), front).await?, self.start(gguf, back).await?);
        *outer = Some((n, runners.clone()));
        Ok(runners)
    }

    fn without_ends(&self, error: InferError) -> InferError {
        if error.error_code() != ErrorCode::NoRoute {
            return error;
        }
        let what = format!("no peer gives the embedding and head of model {}, which this node needs", self.file.id);
        InferError::new(ErrorCode::ModelFileNeeded, what)
            .hint("pass the file: --model path/to/model.gguf, or join peers that have it")
    }

    /// The model's file with these parts in it.
    async fn fetched(&self, parts: Parts) -> Result<Gguf, InferError> {
        let Some(puller) = &self.stored else { return Ok(self.file.gguf.clone()) };
        let (progress, _) = watch::channel(Progress::default());
        let kept = puller.pull(self.file.id, parts, STALL_OF_REQUEST, &progress).await?;
        // A file that was damaged is another one now.
        blocking(move || kept.gguf()).await?
    }

    /// Whether embedding and head are on this machine.
    pub(crate) fn has_ends(&self) -> bool {
        let loaded = self.whole.initialized() || self.ends.initialized();
        loaded || self.stored.as_ref().is_none_or(|puller| puller.shelf.has(self.file.id, Parts::Ends))
    }

    /// The numeric profile of a request that this node computes or has computed, in the engine's words.
    ///
    /// # Errors
    /// When it is not one of this node's.
    pub(crate) fn profile(&self, asked: RequestProfile) -> Result<&'static str, InferError> {
        match (asked, self.compute.profile()) {
            (RequestProfile::Own, own) => Ok(own),
            (RequestProfile::ExactBf16, "exact") => Ok(EXACT_BF16),
            (RequestProfile::ExactBf16, own) => {
                let message = format!(
                    "exact-bf16 is computed by the exact kernels with keys and values of f32, and this node computes with {own}"
                );
                Err(InferError::new(ErrorCode::ProfileMismatch, message)
                    .hint("leave --device and --kv at their defaults"))
            }
        }
    }

    /// Whether results depend on nothing but their input.
    pub(crate) fn is_exact(&self) -> bool {
        self.compute.is_exact()
    }

    /// A stage with all of the model.
    pub(crate) async fn whole(&self) -> Result<&Runner, InferError> {
        let start = async || {
            let gguf = self.fetched(Parts::All).await?;
            self.start(gguf, Span::whole(self.hparams.n_layers)).await
        };
        self.whole.get_or_try_init(start).await
    }

    /// Whether all layers are on this machine: of a model of the store some may not have been fetched.
    pub(crate) fn has_layers(&self) -> bool {
        self.stored.as_ref().is_none_or(|puller| puller.shelf.is_whole(self.file.id))
    }

    /// Whether the whole model is in memory.
    pub(crate) fn is_loaded(&self) -> bool {
        self.whole.initialized()
    }

    /// The names of the prompt's beginning, for stages of this profile.
    pub(crate) fn prefix_keys(&self, profile: &str, prompt: &[u32]) -> PrefixKeys {
        PrefixKeys::new(&self.salt, &self.file.id.0, profile, prompt)
    }

    async fn start(&self, gguf: Gguf, span: Span) -> Result<Runner, InferError> {
        let (name, compute) = (self.file.name.clone(), self.compute);
        memory::check(&name, Needed::of(&self.file.gguf, &self.hparams, &span, memory::ROWS.into()))?;
        let start = move || {
            let stage = Stage::load_with(&gguf, span, &compute).map_err(|e| unusable(&name, &e))?;
            // A session of the length that there is room for is taken, whatever half of the free memory is.
            let context = u32::try_from(stage.hparams().context_length).unwrap_or(u32::MAX);
            let mut config = serve::config(&stage, serve::half_of_free_memory());
            config.kv_pages = config.kv_pages.max(pages_for(context.min(memory::ROWS)));
            Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))
        };
        tokio::task::spawn_blocking(start).await.map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?
    }
}

/// Opens models on demand and keeps the last few.
pub(crate) struct Models {
    compute: StageOptions,
    /// Most recently used last. The lock is held while a file is opened, so that two requests do not load it twice.
    open: Mutex<Vec<(Source, Arc<Ends>)>>,
    /// Files that this node serves, by which an id alone finds its file; with their stages where those are whole.
    served: std::sync::Mutex<Vec<(ModelFile, Option<Runner>)>>,
    /// The secret of the node's own user.
    salt: [u8; 32],
    /// Models by id, on disk and from peers.
    puller: Puller,
    demo: OnceCell<ModelId>,
}

/// Where a model came from, and which edition of the file it was.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Demo,
    /// In the store of models.
    Stored(ModelId),
    File {
        path: PathBuf,
        mix: Option<Mix>,
        len: u64,
        modified: Option<std::time::SystemTime>,
    },
}

impl Models {
    /// No models yet; those to come are computed like this, and what is kept of prompts named with this secret.
    pub(crate) fn new(compute: StageOptions, salt: [u8; 32], puller: Puller) -> Self {
        let (open, served, demo) = (Mutex::default(), std::sync::Mutex::default(), OnceCell::new());
        Self { compute, open, served, salt, puller, demo }
    }

    /// Remembers a file that this node serves layers of.
    pub(crate) fn add_served(&self, served: &Served) {
        let whole = served.is_whole().then(|| served.runner.clone());
        let mut all = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|(known, _)| known.id != served.file.id);
        all.push((served.file.clone(), whole));
    }

    fn served(&self, id: ModelId) -> Option<(ModelFile, Option<Runner>)> {
        let served = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.iter().find(|(file, _)| file.id == id).cloned()
    }

    /// The model that `reference` names: `demo`, a file, or the id of a model whose file is known here.
    pub(crate) async fn ends(&self, reference: &str) -> Result<Arc<Ends>, InferError> {
        self.ends_for(reference, false).await
    }

    /// As [`Models::ends`], for a request that has the whole model run here if `whole`: one that does not fit in memory is
    /// refused before it is hashed, which takes a second per gigabyte.
    pub(crate) async fn ends_for(&self, reference: &str, whole: bool) -> Result<Arc<Ends>, InferError> {
        let ends = self.opened(reference, whole).await?;
        if let Some((_, Some(whole))) = self.served(ends.file.id) {
            // What is served need not be loaded again; where it has been already, it stays.
            let _ = ends.whole.set(whole);
        }
        Ok(ends)
    }

    /// Whether a whole model is in memory to be served, which may be the one asked for under another name.
    fn serves_whole(&self) -> bool {
        let served = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.iter().any(|(_, whole)| whole.is_some())
    }

    async fn opened(&self, reference: &str, whole: bool) -> Result<Arc<Ends>, InferError> {
        let reference = self.resolve(reference).await?;
        let stored = reference.parse::<ModelId>().ok();
        let source = match stored {
            Some(id) => Source::Stored(id),
            None => source_of(&reference).await?,
        };
        let mut open = self.open.lock().await;
        if let Some(at) = open.iter().position(|(known, _)| *known == source) {
            let entry = open.remove(at);
            let ends = entry.1.clone();
            open.push(entry);
            return Ok(ends);
        }
        let (compute, salt) = (self.compute, self.salt);
        let shelf = self.puller.shelf.clone();
        let puller = stored.map(|_| self.puller.clone());
        let check = whole && !self.serves_whole();
        let find = move || match stored {
            None => {
                let gguf = open_gguf(&reference)?;
                if check {
                    memory::check_whole(&reference, &gguf, memory::ROWS.into())?;
                }
                ModelFile::of(&reference, gguf)
            }
            Some(id) => shelf.model(id)?.ok_or_else(|| missing(&reference)),
        };
        let ends = tokio::task::spawn_blocking(move || Ends::load(find()?, compute, salt, puller))
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
        // What is served by its id may be some layers of it, without the ends.
        if let Some((file, _)) = self.served(id).filter(|(file, _)| file.name.parse::<ModelId>().is_err()) {
            return Ok(file.name);
        }
        if self.demo().await? == id {
            return Ok(DEMO.into());
        }
        // The tokenizer is what every request needs here; embedding and head may be computed elsewhere, as the layers are.
        let (progress, _) = watch::channel(Progress::default());
        match self.puller.pull(id, Parts::Tokenizer, STALL_OF_REQUEST, &progress).await {
            Ok(_) => Ok(reference.into()),
            Err(error) if error.error_code() == ErrorCode::NoRoute => Err(InferError::new(
                ErrorCode::ModelFileNeeded,
                format!("model {id} is known by its id only, and no peer gives its tokenizer, which this node needs"),
            )
            .hint("pass the file: --model path/to/model.gguf, or join peers that have it")),
            Err(error) => Err(error),
        }
    }

    /// The embedded model's id.
    pub(crate) async fn demo(&self) -> Result<ModelId, InferError> {
        let open = || async { blocking(|| ModelFile::open(DEMO)).await?.map(|file| file.id) };
        self.demo.get_or_try_init(open).await.copied()
    }

    /// What the models are pulled with.
    pub(crate) fn puller(&self) -> &Puller {
        &self.puller
    }
}

async fn source_of(reference: &str) -> Result<Source, InferError> {
    if reference == DEMO {
        return Ok(Source::Demo);
    }
    let (name, mix) = parts(reference);
    let path = PathBuf::from(name);
    // A folder's edition is that of its settings.
    let seen = if huggingface::is_folder(&path) { path.join("config.json") } else { path.clone() };
    match tokio::fs::metadata(&seen).await {
        Ok(meta) if meta.is_file() => Ok(Source::File { path, mix, len: meta.len(), modified: meta.modified().ok() }),
        Ok(_) => Err(InferError::new(ErrorCode::ModelFile, format!("{reference:?} is not a file"))
            .hint("pass a GGUF file, a folder with config.json, a model id, or 'demo'")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(reference)),
        Err(error) => Err(InferError::new(ErrorCode::ModelFile, format!("{reference:?} cannot be read: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_may_name_a_mix() {
        assert_eq!(quantised("folder", Some(Mix::Q4_K_M)), "folder@q4_k_m");
        assert_eq!(parts("folder@q4_k_m"), ("folder", Some(Mix::Q4_K_M)));
        assert_eq!(parts("me@home"), ("me@home", None));
        assert_eq!(quantised("demo", None), "demo");
    }

    #[test]
    fn a_model_that_is_quantised_is_not_quantised_again() {
        let plain = ModelFile::open(DEMO).unwrap();
        assert_eq!(ModelFile::open("demo@q8_0").unwrap().manifest.layers, plain.manifest.layers);
        let error = ModelFile::open("demo@q4_0").unwrap_err();
        assert!(error.message.contains("\"demo\" cannot be quantised: tensor '"), "{}", error.message);
        assert!(error.message.contains("is Q8_0 already"), "{}", error.message);
        let hint = error.hint.unwrap();
        assert!(hint.contains("runs as it is") && !hint.contains("damaged"), "{hint}");
    }
}
