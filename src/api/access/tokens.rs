//! Tokens that people make for their programs: kept as hashes in a file of mode 0600.
//!
//! A token is `quelea_` and 64 hexadecimal digits; 256 random bits need no salt and no slow hash. Its first eight digits of
//! the hash are its id, by which it is listed and revoked.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use quelea_wire::time::unix_ms;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Scope, secret};
use crate::identity::{self, Existing, IdentityError};

/// Tokens that there may be at once: each request looks at all of them.
pub(crate) const TOKENS_MAX: usize = 64;

/// Bytes of a token's name.
pub(crate) const NAME_MAX: usize = 64;

/// The most that is read of the file: 64 tokens of some 300 bytes, and room.
const FILE_MAX: u64 = 64 << 10;

/// What a token begins with, so that people and scanners see what it is.
const PREFIX: &str = "quelea_";

/// A token as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    /// What it is revoked by.
    pub(crate) id: String,
    /// What its maker calls it.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) scopes: Vec<Scope>,
    /// BLAKE3 of it, in hex.
    hash: String,
    /// Unix milliseconds.
    pub(crate) created_ms: u64,
    /// Unix milliseconds; without it, until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    schema: String,
    tokens: Vec<Token>,
}

const SCHEMA: &str = "quelea.tokens_file/v1";

/// Why tokens cannot be read, made or revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The file cannot be read or written, or is open to others.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// It is not what we wrote.
    #[error("{0} is damaged: {1}; move it away, and make new tokens")]
    Damaged(PathBuf, String),
    /// There are enough.
    #[error("there are {TOKENS_MAX} tokens already; revoke one first")]
    Full,
    /// Its name will not do.
    #[error("a token's name has 1 to {NAME_MAX} bytes and no control characters")]
    Name,
    /// It may do nothing.
    #[error("a token needs at least one scope: admin, read, infer or metrics")]
    NoScope,
    /// It is not there.
    #[error("there is no token {0:?}")]
    Unknown(String),
}

/// All tokens of a node.
#[derive(Debug)]
pub(crate) struct Tokens {
    path: PathBuf,
    all: Mutex<Vec<Token>>,
}

impl Tokens {
    /// Those kept in this file; none when there is no file.
    pub(crate) fn open(path: &Path) -> Result<Self, TokenError> {
        let damaged = |why: String| TokenError::Damaged(path.to_path_buf(), why);
        let all = match identity::read_private(path, FILE_MAX) {
            Ok(bytes) => {
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
                if kept.schema != SCHEMA || kept.tokens.len() > TOKENS_MAX {
                    return Err(damaged(format!("not {SCHEMA}, or of more than {TOKENS_MAX} tokens")));
                }
                kept.tokens
            }
            Err(IdentityError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path: path.to_path_buf(), all: Mutex::new(all) })
    }

    /// What a token may do: nothing when there is none such. All hashes are compared, each in constant time.
    pub(super) fn scopes_of(&self, given: &[u8]) -> Option<Vec<Scope>> {
        let (given, now) = (blake3::hash(given), unix_ms());
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for token in all.iter() {
            // A hash that is no hash fits nothing.
            let fits = blake3::Hash::from_hex(&token.hash).is_ok_and(|hash| hash == given);
            if fits && token.expires_ms.is_none_or(|at| now < at) {
                found = Some(token.scopes.clone());
            }
        }
        found
    }

