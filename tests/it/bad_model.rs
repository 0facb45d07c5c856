//! Model files that are cut off, lie, or are something else: refused by every command, in words.

use std::{fs, path::PathBuf};

use quelea_engine::gguf::{DType, write::Writer};
use tempfile::TempDir;

use crate::harness::{Launch, quelea, tempdir};

/// The embedded model, as a file to damage.
const DEMO_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/demo/quelea-demo-q8_0.gguf");

/// A tensor of a layer in the middle.
const TENSOR: &str = "blk.3.ffn_up.weight";

/// A GGUF file's bytes, and where things lie in them.
struct Damaged {
    dir: TempDir,
    bytes: Vec<u8>,
}

impl Damaged {
    fn new() -> Self {
        Self { dir: tempdir(), bytes: fs::read(DEMO_FILE).unwrap() }
    }

    /// Where the bytes after a key or a tensor's name begin.
    fn after(&self, name: &str) -> usize {
        let found = self.bytes.windows(name.len()).position(|window| window == name.as_bytes());
        found.unwrap_or_else(|| panic!("no {name}")) + name.len()
    }

    /// The `n`th u64 of a tensor's shape; its type and its offset follow the shape of two.
    fn shape(&self, n: usize) -> usize {
        self.after(TENSOR) + 4 + 8 * n
    }

    fn tensor_type(&self) -> usize {
        self.shape(2)
    }

