//! The one registry of errors: a u16 on the wire, `QUE-nnnn` to people.
//!
//! | range | about |
//! |---|---|
//! | 1xxx | usage, configuration, this machine |
//! | 2xxx | finding peers and routing a request |
//! | 3xxx | the shard protocol |
//! | 4xxx | models and weights |
//! | 5xxx | storage |
//! | 6xxx | access |
//! | 7xxx | credit |
//! | 8xxx | services |
//! | 81xx | agents, pages of the web |

use std::fmt;

/// A number on the wire that this version does not know. Kept, so that it can be shown and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnknownErrorCode(pub u16);

macro_rules! registry {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $meaning:literal, retryable: $retryable:literal, charged: $charged:literal;)+) => {
        /// What went wrong, as every protocol, API and command names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* #[doc = $meaning] $name,)+
            /// A code of a newer version.
            Other(UnknownErrorCode),
        }

        impl ErrorCode {
            /// Every code of this version, in order of number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The number on the wire.
            #[must_use]
            pub fn to_u16(self) -> u16 {
                match self {
                    $(Self::$name => $number,)+
                    Self::Other(UnknownErrorCode(n)) => n,
                }
            }

            /// The code with this number; unknown numbers are kept.
            #[must_use]
            pub fn from_u16(n: u16) -> Self {
                match n {
                    $($number => Self::$name,)+
                    n => Self::Other(UnknownErrorCode(n)),
                }
            }

            /// The code as people see it, from a fixed set: fit for a metric's label.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("QUE-", $number),)+
                    Self::Other(_) => "QUE-other",
                }
            }

            /// One sentence for people.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)+
                    Self::Other(_) => "an error that only a newer version knows",
                }
            }

            /// Whether the same request may succeed later, perhaps through other peers.
            #[must_use]
            pub fn retryable(self) -> bool {
                match self {
                    $(Self::$name => $retryable,)+
                    Self::Other(_) => false,
                }
            }

            /// Whether a peer may have done work that it can charge for before this error.
            #[must_use]
            pub fn charged(self) -> bool {
                match self {
                    $(Self::$name => $charged,)+
                    Self::Other(_) => true,
                }
            }
        }
    };
}

