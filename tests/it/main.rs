//! The built `quelea` as its users meet it: real daemons and commands, each a process of its own, on loopback.
//!
//! | module | asks |
//! |---|---|
//! | `swarm` | is a split model's answer the unsplit model's, whatever the spans and transports |
//! | `prefix` | do prompts that begin alike cost only their new rows |
//! | `failover` | does an answer go on, with the same tokens, when another worker can take over |
//! | `losses` | does it also when the loss comes while a prompt or what was lost is being computed, or tokens are guessed |
//! | `chaos` | does it whoever is lost, stopped or slowed, whenever that is, and is nothing left of it afterwards |
//! | `headline` | do daemons answer together with a model that none of them could hold |
//! | `resume` | does an answer that was cut off go on with the same tokens, whoever had died |
//! | `failure` | does a request end in time, and named, when a worker or its caller goes away |
//! | `ledger` | is what peers owe each other kept and said, whoever is killed |
//! | `paid` | do payers and stages come to the same amount, whoever dies, and is nothing paid twice |
//! | `overdue` | is who does not pay asked, refused credit and remembered, whenever the creditor is killed |
//! | `access` | does the API let in who may, as far as they may, and nobody's page |
//! | `lifecycle` | do daemons start, stop and come back as documented |
//! | `bad_input` | is every mistake answered by a clear error and a documented exit code |
//! | `cli` | does every command take the same flags, end with the documented code, and read the same configuration |
//! | `terminal` | do conversations, the shell, and the commands of whoever keeps a node running work through a pipe |
//! | `bad_model` | are damaged and foreign model files refused in words |
//! | `advisories` | do published attacks on the libraries beneath come to nothing |
//! | `bans` | is a banned peer out until it is forgiven |
//! | `cheats` | does the ledger hold against peers that cheat in it |
//! | `claims` | is a claim against a liar believed by who has computed it, and by nobody else
//! | `masking` | does a masked node show nothing but a web server |
//! | `measure` | do measurements come with their limits, and logits the same on every path |
//! | `gossip` | is a line heard once by everybody, and does it stay a line |
//! | `peers` | do nodes hear of each other, find back, and show it |
//! | `registry` | do the dead and the slow get no work, and do many sessions leave nothing in memory |
//! | `local_llm` | is a model of this machine started when it is called, again when it dies, and gone with its daemon |
//! | `services` | are calls of services answered, and paid once, whoever goes away |
//! | `sampling` | do stop strings, log-probabilities and penalties do what they say |
//! | `watch` | do health and metrics tell what happened |
//! | `hostile` | does a worker go on serving, right and in time, while it is attacked |
//! | `agents` | can modules of strangers do nothing but compute and ask, within their limits |
//! | `dht` | are values, providers and peers found through others, and given up |
//! | `weights` | do models come from peers as they are, whatever happens on the way |
//! | `thin` | is an answer the same for somebody who has nothing of the model but its id |
//! | `private` | is it also the same with the outer layers kept, and is it said who saw what |
//! | `thin_links` | do half the bytes between peers give one answer, however the layers are cut |
//! | `openai` | do the clients that people have get what they expect |
//! | `openapi` | does every route answer as the OpenAPI document says, whatever it is asked |
//! | `shapes` | does `--json` print what its page says, command by command |
//! | `demo` | does the demo work with nothing at hand |

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a failed or skipped test says why")]

mod access;
mod advisories;
mod agents;
mod bad_input;
mod bad_model;
mod bans;
mod chaos;
mod cheats;
mod claims;
mod cli;
mod demo;
mod dht;
mod failover;
mod failure;
mod gossip;
mod harness;
mod headline;
mod hostile;
mod interop;
mod ledger;
mod library;
mod lifecycle;
mod local_llm;
mod losses;
mod masking;
mod measure;
mod openai;
mod openapi;
mod overdue;
mod paid;
mod peers;
mod prefix;
mod private;
mod registry;
mod resume;
mod sampling;
mod services;
mod shapes;
mod speculate;
mod store;
mod swarm;
mod terminal;
mod thin;
mod thin_links;
mod traces;
mod watch;
mod weights;
