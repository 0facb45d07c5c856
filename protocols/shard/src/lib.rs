//! The shard protocol `/quelea/<net>/shard/1`: activations streamed from one span of layers to the next.
//!
//! A request runs along a chain: coordinator → stage A → stage B → coordinator. Three kinds of long-lived substreams
//! carry it, all negotiated under the one protocol name; the first frame says which kind a stream is:
//!
//! | stream | opened by | accepted by | one per | carries |
//! |---|---|---|---|---|
//! | *control* | coordinator | stage | coordinator and stage | opening, trimming, cancelling and closing of all sessions between the two |
//! | *decode* | predecessor | successor | neighbours and direction | rows of single tokens, of all sessions |
//! | *bulk* | predecessor | successor | neighbours and direction | rows of prompts and replays, of all sessions |
//!
//! Decode and bulk are apart so that a long prompt never stands before a token. Data flows from opener to acceptor;
//! acknowledgements, and answers on control, flow back on the same stream.
//!
//! # Frames
//!
//! Little-endian throughout: `u32` length of what follows, `u8` kind, `u8` flags, then the kind's own fields. Bit 0 of
//! the flags is CRITICAL: who does not know the kind closes the stream with [`Reject`](frame::Reject); without it the
//! frame is skipped. Other bits are zero and ignored. Every length has a cap that is checked before memory is taken for
//! it ([`frame`]); bytes after the last field are an error, so fields are added by new kinds and feature bits only.
//!
//! | kind | name | stream | from | fields |
//! |---|---|---|---|---|
//! | 0x01 | Hello | all | opener, first | version u16, stream kind u8, features u64 |
//! | 0x02 | HelloAck | all | acceptor, first | version u16, features u64 |
//! | 0x03 | Reject | all | either, last | code u16 |
//! | 0x10 | Open | control | coordinator | session \[16\], epoch u32, model \[32\], profile u16, span u16 u16, width u32, max_rows u32, step_deadline_ms u32, idle_ms u32, prev peer, next peer, next_addrs, *prefix: keys, reuse u8*, *thin: takes_tokens u8, gives_logits u16*, *pay: hold \[16\], price_decode u64, price_prefill u64*, *trace: traceparent \[55\]* |
//! | 0x11 | Accept | control | stage | session, epoch, kv_pages_free u32, *prefix: kept_rows u32* |
//! | 0x12 | Refuse | control | stage | session, epoch, code u16, detail; retry_after_ms u32 if not 0 |
//! | 0x13 | Trim | control | coordinator | session, epoch, keep_rows u32 |
//! | 0x14 | Probe | control | coordinator | session, epoch |
//! | 0x15 | State | control | stage | session, epoch, phase u8, pos u32, totals |
//! | 0x16 | Cancel | control | coordinator | session, epoch, code u16 |
//! | 0x17 | Close | control | coordinator | session, epoch |
//! | 0x18 | Closed | control | stage | session, epoch, code u16 (0: as asked), totals |
//! | 0x19 | Fault | control | stage | session, epoch, code u16, about peer (or none), detail |
//! | 0x1a | Keep | control | coordinator | *prefix:* session, epoch, first u8, keys |
//! | 0x1b | Stalled | control | stage | *failover:* session, epoch, code u16, about peer |
//! | 0x1c | Reroute | control | coordinator | *failover:* session, epoch, prev peer, next peer, next_addrs |
//! | 0x1d | Rerouted | control | stage | *failover:* session, epoch, pos u32, log_from u32 |
//! | 0x1e | Resume | control | coordinator | *failover:* session, epoch, from u32, until u32, roots_from u32 |
//! | 0x1f | Commit | control | stage | *failover:* session, epoch, envelope (u16 length, at most 256 bytes) |
//! | 0x20 | Voucher | control | coordinator | *pay:* session, epoch, envelope (u16 length, at most 1,124 bytes) |
//! | 0x21 | Receipt | control | stage | *pay:* as Voucher |
//! | 0x40 | Rows | data | predecessor | session, epoch, seq u32, pos u32, rows u16, flags u8, deadline_ms u32, total u32, offset u32, fragment |
//! | 0x41 | Ack | data | successor | session, epoch, seq u32, received u32 |
//! | 0x42 | Tokens | data | predecessor | *thin:* as Rows; the fragment is u32 token ids, one a row, all of the batch's |
//! | 0x43 | Logits | data | predecessor | *thin:* as Rows; the fragment is what [`frame::TopLogits`] says |
//! | 0x44 | Rows16 | data | predecessor | *bf16:* as Rows; the fragment is bf16 values |
//!
//! A *peer* is a u8 length and that many bytes (0: none), *next_addrs* a u8 count of (u16 length, multiaddr), *detail*
//! a u16 length and UTF-8, *totals* rows_in, rows_out, compute_us, queue_us, hop_us, all u64. A *fragment* is f32
//! values, row after row. 0x22–0x3f are kept for control, 0x45–0x7f for data.
//!
//! | feature bit | name | what it adds |
//! |---|---|---|
//! | 0 | prefix | the last fields of Open and Accept, which are there or not at all, and Keep |
//! | 1 | rewind | the flag of Rows by which rows go back behind the last ones |
//! | 2 | failover | a session outlives the loss of a stage: Stalled, Reroute, Rerouted, Resume, Commit |
//! | 3 | thin | the first stage embeds, the last has the head: a field of Open, Tokens, Logits |
//! | 4 | bf16 | sessions of the profile `exact-bf16`, whose rows are Rows16 |
//! | 5 | pay | stages are paid: the last field of Open but one, Voucher, Receipt |
//! | 6 | trace | the last field of Open |
//!
//! What a feature adds is sent only where both ends have said that they know it; otherwise it ends the stream.
//!
//! # Beginnings of prompts
//!
//! A coordinator may name the blocks of 32 rows that a prompt begins with ([`frame::BlockKey`]): *keys* is a u8 count, 1 to
//! 128, and 16 bytes each. A stage takes over as many of the first `reuse` blocks as it has kept under these names, of the
//! same coordinator, model, profile and layers, and says how many rows that are. Chains begin where all stages have rows:
//! the coordinator trims those that have more, waits for their State, and sends rows from there on. Whole blocks that the
//! session fills itself are kept under their names. A stage may forget them at any time.
//!
//! # Coordinators without the model's ends
//!
//! A coordinator that has neither embedding nor head says in Open to the first stage that it takes token ids, and to the
//! last how many logits it gives for each row. The first one embeds, and is the only one that sees token ids; the last one
//! gives the likeliest logits and what they all sum up to, never a token: sampling stays with the coordinator. Where both
//! fields are nothing they are not there; where there is only the second, a count of 0 keys stands before it.
//!
//! # Being paid
//!
//! A stage that asks a price takes an Open only with a hold in the ledger of the two, by its prices. The coordinator says with
//! Voucher how much it owes by now, before it gives more rows than the stage computes uncovered, and the stage says at the
//! end with Receipt what it has done. Both are signed, and are the ledger's; here they are bytes. Where an Open has *pay*, the
//! fields before it are there, too: a count of 0 keys, and three zeros for ends that are none.
//!
//! # Traces
//!
//! A coordinator that traces a request may say in Open which of its spans a stage's work belongs to: W3C's `traceparent`,
//! version 00, 55 bytes of text, read strictly ([`quelea_wire::TraceParent`]). Where an Open has *trace*, the fields before it are
//! there, too: 32 zeros where nothing is paid. A stage owes it nothing, and nothing else of a trace travels: no `tracestate`,
//! and no baggage.
//!
//! # When a stage is lost
//!
//! A stage keeps what it computed for a session, for as long as its limits allow. One that loses the next peer says
//! Stalled and keeps the session, for half a minute. The coordinator picks who takes the lost layers, raises the epoch,
//! opens the session there, and sends Reroute to all others: they keep their rows and say how many they have, and from
//! where on they have what they handed on. A stage that has less than the next one lacks is trimmed back to there, and
//! computes again from what the one before it kept; at worst the coordinator sends all rows anew. Then every stage is
//! told with Resume where the next one stands, hands on from there what it kept, and goes on with what it computes. What
//! is opened in a later epoch than 1 waits for Resume too: it computes rows that others have had, and hands none of them
//! on. Frames of older epochs are dropped everywhere.
//!
//! # What stages sign for
//!
//! With Commit a stage sends signed roots of what it took in and gave out; [`commitment`] says what they are, when they come,
//! and what the coordinator makes of them.
//!
//! # Who does what
//!
//! [`Behaviour`] opens and accepts substreams and knows nothing of what is on them. Everything that runs on a stream is
//! plain async code over any `AsyncRead + AsyncWrite`: [`protocol`] greets, [`codec`] cuts frames, [`link`] runs one
//! stream's task. [`session`] is what a stage knows of one session, as a pure state machine. [`reassembly`] puts batches
//! together again.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod behaviour;
pub mod codec;
pub mod commitment;
pub mod frame;
mod handler;
pub mod link;
pub mod protocol;
pub mod reassembly;
pub mod session;
mod stream;

use libp2p::StreamProtocol;
use quelea_wire::NetworkId;

pub use behaviour::{Behaviour, Config, Event, OpenError, OpenId, Stats};
pub use handler::{Command, Handler, Report};
pub use stream::ShardStream;

/// The protocol's name within `/quelea/<net>/<name>/<major>`.
pub const NAME: &str = "shard";

/// The protocol's major version: peers of different majors cannot talk. Within one, [`protocol::VERSION`] is negotiated.
pub const MAJOR: u32 = 1;

/// The full protocol id on `network`.
#[must_use]
pub fn protocol_id(network: &NetworkId) -> StreamProtocol {
    network.protocol(NAME, MAJOR)
}
