//! The command line, as clap reads it.

mod agent;
mod bench;
mod chat;
mod compute;
mod config;
mod coverage;
mod daemon;
mod debts;
mod dht;
mod global;
mod infer;
mod key;
mod ledger;
mod local;
mod masking;
mod model;
mod nat;
mod node;
mod peers;
mod plan;
mod price;
mod receipt;
mod rendezvous;
mod sampling;
mod service;
mod store;
mod swarm;
mod thin;
mod traces;
mod upkeep;
mod values;
mod watch;
mod web;
mod weights;

use clap::{Parser, Subcommand};

pub(crate) use self::{
    agent::{AgentCommand, InstallArgs, WebCommand},
    bench::{BenchChainArgs, BenchCommand, BenchLedgerArgs, BenchModelArgs, TransportArg},
    chat::{ChatArgs, EmbedArgs, ShellArgs},
    compute::{ComputeArgs, LogitsArgs, ReplayArgs},
    config::{ConfigCommand, InitArgs, ProfileArg},
    coverage::CoverageArgs,
    daemon::{DaemonArgs, KadMode},
    debts::DebtArgs,
    dht::DhtCommand,
    global::{ColorArg, Global, LogFormat},
    infer::{InferArgs, RouteArg},
    key::{ContextCommand, KeyCommand},
    ledger::{ExportFormat, IouCommand, LedgerCommand, TrustArgs},
    local::{CompletionsArgs, ErrorsCommand, ManArgs, VersionArgs},
    masking::{MaskedArgs, MaskingArg, MaskingArgs},
    model::ModelCommand,
    nat::{NatArgs, NetcheckArgs, PingArgs},
    node::{DemoArgs, HealthArgs},
    peers::{BanArgs, BootstrapCommand, PeerSort, PeersCommand},
    plan::{ObjectiveArg, PlanArgs},
    price::{MaxPriceArgs, PriceArgs},
    receipt::{AuditArgs, ReceiptCommand, VerifyArgs},
    rendezvous::RendezvousArgs,
    sampling::SamplingArgs,
    service::{CallArgs, OfferArgs, ServiceCommand},
    store::StoreCommand,
    swarm::{BroadcastArgs, EventsArgs},
    thin::{EndsArg, ThinArgs},
    traces::{TraceArgs, TraceCommand},
    upkeep::{CheckArgs, CheckFormat, CheckSubject, DebugCommand, LogLevelArgs, LogsArgs, MetricsArgs, ShutdownArgs},
    values::{parse_duration, parse_size},
    watch::WatchArg,
    web::{ApiArgs, TokenCommand, UiArgs},
    weights::{PullArgs, WeightsArgs},
};

/// Where to begin, and the exit codes of every command.
const AFTER_HELP: &str = "Examples:
  quelea demo                                        three nodes in one process answer a question
  quelea init && quelea daemon                       a node of your own
  quelea infer \"What is a relay?\"                    ask the swarm through it
  quelea status --watch                              what it does

Exit codes: 0 ok · 1 failed · 2 usage · 3 daemon unreachable · 4 access denied · 5 not found · \
6 timed out, no route or no capacity · 7 credit refused · 8 verification failed · 130 interrupted";

