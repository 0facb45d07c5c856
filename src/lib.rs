//! Quelea: a libp2p swarm node that runs language models across peers.
//!
//! A [`Node`] joins a swarm, serves a span of a model's layers, and answers requests with the help of the peers that hold
//! the others. The `quelea` binary is a thin shell around it.
//!
//! | module | what is there |
//! |---|---|
//! | `node` | a running node, and how it starts and stops |
//! | `swarm` | the event loop and the handle to it |
//! | `inference` | chains of peers: coordinating, serving, announcing |
//! | `storage`, `identity`, `home` | what is kept on disk |
//! | `telemetry` | logs, metrics, health |
//! | `events` | what happened, for those who follow it |
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
pub mod agents;
mod api;
mod bench;
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
mod masking;
mod netcheck;
mod node;
mod services;
mod storage;
mod swarm;
mod telemetry;
mod text;
mod weights;

pub use inference::{
    Cost, CoverageHolder, CoverageReport, FinishReason, Format, HopReport, InferError, InferEvent, InferRequest,
    LikelyToken, Objective, PlanHop, PlanLeftOut, PlanMissing, PlanReport, PlanRequest, PlanView, Prediction,
    PromptForm, Recovery, Route, RouteHop, Source, Speculate, Speculation, StageCost, Summary, TokenLogprobs,
};
pub use node::{Node, NodeBuilder, StartError};
