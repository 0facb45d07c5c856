//! Who is banned, until when, and why: a pure list. Enforcing it is libp2p's block list for peers, and
//! [`prefixes`](crate::prefixes) for address ranges.
//!
//! | full | then |
//! |---|---|
//! | [`MAX_BANS`] | a past ban is forgotten, else the one of ours that ends first; the operator's are never |

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use libp2p::PeerId;
use quelea_wire::prefix::Prefix;

/// Bans remembered, those that are over too: some 400 bytes each.
pub const MAX_BANS: usize = 1024;
/// Bytes of a reason.
pub const MAX_REASON: usize = 200;
/// The longest ban. Addresses change hands, and a key that behaved badly a year ago is not worth a row.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a ban is remembered when it is over, so that the next one is longer.
pub const MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);
/// A peer's first ban for its conduct.
pub const FIRST: Duration = Duration::from_secs(10 * 60);
/// How many times longer each further one is.
const LONGER: u32 = 6;
/// The longest ban for conduct.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// The ban for proven fraud: it is no accident, and nobody's bad line.
pub const FRAUD: Duration = Duration::from_secs(90 * 24 * 3600);
/// So many peers of one range of addresses banned for fraud, and whoever is new there gets no credit: one of them may have a
/// cheating neighbour, who makes five names has an address.
pub const FRAUDS_OF_A_RANGE: usize = 5;
/// For how long after the last of them.
pub const WARY: Duration = Duration::from_secs(24 * 3600);
/// So many peers of one host banned at once, and the host is, for as long as [`FIRST`]: identities are free, addresses are
/// not. Fewer may be one home with a bad program.
pub const PEERS_OF_A_HOST: usize = 4;

/// Who is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A peer, wherever it is.
    Peer(PeerId),
    /// Whoever is in this range of addresses.
    Range(Prefix),
}

/// Why a text names nobody to ban.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a peer id nor a range of addresses like 203.0.113.0/24")]
pub struct ParseSubjectError(String);

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => peer.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

impl FromStr for Subject {
    type Err = ParseSubjectError;

    fn from_str(text: &str) -> Result<Self, ParseSubjectError> {
        let peer = text.parse().map(Self::Peer).ok();
        let subject = peer.or_else(|| text.parse().map(Self::Range).ok());
        subject.ok_or_else(|| ParseSubjectError(text.chars().take(64).collect()))
    }
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The operator.
    Operator,
    /// The node, for conduct.
    Conduct,
    /// The node, for fraud that is proven.
    Fraud,
}

/// One ban. Instants are Unix milliseconds, because bans outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// Who.
    pub subject: Subject,
    /// Since when.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// Who decided.
    pub by: By,
    /// How many times in a row, this one included.
    pub times: u8,
    /// Where a banned peer was.
    pub host: Option<Prefix>,
    /// Why; at most [`MAX_REASON`] bytes, without control characters.
    pub reason: String,
}

impl Ban {
    /// Whether it holds at `now_ms`.
    #[must_use]
    pub fn holds(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }
}

/// Every ban that could be made is one of the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_BANS} bans of yours are in force; lift one first")]
pub struct Full;

/// The bans of a node.
#[derive(Debug, Default)]
pub struct Bans {
    all: BTreeMap<Subject, Ban>,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What is kept of a reason.
fn cleaned(reason: &str) -> String {
    let mut kept = String::new();
    for c in reason.chars().filter(|c| !c.is_control()) {
        if kept.len().saturating_add(c.len_utf8()) > MAX_REASON {
            break;
        }
        kept.push(c);
    }
    kept
}

impl Bans {
    /// Those of an earlier run. More than [`MAX_BANS`], and those long over, are left out; returns what is not kept.
    #[must_use]
    pub fn load(bans: Vec<Ban>, now_ms: u64) -> (Self, Vec<Subject>) {
        let mut list = Self::default();
        let mut left_out = Vec::new();
        for ban in bans {
            if now_ms >= ban.until_ms.saturating_add(ms(MEMORY)) || list.all.len() >= MAX_BANS {
                left_out.push(ban.subject);
            } else {
                list.all.insert(ban.subject, ban);
            }
        }
        (list, left_out)
    }

    /// The operator's ban. Returns it, and whom it displaced from the list.
    ///
    /// # Errors
    /// When the list is full of the operator's bans.
    pub fn ban(
        &mut self,
        subject: Subject,
        duration: Duration,
        reason: &str,
        now_ms: u64,
    ) -> Result<(Ban, Option<Subject>), Full> {
        let until_ms = now_ms.saturating_add(ms(duration.min(MAX_DURATION)));
        let reason = cleaned(reason);
        self.put(Ban { subject, since_ms: now_ms, until_ms, by: By::Operator, times: 1, host: None, reason }, now_ms)
    }

    /// A ban for conduct, longer each time; `host` is where the peer is, unless hosts there are never banned. Returns what was
    /// added (the peer, and the host that many of its kind share), and whom that displaced from the list.
    pub fn misbehaved(
        &mut self,
        peer: PeerId,
        host: Option<Prefix>,
        reason: &str,
        now_ms: u64,
    ) -> Vec<(Ban, Option<Subject>)> {
        let subject = Subject::Peer(peer);
        let before = self.all.get(&subject);
        if before.is_some_and(|ban| ban.holds(now_ms)) {
            return Vec::new();
        }
        let times = before.map_or(0, |ban| ban.times);
        let duration = FIRST.saturating_mul(LONGER.saturating_pow(times.into())).min(LONGEST);
        let until_ms = now_ms.saturating_add(ms(duration));
        let times = times.saturating_add(1);
        let ban = Ban { subject, since_ms: now_ms, until_ms, by: By::Conduct, times, host, reason: cleaned(reason) };
        self.put_with_host(ban, now_ms)
    }