/// A swarm node that runs language models across peers.
#[derive(Debug, Parser)]
#[command(name = "quelea", version, propagate_version = true, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node until it is told to stop
    Daemon(Box<DaemonArgs>),
    /// See three nodes on this machine answer a question together
    Demo(DemoArgs),
    /// Ask a model that the swarm holds
    Infer(Box<InferArgs>),
    /// Talk with a model
    Chat(ChatArgs),
    /// What a model makes of texts, as vectors
    Embed(EmbedArgs),
    /// What a session's stages signed for, and whether it holds
    #[command(subcommand)]
    Receipt(ReceiptCommand),
    /// Compute again what a receipt's stages signed for, and compare
    Verify(VerifyArgs),
    /// Who would answer a request, how fast, and why; what is missing if nobody can
    Plan(Box<PlanArgs>),
    /// This node's peer id and addresses, or what is known of another
    #[command(
        after_help = "Examples:\n  quelea id\n  quelea id --json\n  quelea id 12D3KooW…\n  quelea id --format '{peer_id}'"
    )]
    Id {
        /// Another node's peer id
        peer: Option<String>,
        /// Print this, with the answer's fields in braces: '{peer_id} {addresses}' (see --json for their names)
        #[arg(long, value_name = "TEXT", conflicts_with = "json")]
        format: Option<String>,
    },
    /// What the node is doing: peers, spans, sessions
    #[command(after_help = "Examples:\n  quelea status\n  quelea status --watch\n  quelea status --json")]
    Status(WatchArg),
    /// The peers this node is connected to, remembers, or refuses
    #[command(subcommand)]
    Peers(PeersCommand),
    /// Peers that the node starts from, besides those of --bootstrap
    #[command(subcommand)]
    Bootstrap(BootstrapCommand),
    /// The node's counters: traffic, requests, gossip, queues, limits
    #[command(after_help = "Examples:\n  quelea stats\n  quelea stats --json")]
    Stats,
    /// What happens: peers, models, messages
    Events(EventsArgs),
    /// Say a line to every node of the network
    Broadcast(BroadcastArgs),
    /// How long a round trip to a peer takes, and which way it goes
    Ping(PingArgs),
    /// How this node can be reached: kind of NAT, addresses, relays, and what to do
    Netcheck(NetcheckArgs),
    /// Whether the node is well: exit code 0 or 1
    Health(HealthArgs),
    /// Values and peers that nobody keeps a list of
    #[command(subcommand)]
    Dht(DhtCommand),
    /// Small pieces of work for others, and by others
    #[command(subcommand)]
    Service(Box<ServiceCommand>),
    /// Copies of what the node keeps on disk
    #[command(subcommand)]
    Store(StoreCommand),
    /// Who owes whom: accounts, entries, IOUs by hand
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// What peers are worth to this node, and why
    Trust(TrustArgs),
    /// WASM programs that work for you, each in a process of its own
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Read pages of the web
    #[command(subcommand)]
    Web(WebCommand),
    /// Fetch, keep and look into models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Open the web page of this node
    Ui(UiArgs),
    /// Make, list and revoke tokens for the API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Measure this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// What is wrong with this node or its machine, and what to do about it: exit code 0 or 1
    #[command(
        after_help = "Examples:\n  quelea doctor\n  quelea doctor --json | jq '.items[] | select(.status != \"ok\")'"
    )]
    Doctor,
    /// One question for whatever watches machines; exit codes as Nagios has them
    Check(CheckArgs),
    /// The node's metrics, as Prometheus scrapes them
    Metrics(MetricsArgs),
    /// Where the time of this node's requests went
    #[command(subcommand)]
    Trace(TraceCommand),
    /// The daemon's log
    Logs(LogsArgs),
    /// What the daemon logs
    LogLevel(LogLevelArgs),
    /// End the daemon, and wait for its end
    Shutdown(ShutdownArgs),
    /// What helps to find a fault
    #[command(subcommand)]
    Debug(DebugCommand),
    /// The commands, one a line
    Shell(ShellArgs),
    /// What a daemon is started with: file, environment, profiles
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make the identity, the token and a configuration file, and say what comes next
    Init(InitArgs),
    /// The node's secret key: what it is known by, and a copy of it
    #[command(subcommand)]
    Key(KeyCommand),
    /// Names for nodes elsewhere
    #[command(subcommand)]
    Context(ContextCommand),
    /// Where the node keeps what
    #[command(after_help = "Examples:\n  quelea paths\n  quelea paths --json")]
    Paths,
    /// Which version this is
    Version(VersionArgs),
    /// What error codes mean
    #[command(subcommand)]
    Errors(ErrorsCommand),
    /// Completions for a shell
    Completions(CompletionsArgs),
    /// The manual
    Man(ManArgs),
}
#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
