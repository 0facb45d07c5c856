//! The node's identity, an Ed25519 key in a file, and the shared way to keep a secret on disk.
//!
//! The key is stored as libp2p's protobuf-encoded keypair (68 bytes), the form other libp2p tools read. A secret's file
//! has mode 0600, is refused when anyone but its owner could read it, and is written whole or not at all: a temporary
//! file beside it, flushed to disk, then renamed (or linked, where an existing one must survive), then the directory
//! flushed.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use libp2p::identity::{KeyType, Keypair};
use rand::TryRngCore;
use zeroize::Zeroizing;

/// Length of a protobuf-encoded Ed25519 keypair: tag and type (2), tag and length (2), secret and public key (64).
const KEYPAIR_LEN: usize = 68;

/// Random bytes in an API token. 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;

/// The most that is read of a secret's file. The largest of ours has 68 bytes.
const SECRET_MAX: u64 = 1024;

/// Why the identity (or another secret) cannot be used. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Others than the owner may read or write the file.
    #[error("{path} can be used by others (mode {mode:04o}): run `chmod 600 {path}`, and make a new one if others had access", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, a device, a pipe.
    #[error("{path} is not a regular file: point --identity at a key file, or at a path where one may be made", path = .0.display())]
    NotAFile(PathBuf),
    /// The file has another length than a key.
    #[error(
        "{path} has {found} bytes, which is not an identity ({KEYPAIR_LEN} bytes: a protobuf-encoded libp2p Ed25519 keypair): \
         restore it from a backup, or move it away and start again with a new identity",
        path = .path.display()
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length in bytes; 1025 stands for anything longer than 1024.
        found: usize,
    },
    /// The length is right, the content is not a key.
    #[error(
        "{path} does not hold a protobuf-encoded libp2p Ed25519 keypair: restore it from a backup, or move it away and start \
         again with a new identity",
        path = .0.display()
    )]
    Garbage(PathBuf),
    /// An API token that is not 64 hexadecimal digits.
    #[error("{path} does not hold an API token (64 hexadecimal digits): remove it, and the daemon makes a new one", path = .0.display())]
    BadToken(PathBuf),
    /// A masked node's secret that is not 64 hexadecimal digits.
    #[error(
        "{path} does not hold the secret of a masked node's path (64 hexadecimal digits): restore it from a backup, or remove \
         it, and the daemon makes a new one; friends then need the new address",
        path = .0.display()
    )]
    BadMaskingSecret(PathBuf),
    /// The system does not let this user at it.
    #[error("cannot {doing} {path}: permission denied; run as the user who owns it, or name another place with --identity or --data-dir", path = .path.display())]
    Denied {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Any other answer of the system.
    #[error("cannot {doing} {path}: {source}", path = .path.display())]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no randomness to give.
    #[error("the operating system gave no random bytes: {0}")]
    NoRandomness(#[from] rand::rand_core::OsError),
}

/// Loads the identity at `path`, or makes one there if the file does not exist. Of two processes that do this at once,
/// both end up with the same key.
///
/// # Errors
/// Anything but "there is no such file" is an error: a node must not come up as somebody else because its key could not
/// be read.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    match load(path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    let keypair = Keypair::generate_ed25519();
    // An encoded key of the wrong shape would be refused at the next start, when it is too late.
    let encoded = Zeroizing::new(
        keypair.to_protobuf_encoding().map_err(|_undecodable| IdentityError::Garbage(path.to_path_buf()))?,
    );
    match write_secret(path, &encoded, Existing::Keep) {
        Ok(()) => Ok(keypair),
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(e) => Err(e),
    }
}

/// Loads the identity at `path`.
///
/// # Errors
/// When there is no file, it is not private, or it does not hold an Ed25519 key.
pub fn load(path: &Path) -> Result<Keypair, IdentityError> {
    let bytes = read_secret(path)?;
    if bytes.len() != KEYPAIR_LEN {
        return Err(IdentityError::WrongLength { path: path.to_path_buf(), found: bytes.len() });
    }
    let garbage = || IdentityError::Garbage(path.to_path_buf());
    let keypair = Keypair::from_protobuf_encoding(&bytes).map_err(|_undecodable| garbage())?;
    if keypair.key_type() != KeyType::Ed25519 {
        return Err(garbage());
    }
    Ok(keypair)
}

/// Loads the API token at `path` (64 hexadecimal digits), or makes one there.
///
/// # Errors
/// As [`load_or_create`].
pub fn load_or_create_token(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    match load_token(path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    let mut random = Zeroizing::new([0u8; TOKEN_BYTES]);
    rand::rngs::OsRng.try_fill_bytes(random.as_mut_slice())?;
    let token = Zeroizing::new(hex::encode(random.as_slice()));
    match write_secret(path, token.as_bytes(), Existing::Keep) {
        Ok(()) => Ok(token),
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => load_token(path),
        Err(e) => Err(e),
    }
}

/// Loads the secret of a masked node's path at `path`, or makes one there. It has the form of an API token.
///
/// # Errors
/// As [`load_or_create`].
pub fn load_or_create_masking_secret(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    load_or_create_token(path).map_err(|error| match error {
        IdentityError::BadToken(path) => IdentityError::BadMaskingSecret(path),
        other => other,
    })
}

/// Loads the API token at `path`. A newline at its end does not count, so that it may be written by hand.
///
/// # Errors
/// When there is no file, it is not private, or it does not hold a token.
pub fn load_token(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    let bytes = read_secret(path)?;
    let token = bytes.trim_ascii_end();
    if token.len() != 2 * TOKEN_BYTES || !token.iter().all(u8::is_ascii_hexdigit) {
        return Err(IdentityError::BadToken(path.to_path_buf()));
    }
    Ok(Zeroizing::new(String::from_utf8_lossy(token).into_owned()))
}

/// What happens to a file that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and writing fails with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes a secret at `path` with mode 0600, whole or not at all, and on disk when this returns. Missing parent
/// directories are made.
///
/// # Errors
/// When the system refuses, or the file exists and was to be kept.
pub fn write_secret(path: &Path, secret: &[u8], existing: Existing) -> Result<(), IdentityError> {
    let failed = |source: io::Error| io_error("write", path, source);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(failed)?;
    let mut temp = tempfile::Builder::new()
        .prefix(".secret-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(parent)
        .map_err(failed)?;
    temp.write_all(secret).map_err(failed)?;
    temp.as_file().sync_all().map_err(failed)?;
    match existing {
        Existing::Keep => temp.persist_noclobber(path),
        Existing::Replace => temp.persist(path),
    }
    .map_err(|e| failed(e.error))?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Reads a secret's file (at most [`SECRET_MAX`] bytes and one, so that too long ones show).
fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    read_private(path, SECRET_MAX)
}

/// Reads a file that only this user may read, at most `most` bytes of it and one.
pub(crate) fn read_private(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let failed = |source: io::Error| io_error("read", path, source);
    // Looked at before it is opened, because opening a pipe waits for somebody to write into it.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(IdentityError::NotAFile(path.to_path_buf()));
    }
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(IdentityError::NotAFile(path.to_path_buf()));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::TooOpen { path: path.to_path_buf(), mode });
    }
    // Full capacity at once: a vector that grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most as usize + 1));
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> IdentityError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::PermissionDenied => IdentityError::Denied { doing, path },
        _ => IdentityError::Io { doing, path, source },
    }
}

#[cfg(test)]
mod tests;