    /// A ban for proven fraud, whatever ban there is already; the operator's only if it ends before. `host` and what is returned
    /// are those of [`Bans::misbehaved`].
    pub fn defrauded(
        &mut self,
        peer: PeerId,
        host: Option<Prefix>,
        reason: &str,
        now_ms: u64,
    ) -> Vec<(Ban, Option<Subject>)> {
        let subject = Subject::Peer(peer);
        let before = self.all.get(&subject);
        let until_ms = now_ms.saturating_add(ms(FRAUD));
        if before.is_some_and(|ban| ban.by == By::Fraud && ban.holds(now_ms) || ban.until_ms >= until_ms) {
            return Vec::new();
        }
        let times = before.map_or(0, |ban| ban.times).saturating_add(1);
        let host = host.or_else(|| before.and_then(|ban| ban.host));
        let ban = Ban { subject, since_ms: now_ms, until_ms, by: By::Fraud, times, host, reason: cleaned(reason) };
        self.put_with_host(ban, now_ms)
    }

    /// Adds a ban, and that of its host where many of its kind share one.
    fn put_with_host(&mut self, ban: Ban, now_ms: u64) -> Vec<(Ban, Option<Subject>)> {
        let host = ban.host;
        let mut made: Vec<_> = self.put(ban, now_ms).into_iter().collect();
        made.extend(self.crowded(host, now_ms));
        made
    }

    /// Until when whoever is new in this range gets no credit, because so many of it were banned for fraud lately.
    #[must_use]
    pub fn wary_of(&self, range: Prefix, now_ms: u64) -> Option<u64> {
        let frauds = self.in_force(now_ms).filter(|ban| ban.by == By::Fraud);
        let of_range = frauds.filter(|ban| ban.host.is_some_and(|host| range.contains(host.first())));
        let (count, last) =
            of_range.fold((0_usize, 0), |(count, last), ban| (count.saturating_add(1), ban.since_ms.max(last)));
        let until = last.saturating_add(ms(WARY));
        (count >= FRAUDS_OF_A_RANGE && now_ms < until).then_some(until)
    }

    /// The ban of a host of which too many are banned.
    fn crowded(&mut self, host: Option<Prefix>, now_ms: u64) -> Vec<(Ban, Option<Subject>)> {
        let mut made = Vec::new();
        if let Some(host) = host {
            let there = self.all.values().filter(|ban| ban.host == Some(host) && ban.holds(now_ms)).count();
            let known = self.all.get(&Subject::Range(host)).is_some_and(|ban| ban.holds(now_ms));
            if there >= PEERS_OF_A_HOST && !known {
                let ban = Ban {
                    subject: Subject::Range(host),
                    since_ms: now_ms,
                    until_ms: now_ms.saturating_add(ms(FIRST)),
                    by: By::Conduct,
                    times: 1,
                    host: None,
                    reason: format!("{there} of its peers are banned"),
                };
                made.extend(self.put(ban, now_ms));
            }
        }
        made
    }

    fn put(&mut self, ban: Ban, now_ms: u64) -> Result<(Ban, Option<Subject>), Full> {
        let mut displaced = None;
        if self.all.len() >= MAX_BANS && !self.all.contains_key(&ban.subject) {
            let ours = self.all.values().filter(|old| !old.holds(now_ms) || old.by != By::Operator);
            let goes = ours.min_by_key(|old| (old.holds(now_ms), old.until_ms)).map(|old| old.subject).ok_or(Full)?;
            self.all.remove(&goes);
            displaced = Some(goes);
        }
        self.all.insert(ban.subject, ban.clone());
        Ok((ban, displaced))
    }

    /// Lifts a ban, and forgets that it was. `false` when there was none in force.
    pub fn unban(&mut self, subject: &Subject, now_ms: u64) -> bool {
        self.all.remove(subject).is_some_and(|ban| ban.holds(now_ms))
    }

    /// Whether `subject` itself is banned.
    #[must_use]
    pub fn holds(&self, subject: &Subject, now_ms: u64) -> bool {
        self.all.get(subject).is_some_and(|ban| ban.holds(now_ms))
    }

    /// The bans in force.
    pub fn in_force(&self, now_ms: u64) -> impl Iterator<Item = &Ban> {
        self.all.values().filter(move |ban| ban.holds(now_ms))
    }

    /// Bans that ended after `since_ms`, and those that are to be forgotten: they leave the list here.
    pub fn sweep(&mut self, since_ms: u64, now_ms: u64) -> (Vec<Subject>, Vec<Subject>) {
        let over = |ban: &&Ban| !ban.holds(now_ms) && ban.until_ms > since_ms;
        let ended = self.all.values().filter(over).map(|ban| ban.subject).collect();
        let old = self.all.extract_if(.., |_, ban| now_ms >= ban.until_ms.saturating_add(ms(MEMORY)));
        (ended, old.map(|(subject, _)| subject).collect())
    }

    /// Bans remembered, those that are over too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nobody was ever banned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[cfg(test)]
mod tests;
