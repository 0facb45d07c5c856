//! What lies at a path, and loading it. Only files of this machine are looked at: the parts of the engine that know the way to
//! Hugging Face are not called.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, quantized::gguf_file};
use mistralrs_core::{
    AdapterPaths, DeviceMapMetadata, DeviceMapSetting, GGUFLoaderBuilder, GGUFSpecificConfig, Loader, LocalModelPaths,
    ModelDType, ModelPaths, NormalLoaderBuilder, NormalSpecificConfig, Pipeline,
};
use tokio::sync::Mutex;

/// The families of GGUF files that the engine has, as files name them. It has qwen3moe for graphics cards only.
const FAMILIES: [&str; 7] = ["llama", "mistral3", "phi2", "phi3", "qwen2", "qwen3", "starcoder2"];

/// The tokenizers of GGUF files that the engine has.
const TOKENIZERS: [&str; 3] = ["gpt2", "llama", "replit"];

/// For models that bring no template: what was said, and nothing around it.
const PLAIN: &str = "{%- for message in messages -%}{{ message.content + '\n' }}{%- endfor -%}";

/// A model that has been found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The parts of a GGUF file in order, what it calls itself, and whether it brings a template for chats.
    Gguf { files: Vec<PathBuf>, name: String, template: bool },
    /// A folder as Hugging Face lays it out: its weights, and whether it brings a template.
    Folder { dir: PathBuf, weights: Vec<PathBuf>, template: Option<PathBuf> },
}

impl Source {
    /// What the model is called unless told otherwise.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Gguf { name, .. } => name.clone(),
            Self::Folder { dir, .. } => {
                dir.file_name().map_or_else(|| "local".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// Looks at what lies at a path.
pub(crate) fn find(path: &Path) -> Result<Source, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("cannot use the model {}: {why}", path.display());
    let path = std::path::absolute(path).map_err(|e| cannot(&e))?;
    let about = path.metadata().map_err(|e| cannot(&e))?;
    if about.is_dir() {
        return folder(&path).map_err(|why| cannot(&why));
    }
    gguf(&path).map_err(|why| cannot(&why))
}

fn folder(dir: &Path) -> Result<Source, String> {
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(|e| e.to_string())? {
        names.push(entry.map_err(|e| e.to_string())?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if !has("config.json") {
        let mut files = names.iter().filter(|name| name.ends_with(".gguf"));
        return match (files.next(), files.next()) {
            (Some(only), None) => gguf(&dir.join(only)),
            (Some(_), Some(_)) => Err("the folder has several GGUF files: name one".into()),
            _ => Err("the folder has neither a config.json nor a GGUF file".into()),
        };
    }
    if !has("tokenizer.json") {
        return Err("the folder has no tokenizer.json, without which its text cannot be cut into tokens".into());
    }
    let weights: Vec<PathBuf> =
        names.iter().filter(|name| name.ends_with(".safetensors")).map(|name| dir.join(name)).collect();
    if weights.is_empty() {
        return Err("the folder has no weights (*.safetensors)".into());
    }
    let says_template = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|config| !config["chat_template"].is_null())
    };
    let template = if has("chat_template.jinja") {
        Some(dir.join("chat_template.jinja"))
    } else {
        says_template("tokenizer_config.json").then(|| dir.join("tokenizer_config.json"))
    };
    Ok(Source::Folder { dir: dir.to_path_buf(), weights, template })
}

fn gguf(path: &Path) -> Result<Source, String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
        return Err("it is not a GGUF file, nor a folder as Hugging Face lays it out".into());
    }
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let content = gguf_file::Content::read(&mut file).map_err(|e| format!("its header is damaged: {e}"))?;
    let text = |key: &str| content.metadata.get(key).and_then(|value| value.to_string().ok().cloned());
    let family = text("general.architecture").unwrap_or_default();
    if !FAMILIES.contains(&family.as_str()) {
        return Err(format!("the engine has no GGUF models of the family '{family}'; it has {}", FAMILIES.join(", ")));
    }
    let tokenizer = text("tokenizer.ggml.model").unwrap_or_default();
    if !TOKENIZERS.contains(&tokenizer.as_str()) {
        return Err(format!("the engine has no tokenizer '{tokenizer}'; it has {}", TOKENIZERS.join(", ")));
    }
    let stem = || path.file_stem().map_or_else(|| "local".into(), |stem| stem.to_string_lossy().into_owned());
    let name = text("general.name").filter(|name| !name.is_empty()).unwrap_or_else(stem);
    Ok(Source::Gguf { files: parts(path)?, name, template: text("tokenizer.chat_template").is_some() })
}