registry! {
    Internal = 1000, "something failed inside this node", retryable: true, charged: true;
    Usage = 1001, "the request is malformed", retryable: false, charged: false;
    ShuttingDown = 1002, "the node is shutting down and takes no new work", retryable: true, charged: false;
    DaemonUnreachable = 1003, "no daemon answers", retryable: true, charged: false;
    Overloaded = 1004, "a queue is full", retryable: true, charged: false;
    Cancelled = 1005, "the caller cancelled the request", retryable: false, charged: true;
    ListenFailed = 1006, "an address cannot be listened on", retryable: false, charged: false;
    IdentityUnusable = 1007, "the identity or token file cannot be used", retryable: false, charged: false;
    HomeUnusable = 1008, "the data directory cannot be used", retryable: false, charged: false;
    NoRoute = 2001, "no chain of peers covers all layers", retryable: true, charged: false;
    NotConnected = 2002, "no connection to the peer", retryable: true, charged: false;
    DialFailed = 2003, "the peer could not be dialled", retryable: true, charged: false;
    NoBootstrap = 2004, "no bootstrap peer answered", retryable: true, charged: false;
    HopSilent = 2005, "a peer on the route stopped answering", retryable: true, charged: true;
    HopLost = 2006, "the connection to a peer on the route broke", retryable: true, charged: true;
    DeadlineExceeded = 2007, "the deadline passed", retryable: true, charged: true;
    PeerUnknown = 2008, "no address of the peer is known", retryable: true, charged: false;
    NotFound = 2101, "nobody who was asked has it", retryable: true, charged: false;
    QuorumNotMet = 2102, "too few peers acknowledged it", retryable: true, charged: false;
    BadFrame = 3001, "a frame is malformed", retryable: false, charged: false;
    FrameTooLarge = 3002, "a frame is larger than allowed", retryable: false, charged: false;
    UnknownCritical = 3003, "a frame of an unknown kind was marked critical", retryable: false, charged: false;
    VersionMismatch = 3004, "the peers share no protocol version", retryable: false, charged: false;
    UnknownSession = 3005, "the session is not open here", retryable: true, charged: false;
    DuplicateSession = 3006, "a session of this name is already open", retryable: false, charged: false;
    TooManySessions = 3007, "the peer holds as many sessions as it allows", retryable: true, charged: false;
    StaleEpoch = 3008, "the epoch is older than the session's", retryable: false, charged: false;
    WrongPredecessor = 3009, "rows came from a peer that is not the session's predecessor", retryable: false, charged: false;
    BadPosition = 3010, "rows do not follow those before them", retryable: false, charged: false;
    NotFinite = 3011, "rows hold NaN or infinity", retryable: false, charged: false;
    BadShape = 3012, "rows have the wrong width or count", retryable: false, charged: false;
    IdleTimeout = 3013, "the session was idle for too long", retryable: true, charged: true;
    Evicted = 3014, "the session was evicted", retryable: true, charged: true;
    NextUnreachable = 3015, "the next peer of the chain cannot be reached", retryable: true, charged: false;
    NextSilent = 3016, "the next peer of the chain does not acknowledge", retryable: true, charged: true;
    BadCommitment = 3017, "a peer's commitment is not one for this session", retryable: true, charged: true;
    RootsDiffer = 3018, "what peers committed to does not fit together", retryable: true, charged: true;
    ModelUnknown = 4001, "the model is not known here", retryable: false, charged: false;
    LayersNotHeld = 4002, "the peer does not hold these layers", retryable: true, charged: false;
    ProfileMismatch = 4003, "the peer computes with another numeric profile", retryable: false, charged: false;
    ModelFile = 4004, "the model file cannot be used", retryable: false, charged: false;
    NoKvPages = 4005, "the peer has no room for the session's keys and values", retryable: true, charged: false;
    EngineFailed = 4006, "the model failed to compute", retryable: true, charged: true;
    ContextFull = 4007, "prompt and answer are longer than the model's context", retryable: false, charged: false;
    ModelFileNeeded = 4008, "the coordinator needs the model's file for tokenizer, embedding and head", retryable: false, charged: false;
    NoMemory = 4009, "the model does not fit in this machine's memory", retryable: false, charged: false;
    StorageFailed = 5001, "the node's storage failed; it signs nothing more", retryable: false, charged: false;
    StorageFull = 5002, "no space is left on the device", retryable: false, charged: false;
    AnswerUnreadable = 5003, "what is kept of the answer cannot be read", retryable: false, charged: false;
    AnswerBusy = 5004, "the answer is being answered", retryable: true, charged: false;
    Unauthorized = 6001, "the API token is missing or wrong", retryable: false, charged: false;
    PriceTooHigh = 7001, "the price is above what the caller gives", retryable: false, charged: false;
    PaymentRequired = 7002, "the peer works for credit, and the price is not covered", retryable: true, charged: false;
    NoCredit = 7003, "the peer gives no more credit", retryable: true, charged: false;
    LedgerNotReady = 7004, "the ledgers of the two peers do not agree yet", retryable: true, charged: false;
    NotCovered = 7005, "more was computed than vouchers cover", retryable: true, charged: true;
    ReceiptWrong = 7006, "the receipt does not hold", retryable: false, charged: false;
    AccountFrozen = 7007, "nothing is signed for this peer", retryable: false, charged: false;
    ServiceUnknown = 8001, "the peer offers no such service", retryable: false, charged: false;
    ServiceInput = 8002, "the service cannot work on this input", retryable: false, charged: false;
    ServiceFailed = 8003, "the service failed", retryable: true, charged: false;
    ServiceExhausted = 8004, "the call used up what it may use", retryable: false, charged: true;
    UpstreamFailed = 8005, "what stands behind the service failed", retryable: true, charged: false;
    CallConflict = 8006, "the call's id was used for something else", retryable: false, charged: false;
    ServiceAnswer = 8007, "what the peer answered is no answer of a service", retryable: true, charged: false;
    AgentRefused = 8101, "the module is not one that is run here", retryable: false, charged: false;
    AgentFailed = 8102, "the agent failed", retryable: false, charged: true;
    AllowanceSpent = 8103, "the agent's allowance does not cover it", retryable: false, charged: false;
    FetchFailed = 8104, "the page cannot be fetched or read", retryable: true, charged: false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QUE-{:04}", self.to_u16())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        let numbers: BTreeSet<u16> = ErrorCode::ALL.iter().map(|c| c.to_u16()).collect();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(code.to_u16()), code);
            assert!(!code.meaning().is_empty());
            assert_eq!(code.label(), code.to_string());
        }
        assert_eq!(ErrorCode::from_u16(9999).to_string(), "QUE-9999");
        assert_eq!(ErrorCode::NoRoute.to_string(), "QUE-2001");
    }

    #[test]
    fn what_was_never_accepted_is_never_charged() {
        for code in [ErrorCode::NoRoute, ErrorCode::LayersNotHeld, ErrorCode::NoKvPages, ErrorCode::TooManySessions] {
            assert!(!code.charged() && code.retryable(), "{code}");
        }
    }
}
