//! Encrypted records, one after the other.
//!
//! ```text
//! "QSL1" | salt [32] | { length u32 LE | ChaCha20-Poly1305 (plaintext, tag [16]) }…
//! ```
//!
//! The key is derived from the identity's secret and the file's salt, and is used for this file alone; the nonce is the
//! record's number. Nothing follows a record that is torn off or was changed.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use chacha20poly1305::{
    ChaCha20Poly1305, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};

const MAGIC: &[u8; 4] = b"QSL1";

const SALT: usize = 32;

/// The longest file, and so the longest record: the prompt as text and as ids, and an answer of half a million tokens that
/// are written one by one.
pub(super) const MAX_FILE: u64 = 16 << 20;

/// Bytes of a record's length.
const LENGTH: usize = size_of::<u32>();

fn cipher(secret: &[u8; 32], salt: &[u8; SALT]) -> ChaCha20Poly1305 {
    let mut hasher = blake3::Hasher::new_derive_key("quelea 2026 session log file");
    hasher.update(secret).update(salt);
    ChaCha20Poly1305::new(&Key::from(*hasher.finalize().as_bytes()))
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce.into()
}

/// Writes records; holds the file's lock.
pub(super) struct Writer {
    file: File,
    cipher: ChaCha20Poly1305,
    records: u64,
    /// Bytes that may follow.
    pub(super) left: u64,
}

impl Writer {
    /// A new file in place of any other, for its owner alone.
    pub(super) fn create(path: &Path, secret: &[u8; 32]) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.try_lock()?;
        let salt: [u8; SALT] = rand::random();
        file.write_all(&[MAGIC.as_slice(), &salt].concat())?;
        Ok(Self { file, cipher: cipher(secret, &salt), records: 0, left: MAX_FILE })
    }

    /// Appends a record, in one write. After an error nothing may follow.
    pub(super) fn append(&mut self, plaintext: &[u8]) -> io::Result<()> {
        let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, "the answer is longer than is kept");
        let payload = Payload { msg: plaintext, aad: MAGIC };
        let sealed = self.cipher.encrypt(&nonce(self.records), payload).map_err(|_| too_long())?;
        let length = u32::try_from(sealed.len()).map_err(|_| too_long())?;
        let record = [length.to_le_bytes().as_slice(), &sealed].concat();
        self.left = self.left.checked_sub(record.len() as u64).ok_or_else(too_long)?;
        self.records += 1;
        self.file.write_all(&record)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Reads records, up to the first that is not whole.
pub(super) struct Reader<'a> {
    file: BufReader<&'a File>,
    cipher: ChaCha20Poly1305,
    records: u64,
}

impl<'a> Reader<'a> {
    /// # Errors
    /// When it is no such file.
    pub(super) fn open(file: &'a File, secret: &[u8; 32]) -> io::Result<Self> {
        let mut file = BufReader::new(file);
        let (mut magic, mut salt) = ([0; 4], [0; SALT]);
        file.read_exact(&mut magic)?;
        file.read_exact(&mut salt)?;
        if magic != *MAGIC {
            return Err(io::Error::other("it is of another version"));
        }
        Ok(Self { file, cipher: cipher(secret, &salt), records: 0 })
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; LENGTH];
        self.file.read_exact(&mut length).ok()?;
        let length = u64::from(u32::from_le_bytes(length));
        if length > MAX_FILE {
            return None;
        }
        // No more memory than there are bytes, whatever the length says.
        let mut sealed = Vec::new();
        (&mut self.file).take(length).read_to_end(&mut sealed).ok()?;
        let payload = Payload { msg: &sealed, aad: MAGIC };
        let plaintext = self.cipher.decrypt(&nonce(self.records), payload).ok()?;
        self.records += 1;
        // A shorter record than it says would not have been decrypted, unless the length was changed at the end of the file.
        (sealed.len() as u64 == length).then_some(plaintext)
    }
}
