//! `--masking`.

use quelea_wire::ErrorCode;

use super::{
    args::{DaemonArgs, MaskedArgs, MaskingArg},
    exit::CliError,
};
use crate::{
    address::PeerAddress,
    masking::settings::{Asked, MaskingSettings, Mode},
};

/// How a daemon is masked, if it is; refuses whatever would show besides.
pub(super) fn of_daemon(args: &DaemonArgs) -> Result<Option<MaskingSettings>, CliError> {
    let Some(way) = args.masking.masking else { return Ok(None) };
    let mode = match way {
        MaskingArg::Front => Mode::Front,
        MaskingArg::BehindProxy => Mode::BehindProxy,
        MaskingArg::DialOnly => Mode::DialOnly,
    };
    let asked = Asked {
        host: args.host,
        port: args.port,
        listen: args.listen.clone(),
        external: args.nat.external.clone(),
        bootstrap: starts(&args.bootstrap),
        rendezvous: starts(&args.rendezvous.rendezvous),
        upnp: args.nat.upnp,
        mdns: args.mdns,
        metrics: args.metrics_listen,
        cert: args.masking.masking_cert.clone(),
        key: args.masking.masking_key.clone(),
        ca: args.masking.masking_ca.clone(),
        page: args.masking.masking_page.clone(),
    };
    MaskingSettings::new(mode, asked).map(Some).map_err(wrong)
}

/// How a passing peer is masked, if it is.
pub(super) fn of_passing(args: &MaskedArgs, bootstrap: &[PeerAddress]) -> Result<Option<MaskingSettings>, CliError> {
    if !args.masking {
        return Ok(None);
    }
    let asked = Asked { bootstrap: starts(bootstrap), ca: args.masking_ca.clone(), ..Asked::default() };
    MaskingSettings::new(Mode::DialOnly, asked).map(Some).map_err(wrong)
}

fn starts(peers: &[PeerAddress]) -> Vec<libp2p::Multiaddr> {
    peers.iter().map(|start| start.addr.clone()).collect()
}

fn wrong(message: String) -> CliError {
    CliError::new(ErrorCode::Usage, message)
}