/// The parts of a file that is split, like `x-00001-of-00003.gguf`, in order.
fn parts(path: &Path) -> Result<Vec<PathBuf>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let split = || {
        let (stem, of) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, _) = stem.rsplit_once('-')?;
        Some((stem.to_owned(), of.parse::<u32>().ok().filter(|of| (2..=999).contains(of))?))
    };
    let Some((stem, of)) = split() else { return Ok(vec![path.to_path_buf()]) };
    let part = |n: u32| path.with_file_name(format!("{stem}-{n:05}-of-{of:05}.gguf"));
    let parts: Vec<PathBuf> = (1..=of).map(part).collect();
    match parts.iter().find(|part| !part.is_file()) {
        Some(missing) => Err(format!("its part {} is not there", missing.display())),
        None => Ok(parts),
    }
}

/// A loaded model, as the engine has it.
pub(crate) type Loaded = Arc<Mutex<dyn Pipeline + Send + Sync>>;

/// Reads the weights: seconds to minutes. `scratch` is where a file may be written meanwhile.
pub(crate) fn load(source: &Source, scratch: &Path) -> Result<Loaded, String> {
    let why = |e: &dyn std::fmt::Display| format!("the model cannot be loaded: {e}");
    let plain = || {
        eprintln!("quelea-local-llm: the model brings no template for chats: it gets the messages one after the other");
        std::fs::write(scratch, PLAIN).map_err(|e| why(&e))?;
        Ok::<_, String>(scratch.to_string_lossy().into_owned())
    };
    let (loader, paths): (Box<dyn Loader>, LocalModelPaths<PathBuf>) = match source {
        Source::Gguf { files, name, template } => {
            let jinja = if *template { None } else { Some(plain()?) };
            let names = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
            let config = GGUFSpecificConfig::default();
            let loader = GGUFLoaderBuilder::new(None, None, name.clone(), names, config, false, jinja).build();
            (loader, paths(PathBuf::new(), PathBuf::new(), None, files.clone(), None))
        }
        Source::Folder { dir, weights, template } => {
            let jinja = if template.is_some() { None } else { Some(plain()?) };
            let config = NormalSpecificConfig::default();
            let id = dir.to_string_lossy().into_owned();
            let loader = NormalLoaderBuilder::new(config, None, None, Some(id), false, jinja).build(None);
            let generation = Some(dir.join("generation_config.json")).filter(|file| file.is_file());
            let template = template.clone().or_else(|| Some(dir.join("tokenizer_config.json"))).filter(|f| f.is_file());
            let (tokenizer, config) = (dir.join("tokenizer.json"), dir.join("config.json"));
            (loader.map_err(|e| why(&e))?, paths(tokenizer, config, template, weights.clone(), generation))
        }
    };
    let paths: Box<dyn ModelPaths> = Box::new(paths);
    // Everything on the processor. Half precision is slower there than single.
    let map = DeviceMapSetting::Map(DeviceMapMetadata::dummy());
    let loaded = loader.load_model_from_path(&paths, &ModelDType::F32, &Device::Cpu, true, map, None, None);
    // Written above or not there.
    let _ = std::fs::remove_file(scratch);
    loaded.map_err(|e| why(&format!("{e:#}")))
}

fn paths(
    tokenizer: PathBuf,
    config: PathBuf,
    template: Option<PathBuf>,
    weights: Vec<PathBuf>,
    generation: Option<PathBuf>,
) -> LocalModelPaths<PathBuf> {
    LocalModelPaths {
        tokenizer_filename: tokenizer,
        config_filename: config,
        template_filename: template,
        filenames: weights,
        adapter_paths: AdapterPaths::None,
        gen_conf: generation,
        preprocessor_config: None,
        processor_config: None,
        chat_template_json_filename: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/demo/quelea-demo-q8_0.gguf")
    }

    #[test]
    fn a_file_says_what_it_is_called() {
        let found = find(&demo()).unwrap();
        assert_eq!(found.name(), "quelea-demo");
        assert!(matches!(found, Source::Gguf { files, template: true, .. } if files.len() == 1));
    }

    #[test]
    fn what_cannot_be_a_model_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let says = |path: &Path, wanted: &str| {
            let said = find(path).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        };
        says(&dir.path().join("none"), "No such file");
        says(dir.path(), "neither a config.json nor a GGUF");
        let text = dir.path().join("text.gguf");
        std::fs::write(&text, "no model").unwrap();
        says(&text, "not a GGUF file");
        std::fs::write(&text, "GGUF and nothing more").unwrap();
        says(&text, "header is damaged");
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        says(dir.path(), "no tokenizer.json");
        std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        says(dir.path(), "no weights");
        let gemma = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/tests/data/models/gemma2-Q4_K_M.gguf");
        says(&gemma, "family 'gemma2'; it has llama");
    }

    #[test]
    fn the_parts_of_a_split_file_are_all_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let part = |n: u32| dir.path().join(format!("m-{n:05}-of-00003.gguf"));
        for n in [1, 3] {
            std::fs::copy(demo(), part(n)).unwrap();
        }
        assert!(find(&part(1)).unwrap_err().contains("00002-of-00003.gguf is not there"));
        std::fs::copy(demo(), part(2)).unwrap();
        assert!(matches!(find(&part(1)).unwrap(), Source::Gguf { files, .. } if files == [part(1), part(2), part(3)]));
    }
}
