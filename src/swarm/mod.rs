//! The running swarm: one task owns it, everybody else holds a [`Handle`].
//!
//! [`driver`] selects and counts, [`dispatch`] routes, and the files under `on` act, one per source of events, in plain
//! functions. The loop awaits nothing but its `select!`; disk, hashing and tensors live elsewhere.
//!
//! # Queues
//!
//! | queue | bound | when full | counter |
//! |---|---|---|---|
//! | commands: handles → loop | 256 | the caller waits, up to its own deadline | `quelea_channel_full_total{name="commands"}` when it gives up |
//! | inbound shard streams: loop → host | 64 | the stream is reset; its opener sees a broken stream | `…{name="shard_inbound"}` |
//! | answers: loop → caller | 1 (oneshot) | cannot be full | – |
//! | providers found: loop → caller | 64, as many as one look-up takes | cannot be full | – |
//! | events: loop → watchers (log, demo, API) | 256, broadcast | the oldest is overwritten; the watcher is told how many it missed | – |
//! | peers seen: loop → storage | 1,024 | the sighting is dropped, the next one replaces it | `…{name="storage"}` |
//! | jobs: links → stage | per stage, see `quelea_engine::runner` | the batch is refused with `QUE-1004` | `…{name="stage"}` |
//! | batches: stage → link to the next hop | 64 per link | the session fails with `QUE-3016` | `…{name="link"}` |
//! | answers on a control stream | 64 per stream | the stream is closed: a coordinator that does not read is gone | `…{name="control"}` |

mod command;
mod dispatch;
mod driver;
mod events;
mod handle;
mod on;
mod pending;
mod state;

pub(crate) use driver::{Driver, DriverConfig};
pub use events::SwarmNotice;
pub(crate) use handle::{ConnectError, Handle, OpenStreamError};
