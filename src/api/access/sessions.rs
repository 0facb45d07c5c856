//! Sessions of the web page: a code that holds once opens one, and a cookie and a second secret keep it.
//!
//! The cookie is sent by the browser by itself, also to other servers of the same name at other ports, and with requests
//! that other pages cause. So it opens only what changes nothing; for the rest a request shows the second secret, which the
//! page keeps to itself, in a header. See ADR 0045.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{constant, secret};
use crate::identity::IdentityError;

/// How long a code waits for its page.
pub(crate) const CODE_TTL: Duration = Duration::from_secs(300);

/// Codes that wait at once; the oldest goes first.
const CODES_MAX: usize = 16;

/// Sessions at once; the one that was used longest ago goes first.
const SESSIONS_MAX: usize = 32;

/// A session ends when it was not used for so long.
const IDLE: Duration = Duration::from_secs(12 * 3600);

/// And at last, used or not.
pub(super) const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A session's two secrets, told once.
pub(crate) struct Opened {
    /// The cookie's value.
    pub(crate) cookie: String,
    /// What writes show besides.
    pub(crate) csrf: String,
}

/// A session that is kept: hashes only.
struct Session {
    cookie: blake3::Hash,
    csrf: blake3::Hash,
    since: Instant,
    used: Instant,
}

/// How far what a request shows leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// No session's cookie.
    Nothing,
    /// The cookie alone.
    Cookie,
    /// The cookie and what belongs to it.
    Both,
}

/// Codes and sessions of one node. They end with the process.
#[derive(Default)]
pub(crate) struct Sessions {
    codes: Mutex<Vec<(blake3::Hash, Instant)>>,
    open: Mutex<Vec<Session>>,
}

impl Sessions {
    /// A code for one login.
    pub(crate) fn code(&self, now: Instant) -> Result<String, IdentityError> {
        let code: String = secret()?.chars().take(32).collect();
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|(_, since)| now.duration_since(*since) < CODE_TTL);
        if codes.len() >= CODES_MAX {
            codes.remove(0);
        }
        codes.push((blake3::hash(code.as_bytes()), now));
        Ok(code)
    }

    /// Opens a session for a code that was not used yet; nothing for any other.
    pub(crate) fn login(&self, code: &str, now: Instant) -> Result<Option<Opened>, IdentityError> {
        let hash = blake3::hash(code.as_bytes());
        let known = {
            let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
            codes.retain(|(_, since)| now.duration_since(*since) < CODE_TTL);
            let before = codes.len();
            codes.retain(|(code, _)| *code != hash);
            codes.len() < before
        };
        if !known {
            return Ok(None);
        }
        let opened = Opened { cookie: secret()?.to_string(), csrf: secret()?.to_string() };
        let session = Session {
            cookie: blake3::hash(opened.cookie.as_bytes()),
            csrf: blake3::hash(opened.csrf.as_bytes()),
            since: now,
            used: now,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|session| session.holds(now));
        if open.len() >= SESSIONS_MAX
            && let Some((oldest, _)) = open.iter().enumerate().min_by_key(|(_, session)| session.used)
        {
            open.remove(oldest);
        }
        open.push(session);
        Ok(Some(opened))
    }

    /// What a request with this cookie, and perhaps the other secret, has shown.
    pub(super) fn shown(&self, cookie: &str, csrf: Option<&[u8]>, now: Instant) -> Shown {
        let cookie = blake3::hash(cookie.as_bytes());
        let csrf = csrf.map(blake3::hash);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shown = Shown::Nothing;
        for session in open.iter_mut().filter(|session| session.holds(now)) {
            if constant(&session.cookie, &cookie) {
                session.used = now;
                let both = csrf.is_some_and(|csrf| constant(&session.csrf, &csrf));
                shown = if both { Shown::Both } else { Shown::Cookie };
            }
        }
        shown
    }

    /// Ends the session of this cookie.
    pub(crate) fn logout(&self, cookie: &str) {
        let cookie = blake3::hash(cookie.as_bytes());
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|session| session.cookie != cookie);
    }
}

impl Session {
    fn holds(&self, now: Instant) -> bool {
        now.duration_since(self.used) < IDLE && now.duration_since(self.since) < LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_opens_once_and_not_too_late() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let code = sessions.code(now).unwrap();
        assert!(sessions.login("guess", now).unwrap().is_none());
        assert!(sessions.login(&code, now).unwrap().is_some());
        assert!(sessions.login(&code, now).unwrap().is_none(), "used");
        let late = sessions.code(now).unwrap();
        assert!(sessions.login(&late, now + CODE_TTL).unwrap().is_none(), "late");
        let first = sessions.code(now).unwrap();
        for _ in 0..CODES_MAX {
            sessions.code(now).unwrap();
        }
        assert!(sessions.login(&first, now).unwrap().is_none(), "crowded out");
    }

    #[test]
    fn cookie_and_secret_belong_together_and_end() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let open = || sessions.login(&sessions.code(now).unwrap(), now).unwrap().unwrap();
        let (one, other) = (open(), open());
        let shown = |cookie: &str, csrf: Option<&str>, at| sessions.shown(cookie, csrf.map(str::as_bytes), at);
        assert_eq!(shown(&one.cookie, Some(&one.csrf), now), Shown::Both);
        assert_eq!(shown(&one.cookie, Some(&other.csrf), now), Shown::Cookie);
        assert_eq!(shown(&one.cookie, None, now), Shown::Cookie);
        assert_eq!(shown("", Some(&one.csrf), now), Shown::Nothing);
        assert_eq!(shown(&other.cookie, None, now + IDLE), Shown::Nothing, "unused for too long");
        sessions.logout(&one.cookie);
        assert_eq!(shown(&one.cookie, Some(&one.csrf), now), Shown::Nothing);
    }

    #[test]
    fn sessions_are_bounded() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let mut first = None;
        for n in 0..=SESSIONS_MAX as u64 {
            let at = now + Duration::from_secs(n);
            let opened = sessions.login(&sessions.code(at).unwrap(), at).unwrap().unwrap();
            first.get_or_insert(opened.cookie);
        }
        assert_eq!(sessions.open.lock().unwrap().len(), SESSIONS_MAX);
        assert_eq!(sessions.shown(&first.unwrap(), None, now), Shown::Nothing);
    }
}
