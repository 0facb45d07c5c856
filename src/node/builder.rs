//! The library's way to a node.

use std::path::PathBuf;

use libp2p::Multiaddr;
use quelea_behaviours::KadMode;
use quelea_wire::{ErrorCode, Price};

use super::{
    Node,
    settings::{Keep, ServeSpec, Settings},
};
use crate::{
    address::{parse_multiaddr, parse_peer_address},
    home::Home,
    inference::{
        InferError,
        serve::{LayerChoice, ServeEnds},
    },
};

/// Why a node could not start.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    pub(crate) code: ErrorCode,
    /// What happened and what to do.
    pub message: String,
    pub(crate) hint: Option<String>,
}

impl StartError {
    /// Its code, `QUE-nnnn`; `quelea errors list` shows all.
    #[must_use]
    pub fn code(&self) -> String {
        self.code.to_string()
    }

    /// What to do about it, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn internal(message: String) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    pub(crate) fn listen(message: String) -> Self {
        Self::new(ErrorCode::ListenFailed, message)
    }

    pub(crate) fn home(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::HomeUnusable, error.to_string())
    }

    pub(crate) fn identity(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::IdentityUnusable, error.to_string())
    }
}

impl From<InferError> for StartError {
    fn from(error: InferError) -> Self {
        Self { code: error.error_code(), message: error.message, hint: error.hint }
    }
}

/// Collects what a node is started with.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use quelea::{InferEvent, InferRequest, Node};
///
/// let node = Node::builder().listen("/ip4/127.0.0.1/tcp/0")?.serve("demo", "all")?.start().await?;
/// let mut answer = node.infer(InferRequest::new("demo", "What is a relay?"));
/// while let Some(event) = answer.next().await {
///     if let InferEvent::Done { summary } = event {
///         assert!(!summary.text.is_empty());
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    settings: Settings,
    home: Option<PathBuf>,
    memory: Option<u64>,
}

impl NodeBuilder {
    pub(super) fn new() -> Self {
        let mut settings = Settings::passing("main", Vec::new());
        settings.kad_mode = KadMode::Server;
        Self { settings, home: None, memory: None }
    }

    /// The network; nodes of different networks never talk. `main` by default.
    #[must_use]
    pub fn network(mut self, name: &str) -> Self {
        self.settings.network = name.into();
        self
    }

    /// Listens on this multiaddr as well.
    ///
    /// # Errors
    /// When it is not a multiaddr; the message names the part that is wrong.
    pub fn listen(mut self, addr: impl AsRef<str>) -> Result<Self, StartError> {
        let addr: Multiaddr = parse_multiaddr(addr.as_ref()).map_err(usage)?;
        self.settings.listen.push(addr);
        Ok(self)
    }

    /// Starts from this peer as well: a full multiaddr ending in its peer id.
    ///
    /// # Errors
    /// When it is not one; the message names the part that is wrong.
    pub fn bootstrap(mut self, addr: impl AsRef<str>) -> Result<Self, StartError> {
        self.settings.bootstrap.push(parse_peer_address(addr.as_ref()).map_err(usage)?);
        Ok(self)
    }

    /// Keeps identity and database in this directory. Without it the node keeps nothing.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.home = Some(dir.into());
        self
    }

    /// Serves layers of a model: a GGUF file or `demo`; `A..B`, `all` or `auto`.
    ///
    /// # Errors
    /// When `layers` is none of these.
    pub fn serve(mut self, model: &str, layers: &str) -> Result<Self, StartError> {
        let layers = match layers {
            "auto" => LayerChoice::Auto,
            "all" => LayerChoice::All,
            range => LayerChoice::Exactly(range.parse().map_err(usage)?),
        };
        self.settings.serve = Some(ServeSpec { model: model.into(), layers, memory: None, ends: ServeEnds::default() });
        Ok(self)
    }

    /// The most bytes that the layers that are served may take, with the keys and values of sessions. Half of what the machine has
    /// free by default.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// What layers cost others: micro-credits for 1,000 layer-rows of answers, and of prompts. They are free by default.
    #[must_use]
    pub fn price(mut self, answers: u64, prompts: u64) -> Self {
        self.settings.price = Price { decode: answers, prefill: prompts };
        self
    }

    /// Finds peers on the LAN (mDNS).
    #[must_use]
    pub fn mdns(mut self) -> Self {
        self.settings.mdns = true;
        self
    }

    /// Starts the node; when this returns, it is ready.
    ///
    /// # Errors
    /// [`StartError`] says what failed and what to do.
    pub async fn start(mut self) -> Result<Node, StartError> {
        if let Some(dir) = self.home.take() {
            self.settings.keep = Keep::in_home(Home::new(Some(dir)).map_err(StartError::home)?);
        }
        if let (Some(serve), Some(_)) = (&mut self.settings.serve, self.memory) {
            serve.memory = self.memory;
        }
        Node::start(self.settings).await
    }
}

fn usage(error: impl std::fmt::Display) -> StartError {
    StartError::new(ErrorCode::Usage, error.to_string())
}
