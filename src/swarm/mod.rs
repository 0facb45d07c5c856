//! The running swarm: one task owns it, everybody else holds a [`Handle`].
//!
//! [`driver`] selects and counts, [`dispatch`] routes, and the files under `on` act, one per source of events, in plain
//! functions. The loop awaits nothing but its `select!`; disk, hashing and tensors live elsewhere.
//!
//! # Queues
//!
//! | queue | bound | when full | counter: `quelea_channel_full_total{name=…}` |
//! |---|---|---|---|
//! | commands: handles → loop | 256 | the caller waits, up to its own deadline | – |
//! | inbound shard streams: loop → plane | 64 | the stream is reset; its opener sees a broken stream | `shard_inbound` |
//! | inbound calls of services: loop → provider | 64 | the stream is reset; its opener sees a broken stream | `service_inbound` |
//! | questions about weights: loop → librarian | 32 | the peer is told to come back | `weights` |
//! | packets of peers: loop → keeper of the ledger | 1,024 | the peer is told to send it again | `ledger` |
//! | peers that come and go: loop → keeper | the same | dropped: the next packet shows it | `ledger` |
//! | packets: keeper → loop | the commands' | dropped, each counted: the ledger syncs again | `ledger_send` |
//! | packets: loop → peer | 256 a peer, 4,096 in all | dropped: the peer's newest, or of the peer that has most | `ledger_out` |
//! | answers: loop → caller | 1 (oneshot) | cannot be full | – |
//! | providers found: loop → caller | 64, as many as one look-up takes | cannot be full | – |
//! | questions to the DHT | 32 | the caller is told to come back | `queries` |
//! | look-ups at once | 64 | the caller is told that nobody was found | `queries` |
//! | notices: loop → watchers (bootstrap, publisher) | 256, broadcast | the oldest is overwritten; the watcher is told how many | – |
//! | peers seen: loop → storage | 1,024 | the sighting is dropped, the next one replaces it | `storage` |
//! | gossip messages to be checked: loop → checker, and back | 256, 32 of one peer | the message is ignored, without blame | `gossip_validation` |
//! | events: loop → those who follow them | 1,024 kept | the oldest goes; the follower is told how many | – |
//! | jobs: links → stage | per stage, see `quelea_engine::runner` | the session ends with `QUE-1004` | `stage` |
//! | batches: stage → link to the next hop | 64 and 32 MiB per link | the session ends with `QUE-3016` | – |
//! | results: link → coordinator's session | 16 | the result is dropped, the session's deadline ends it | `results` |
//! | control frames, each way | 256 per stream | out: the frame is dropped, the peer does not read; in: reading stops | – |

mod command;
pub(crate) mod dht;
mod dispatch;
mod driver;
mod events;
mod handle;
mod nat;
mod on;
mod pending;
mod state;
mod validation;

pub(crate) use driver::{Driver, DriverConfig};
pub use events::SwarmNotice;
pub(crate) use handle::{
    AnnouncementError, BroadcastError, ConnectError, Handle, OpenStreamError, PingFailure, WeightsError,
};
pub(crate) use nat::{NatView, Pong, Upnp};
pub(crate) use on::peers::Remembered;
pub(crate) use state::{KnownView, PeerView};
