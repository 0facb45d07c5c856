//! What a node is started with, checked and typed.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use libp2p::Multiaddr;
use quelea_behaviours::{KadMode, RelayServer};
use quelea_engine::StageOptions;
use quelea_wire::Price;

use crate::{
    address::PeerAddress,
    api::config::{ConfigFile, ConfigItem},
    home::Home,
    inference::{
        Disk, LogBudget,
        serve::{LayerChoice, ServeEnds},
        session_log::SessionLogs,
    },
    ledger::DebtTerms,
    masking::settings::MaskingSettings,
    services::ServiceSettings,
    telemetry::{tail::LogTail, traces::TraceSettings},
    weights::shelf::UPLOAD,
};

/// What an audit by others may cost, in hundredths of the answer's price, unless something else is said: two auditors of the
/// last stage, each of whom needs no more than the whole answer did.
pub(crate) const AUDIT_PRICE: u16 = 200;

/// How long announcements are believed unless said otherwise: as long as may be.
pub(crate) const ANNOUNCE_TTL: Duration = Duration::from_millis(quelea_announce::MAX_LIFETIME_MS);

/// Where a node keeps what it knows.
#[derive(Debug, Clone)]
pub(crate) enum Keep {
    /// Nowhere: a passing peer with a fresh identity.
    Nothing,
    /// In a data directory, which is locked while the node runs.
    In {
        /// The directory.
        home: Home,
        /// The identity file, in the directory unless said otherwise.
        identity: PathBuf,
        /// The database, likewise.
        db: PathBuf,
    },
}

impl Keep {
    /// Everything at its usual place in `home`.
    pub(crate) fn in_home(home: Home) -> Self {
        Self::In { identity: home.identity_key(), db: home.database(), home }
    }
}

/// Room for what stages have handed on, should somebody need it again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replay {
    /// Bytes in memory: by default 32,768 rows of 2,048 values, for all sessions.
    pub(crate) memory: u64,
    /// Bytes on disk, of a node that has a data directory.
    pub(crate) disk: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { memory: 256 << 20, disk: 4 << 30 }
    }
}

impl Replay {
    /// The room for it; on disk only where a data directory is kept.
    pub(crate) fn room(self, keep: &Keep) -> io::Result<LogBudget> {
        let disk = match keep {
            Keep::In { home, .. } if self.disk > 0 => Some(Disk::start(home.rows(), self.disk)?),
            _ => None,
        };
        Ok(LogBudget::new(usize::try_from(self.memory).unwrap_or(usize::MAX), disk))
    }
}

/// An address to serve HTTP on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bind {
    pub(crate) addr: SocketAddr,
    /// Whether another port will do when this one is taken: nobody asked for it by number.
    pub(crate) or_any_port: bool,
}

/// Layers to serve.
#[derive(Debug, Clone)]
pub(crate) struct ServeSpec {
    /// A GGUF file, or `demo`.
    pub(crate) model: String,
    /// Which of its layers.
    pub(crate) layers: LayerChoice,
    /// Bytes for weights and caches.
    pub(crate) memory: Option<u64>,
    /// Whether it computes the model's ends for those who do not have them.
    pub(crate) ends: ServeEnds,
}

