//! Named sets of settings for usual cases.

use crate::cli::args::ProfileArg;

/// What a profile sets. Everything else stays as built in.
pub(super) fn settings(profile: ProfileArg) -> &'static [(&'static str, &'static str)] {
    match profile {
        // All peers are in one network that trusts its router: they find each other, and the DHT needs no public address.
        ProfileArg::Lan => &[("mdns", "true"), ("kad-mode", "server")],
        // Reached from everywhere: helps those who are not.
        ProfileArg::Public => &[("relay-server", "true"), ("rendezvous-server", "true")],
        // For trying things out: a network of its own, on this machine, beside any other node.
        ProfileArg::Dev => &[
            ("host", "127.0.0.1"),
            ("port", "0"),
            ("network", "dev"),
            ("kad-mode", "server"),
            ("api-listen", "127.0.0.1:0"),
            ("metrics-listen", "127.0.0.1:0"),
        ],
        // Layers at home: a port through the router, and little of the line for weights while there is other work.
        ProfileArg::Inference => &[("upnp", "true"), ("mdns", "true"), ("upload-limit", "16M")],
        // Gives weights, and much of them.
        ProfileArg::Storage => &[("upnp", "true"), ("mdns", "true"), ("upload-limit", "512M")],
    }
}

/// What it is for.
pub(super) fn about(profile: ProfileArg) -> &'static str {
    match profile {
        ProfileArg::Lan => "machines of one local network that find each other",
        ProfileArg::Public => "a machine that is reached from everywhere, and relays for those that are not",
        ProfileArg::Dev => "a node of its own on this machine, on free ports",
        ProfileArg::Inference => "a machine behind a router that serves layers; add a model",
        ProfileArg::Storage => "a machine that gives weights to others",
    }
}
