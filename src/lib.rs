//! Quelea: a libp2p swarm node that runs language models across peers.
//!
//! A [`Node`] joins a swarm, serves a span of a model's layers, and answers requests with the help of the peers that hold
//! the others. [`Node::builder`] makes one inside another program; `docs/library.md` and `examples/` show how. The `quelea` binary
//! is a thin shell around it.
//!
//! | to do what | with |
//! |---|---|
//! | start a node | [`NodeBuilder`], [`StartError`] |
//! | ask | [`Node::infer`], [`InferRequest`], [`Answer`], [`InferEvent`], [`Summary`], [`InferError`] |
//! | see who would answer | [`Node::plan`], [`Node::coverage`] |
//! | follow what happens | [`Node::events`], [`Followed`], [`EventKind`] |
//! | name peers | [`PeerId`], [`Address`] |
//!
//! What is not shown here is the program's, and may change at any time. In the source:
//!
//! | module | what is there |
//! |---|---|
//! | `node` | a running node, and how it starts and stops |
//! | `swarm` | the event loop and the handle to it |
//! | `inference` | chains of peers: coordinating, serving, announcing |
//! | `storage`, `identity`, `home` | what is kept on disk |
//! | `telemetry` | logs, metrics, health |
//! | `events` | what happened, for those who follow it |
//! | `library` | types of the library's face |
//! | `api`, `cli` | the ways in |
//! | `netcheck` | how this node can be reached, in words |
//! | `hub` | model files from the web |
//! | `agents` | WASM modules, in processes of their own |
//! | `fetch` | pages that strangers name |
//! | `weights` | models on disk, given to peers and fetched from them |
//! | `services` | small pieces of work for others, and by others |
//! | `masking` | the web front behind which a masked node stands |
//! | `bench` | what `quelea bench` measures |
//! | `demo` | the embedded model and three nodes in one process |

#![forbid(unsafe_code)]

mod accept;
mod address;
#[doc(hidden)]
pub mod agents;
mod api;
mod bench;
#[doc(hidden)]
pub mod cli;
mod demo;
mod events;
mod fetch;
mod home;
mod http;
mod hub;
mod identity;
mod inference;
mod ledger;
mod library;
mod masking;
mod netcheck;
mod node;
mod services;
mod storage;
mod swarm;
mod telemetry;
mod text;
mod weights;

pub use events::{Event, EventKind, Offered};
pub use inference::{
    CommittedRows, Cost, CoverageHolder, CoverageReport, CutOff, FinishReason, Format, HopReport, InferError,
    InferEvent, InferRequest, LikelyToken, Objective, PlanHop, PlanLeftOut, PlanMissing, PlanReport, PlanRequest,
    PlanView, Prediction, PromptForm, Recovery, RequestProfile, Route, RouteHop, Saw, Source, Speculate, Speculation,
    StageCost, Summary, TokenLogprobs,
};
pub use library::{Address, Answer, Events, Followed, NotAPeerId, NotAnAddress, PeerId};
pub use node::{ConnectError, Node, NodeBuilder, StartError};