/// What a node is started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) network: String,
    pub(crate) keep: Keep,
    pub(crate) listen: Vec<Multiaddr>,
    pub(crate) bootstrap: Vec<PeerAddress>,
    pub(crate) kad_mode: KadMode,
    pub(crate) relay_server: bool,
    /// What it gives as a relay.
    pub(crate) relay: RelayServer,
    /// Addresses that lead here, by the operator's word.
    pub(crate) external: Vec<Multiaddr>,
    /// How it hides among web servers, if it does.
    pub(crate) masking: Option<MaskingSettings>,
    pub(crate) upnp: bool,
    /// Whether loopback and private addresses have a share of connections like others.
    pub(crate) limit_local: bool,
    pub(crate) mdns: bool,
    /// Rendezvous points to register at and to ask for others.
    pub(crate) rendezvous: Vec<PeerAddress>,
    /// Whether it is a rendezvous point for others.
    pub(crate) rendezvous_server: bool,
    /// A file of certificates to trust at web servers besides those that browsers do.
    pub(crate) trust: Option<PathBuf>,
    /// For measurements: how far away it pretends to be, over TCP.
    pub(crate) line_delay: Duration,
    pub(crate) serve: Option<ServeSpec>,
    /// What it does for others besides layers.
    pub(crate) services: ServiceSettings,
    /// What its layers cost others.
    pub(crate) price: Price,
    /// Of a hundred answers over peers, how many are computed again here to see whether they are right.
    pub(crate) audit: u8,
    /// What an audit by others may cost, in hundredths of the answer's price.
    pub(crate) audit_price: u16,
    /// Micro-credits that a session may leave uncovered, where that was said.
    pub(crate) exposure: Option<u64>,
    /// When this node pays, and how long it waits for others.
    pub(crate) debts: DebtTerms,
    /// How long announcements are believed; provider records half as long again.
    pub(crate) announce_ttl: Duration,
    /// On what stages compute, and how.
    pub(crate) compute: StageOptions,
    /// Where models are kept by a node that keeps nothing else.
    pub(crate) models: Option<PathBuf>,
    /// Where answers are kept while they are given, by a node that keeps nothing else.
    pub(crate) sessions: Option<SessionLogs>,
    /// Bytes that all models on disk may take.
    pub(crate) models_quota: Option<u64>,
    /// Bytes of memory, and of the data directory's disk, for rows that may have to be handed on again.
    pub(crate) replay: Replay,
    /// Bytes of weights that peers get per second.
    pub(crate) upload: u64,
    /// Where metrics and health are served.
    pub(crate) metrics: Option<Bind>,
    /// Where traces go, if they do.
    pub(crate) traces: Option<TraceSettings>,
    /// Where the control API is served besides the socket in the data directory.
    pub(crate) api: Option<Bind>,
    /// Names besides `localhost` by which it is asked for.
    pub(crate) api_hosts: Vec<String>,
    /// Whether everybody who reaches it may do everything.
    pub(crate) api_open: bool,
    /// Whether the web page is served beside it.
    pub(crate) page: bool,
    /// What the API shows of the process.
    pub(crate) shown: Shown,
}

/// What the API shows of the process that the node runs in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// What it was started with.
    pub(crate) config: Vec<ConfigItem>,
    /// The file behind it, where there is one.
    pub(crate) file: Option<Arc<dyn ConfigFile>>,
    /// Its log, where it is kept.
    pub(crate) logs: Option<LogTail>,
}

impl Settings {
    /// A passing peer: asks, serves nothing, keeps nothing, listens nowhere.
    pub(crate) fn passing(network: &str, bootstrap: Vec<PeerAddress>) -> Self {
        Self {
            network: network.into(),
            keep: Keep::Nothing,
            listen: Vec::new(),
            bootstrap,
            kad_mode: KadMode::Client,
            relay_server: false,
            relay: RelayServer::default(),
            external: Vec::new(),
            masking: None,
            upnp: false,
            limit_local: false,
            mdns: false,
            rendezvous: Vec::new(),
            rendezvous_server: false,
            trust: None,
            line_delay: Duration::ZERO,
            serve: None,
            services: ServiceSettings::default(),
            price: Price::FREE,
            audit: 0,
            audit_price: AUDIT_PRICE,
            exposure: None,
            debts: DebtTerms::USUAL,
            announce_ttl: ANNOUNCE_TTL,
            compute: StageOptions::default(),
            models: None,
            sessions: None,
            models_quota: None,
            replay: Replay::default(),
            upload: UPLOAD,
            metrics: None,
            traces: None,
            api: None,
            api_hosts: Vec::new(),
            api_open: false,
            page: true,
            shown: Shown::default(),
        }
    }
}