    /// The tokens there are, oldest first.
    pub(crate) fn list(&self) -> Vec<Token> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes one. It is told once, and never again. Writes to the disk: not for async threads.
    pub(crate) fn create(
        &self,
        name: &str,
        mut scopes: Vec<Scope>,
        lifetime_ms: Option<u64>,
    ) -> Result<(Token, Zeroizing<String>), TokenError> {
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            return Err(TokenError::Name);
        }
        scopes.dedup();
        if scopes.is_empty() || scopes.len() > Scope::ALL.len() {
            return Err(TokenError::NoScope);
        }
        let text = Zeroizing::new(format!("{PREFIX}{}", secret()?.as_str()));
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        let created_ms = unix_ms();
        let token = Token {
            id: hash.chars().take(8).collect(),
            name: name.to_owned(),
            scopes,
            hash,
            created_ms,
            expires_ms: lifetime_ms.map(|ms| created_ms.saturating_add(ms)),
        };
        self.change(|all| {
            if all.len() >= TOKENS_MAX {
                return Err(TokenError::Full);
            }
            all.push(token.clone());
            Ok(())
        })?;
        Ok((token, text))
    }

    /// Takes one back, by its id or its name. Writes to the disk: not for async threads.
    pub(crate) fn revoke(&self, which: &str) -> Result<Token, TokenError> {
        let mut gone = None;
        self.change(|all| {
            let at = all.iter().position(|token| token.id == which).or_else(|| {
                // A name that two tokens have says neither.
                let mut named = all.iter().enumerate().filter(|(_, token)| token.name == which);
                named.next().filter(|_| named.next().is_none()).map(|(at, _)| at)
            });
            gone = Some(all.remove(at.ok_or_else(|| TokenError::Unknown(which.chars().take(NAME_MAX).collect()))?));
            Ok(())
        })?;
        gone.ok_or_else(|| TokenError::Unknown(which.to_owned()))
    }

    /// Changes what is kept: on disk first, so that what holds now holds after a crash.
    fn change(&self, change: impl FnOnce(&mut Vec<Token>) -> Result<(), TokenError>) -> Result<(), TokenError> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = all.clone();
        change(&mut next)?;
        let kept = Kept { schema: SCHEMA.to_owned(), tokens: next };
        let text =
            serde_json::to_vec_pretty(&kept).map_err(|e| TokenError::Damaged(self.path.clone(), e.to_string()))?;
        identity::write_secret(&self.path, &text, Existing::Replace)?;
        *all = kept.tokens;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_holds_until_it_is_revoked_and_only_its_hash_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        let tokens = Tokens::open(&path).unwrap();
        let (token, text) = tokens.create("grafana", vec![Scope::Metrics], None).unwrap();
        assert!(text.starts_with(PREFIX) && text.len() == PREFIX.len() + 64);
        let file = std::fs::read_to_string(&path).unwrap();
        assert!(!file.contains(text.trim_start_matches(PREFIX)) && file.contains(&token.id));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let again = Tokens::open(&path).unwrap();
        assert_eq!(again.scopes_of(text.as_bytes()), Some(vec![Scope::Metrics]));
        for wrong in [&text[1..], "", PREFIX, &format!("{}x", text.as_str())] {
            assert_eq!(again.scopes_of(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(again.revoke("grafana").unwrap().id, token.id);
        assert_eq!(again.scopes_of(text.as_bytes()), None);
        assert!(Tokens::open(&path).unwrap().list().is_empty());
        assert!(matches!(again.revoke(&token.id), Err(TokenError::Unknown(_))));
    }

    #[test]
    fn tokens_end_and_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&dir.path().join("t")).unwrap();
        let (_, over) = tokens.create("old", vec![Scope::Read], Some(0)).unwrap();
        assert_eq!(tokens.scopes_of(over.as_bytes()), None);
        assert!(matches!(tokens.create("", vec![Scope::Read], None), Err(TokenError::Name)));
        assert!(matches!(tokens.create("a\nb", vec![Scope::Read], None), Err(TokenError::Name)));
        assert!(matches!(tokens.create("none", vec![], None), Err(TokenError::NoScope)));
        for n in 1..TOKENS_MAX {
            tokens.create(&format!("n{n}"), vec![Scope::Read], None).unwrap();
        }
        assert!(matches!(tokens.create("one more", vec![Scope::Read], None), Err(TokenError::Full)));
        tokens.create("x", vec![Scope::Read], None).unwrap_err();
    }

    #[test]
    fn a_damaged_or_open_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        identity::write_secret(&path, b"{", Existing::Replace).unwrap();
        assert!(matches!(Tokens::open(&path), Err(TokenError::Damaged(..))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Tokens::open(&path), Err(TokenError::File(IdentityError::TooOpen { .. }))));
    }
}