    fn offset(&self) -> usize {
        self.tensor_type() + 4
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Writes `new` over what is at `at`, into a file of its own.
    fn with(&self, at: usize, new: &[u8]) -> PathBuf {
        let mut bytes = self.bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        self.file(&bytes)
    }

    fn cut(&self, len: usize) -> PathBuf {
        self.file(&self.bytes[..len])
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = tempfile::Builder::new().suffix(".gguf").tempfile_in(self.dir.path()).unwrap().keep().unwrap().1;
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Every command that reads models refuses `file`, saying all of this.
async fn refused(file: PathBuf, says: &[&str]) {
    let show = quelea(&["model", "show", file.to_str().unwrap()]).await.expect(1).says(says);
    assert_eq!(show.says(&[file.to_str().unwrap(), "QUE-4004", "hint: "]).stdout, "");
    let file = file.to_str().unwrap();
    let commands: [&[&str]; 2] =
        [&["model", "logits", file, "--ids", "1,2,3"], &["infer", "--route", "local", "--model", file, "hi"]];
    for args in commands {
        let ended = quelea(args).await.expect(1).says(says).says(&[file, "QUE-4004", "hint: "]);
        assert_eq!(ended.stdout, "");
    }
    let daemon = Launch::new().serve(file, "3..4").fails().await.expect(1).says(says);
    assert_eq!(daemon.says(&[file, "QUE-4004", "hint: "]).stdout, "", "it never was ready");
}

#[tokio::test]
async fn truncated_files() {
    let model = Damaged::new();
    let data = model.after(TENSOR);
    for len in [0, 3, 20, 200, data - 5, data + 9] {
        refused(model.cut(len), &["truncated at offset"]).await;
    }
    // All of the header, and not all of the tensors.
    for len in [model.bytes.len() / 2, model.bytes.len() - 1] {
        refused(model.cut(len), &["tensor '", &format!("the file has {len} bytes")]).await;
    }
}

#[tokio::test]
async fn lying_tensors() {
    let model = Damaged::new();
    let named = format!("'{TENSOR}'");
    let rows = model.number(model.shape(1));
    for lie in [rows * 1000, 1 << 40, u64::MAX, u64::MAX / 2 + 1] {
        refused(model.with(model.shape(1), &lie.to_le_bytes()), &[&named]).await;
    }
    // Smaller than it is: well-formed, and not what the model's sizes ask for.
    let columns = model.number(model.shape(0));
    for lie in [1, rows - 1] {
        let (found, expected) = (format!("has shape [{lie}, {columns}]"), format!("expected [{rows}, {columns}]"));
        refused(model.with(model.shape(1), &lie.to_le_bytes()), &[&named, &found, &expected]).await;
    }
    for lie in [model.number(model.offset()) + 1, 1 << 40, u64::MAX - 31, 0] {
        refused(model.with(model.offset(), &lie.to_le_bytes()), &[&named]).await;
    }
    refused(model.with(model.tensor_type(), &999_u32.to_le_bytes()), &[&named, "999"]).await;
    refused(model.with(model.after(TENSOR), &77_u32.to_le_bytes()), &["77"]).await;
}

#[tokio::test]
async fn lying_counts_and_names() {
    let model = Damaged::new();
    // Magic, version, number of tensors, number of metadata keys.
    refused(model.with(0, b"GGML"), &["not a GGUF file"]).await;
    refused(model.with(4, &9_u32.to_le_bytes()), &["version 9"]).await;
    refused(model.with(8, &u64::MAX.to_le_bytes()), &["tensor count"]).await;
    refused(model.with(16, &u64::MAX.to_le_bytes()), &["metadata count"]).await;
    refused(model.with(24, &u64::MAX.to_le_bytes()), &["metadata key 0"]).await;
    let other = model.with(model.after("blk.3.ffn_u") - 1, b"x");
    refused(other, &["'blk.3.ffn_up.weight' is missing"]).await;
}

#[tokio::test]
async fn another_family() {
    let model = Damaged::new();
    // Key, value type (a string), its length, its bytes.
    let at = model.after("general.architecture") + 4 + 8;
    assert_eq!(&model.bytes[at..at + 5], b"qwen3");
    refused(model.with(at, b"gemma"), &["gemma", "llama", "qwen2", "qwen3"]).await;
    refused(model.with(at, b"llama"), &["llama."]).await;
}

#[tokio::test]
async fn something_else_and_nothing() {
    let model = Damaged::new();
    refused(model.file(b"# A README\n\nNo model at all, but long enough to hold a header."), &["not a GGUF file"])
        .await;
    let dir = model.dir.path().to_str().unwrap();
    for args in [&["model", "show", dir][..], &["infer", "--route", "local", "--model", dir, "hi"]] {
        quelea(args).await.expect(1).says(&[dir, "file", "QUE-4004"]);
    }
    Launch::new().serve(dir, "all").fails().await.expect(1).says(&[dir, "QUE-4004"]);
    let missing = format!("{dir}/none.gguf");
    for args in [
        &["model", "show", &missing][..],
        &["model", "tokenize", &missing, "--text", "hi"],
        &["model", "logits", &missing, "--text", "hi"],
        &["infer", "--route", "local", "--model", &missing, "hi"],
    ] {
        quelea(args).await.expect(5).says(&[&missing, "QUE-4001"]);
    }
    Launch::new().serve(&missing, "all").fails().await.expect(5).says(&[&missing, "QUE-4001"]);
}

#[tokio::test]
async fn ids_and_cuts_that_the_model_does_not_have() {
    for (args, says) in [
        (["--ids", "99999", "--top", "1"], "id 99999"),
        (["--ids", "1,2", "--split", "7"], "cuts [7]"),
        (["--ids", "1,2", "--split", "3,1"], "cuts [3, 1]"),
    ] {
        quelea(&[&["model", "logits", "demo"], &args[..]].concat()).await.expect(2).says(&[says, "QUE-1001"]);
    }
}

/// Nothing is wrong with the file: it is the flag that does not fit.
#[tokio::test]
async fn a_quantised_model_is_not_quantised_again() {
    let out = tempdir();
    let file = out.path().join("new.gguf");
    for args in [
        &["infer", "--route", "local", "--model", DEMO_FILE, "--quantize", "q4_0", "hi"][..],
        &["model", "quantize", DEMO_FILE, "--type", "q4_0", "--output", file.to_str().unwrap()],
    ] {
        let ended = quelea(args).await.expect(2).says(&[DEMO_FILE, "is Q8_0 already", "hint: ", "runs as it is"]);
        assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
    }
    assert!(!file.exists());
}

/// Before a byte of the weights is read: with this much even hashing would take an hour.
#[tokio::test]
async fn a_model_that_is_larger_than_the_memory_is_refused_by_every_command_that_would_load_it() {
    const ARCH: &str = "llama";
    // A tebibyte of embedding, all of it a hole.
    let mut writer = Writer::new();
    writer.set("general.architecture", ARCH);
    for (name, value) in [
        ("context_length", 512_u32),
        ("embedding_length", 1 << 16),
        ("block_count", 1),
        ("feed_forward_length", 256),
        ("attention.head_count", 512),
    ] {
        writer.set(&format!("{ARCH}.{name}"), value);
    }
    writer.set(&format!("{ARCH}.attention.layer_norm_rms_epsilon"), 1e-5_f32);
    writer.tensor("token_embd.weight", DType::F32, &[1 << 22, 1 << 16]).unwrap();
    let dir = tempdir();
    let path = dir.path().join("large.gguf");
    fs::write(&path, writer.header().unwrap()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(writer.size().unwrap()).unwrap();
    let file = path.to_str().unwrap();
    for args in [
        &["model", "logits", file, "--ids", "1,2,3"][..],
        &["bench", "model", file, "--pp", "8", "--tg", "4"],
        &["infer", "--route", "local", "--model", file, "hi"],
    ] {
        let says = [file, "does not fit in memory: 1048576 MiB of weights", "MiB are free", "QUE-4009", "hint: "];
        assert_eq!(quelea(args).await.expect(1).says(&says).stdout, "");
    }
}

/// With or without a model to serve, and before anything is started.
#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[tokio::test]
async fn a_device_that_this_build_does_not_have_is_refused_at_start() {
    for (device, name) in [("cuda", "CUDA"), ("cuda:1", "CUDA"), ("metal", "Metal")] {
        let says = [name, "--features", "Leave --device out"];
        let daemon = Launch::new().args(&["--device", device]).fails().await.expect(2).says(&says);
        assert_eq!(daemon.stdout, "");
        for args in [&["model", "logits", "demo", "--ids", "1"][..], &["infer", "--route", "local", "hi"]] {
            quelea(&[args, &["--device", device]].concat()).await.expect(2).says(&says);
        }
    }
}
