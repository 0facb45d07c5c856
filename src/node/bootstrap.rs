//! Getting into the swarm and staying in it: the peers we were told to start from. Those we remember are the dialler's
//! (`quelea_behaviours::peers`).

use std::time::Duration;

use libp2p::PeerId;
use quelea_wire::ErrorCode;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use super::Life;
use crate::{
    address::{PeerAddress, parse_peer_address},
    inference::InferError,
    storage::Db,
    swarm::{Handle, SwarmNotice},
    telemetry::{Component, Status, Telemetry},
};

/// The first pause before peers that cannot be reached are tried again; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a starting node waits for a bootstrap peer before it goes on alone.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

/// How long a passing peer waits: without any contact it cannot do anything.
const REACH: Duration = Duration::from_secs(10);

/// Keeps a connection to one of the peers that the node was told to start from until the node stops. Any connection would not do: a few strangers that connect to us are not the swarm.
pub(super) fn spawn(
    handle: &Handle,
    telemetry: &Telemetry,
    peers: Vec<PeerAddress>,
    notices: broadcast::Receiver<SwarmNotice>,
    stopping: watch::Receiver<Life>,
) {
    let state =
        if peers.is_empty() { (Status::Ok, "no bootstrap peers wanted") } else { (Status::Starting, "dialling") };
    telemetry.health.set(Component::Bootstrap, state.0, state.1);
    tokio::spawn(keep_connected(handle.clone(), telemetry.clone(), peers, notices, stopping));
}

async fn keep_connected(
    handle: Handle,
    telemetry: Telemetry,
    peers: Vec<PeerAddress>,
    mut notices: broadcast::Receiver<SwarmNotice>,
    mut stopping: watch::Receiver<Life>,
) {
    // Those remembered are dialled by the swarm itself, but do not stand for those that the operator named.
    let starts: Vec<PeerId> = peers.iter().map(|start| start.peer).collect();
    if starts.is_empty() {
        return;
    }
    let mut pause = PAUSE;
    loop {
        let views = handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
        let connected = views.iter().any(|view| starts.contains(&view.peer));
        if connected {
            pause = PAUSE;
        } else {
            for start in &peers {
                handle.bootstrap(start.peer, start.addr.clone()).await;
            }
        }
        let wait = tokio::time::sleep(pause);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                _ = stopping.wait_for(|life| *life != Life::Running) => return,
                notice = notices.recv() => match notice {
                    Ok(SwarmNotice::BootstrapFailed { peer, reason }) => {
                        tracing::warn!(%peer, %reason, "bootstrap peer not reached");
                        telemetry.health.set(Component::Bootstrap, Status::Degraded, format!("{peer}: {reason}"));
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => {}
                },
            }
        }
        if !connected {
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// The peers to start from: those the node was told of now, then those on the operator's list.
pub(super) async fn starts(told: &[PeerAddress], db: &Db) -> Vec<PeerAddress> {
    let mut starts = told.to_vec();
    let listed = db.bootstrap_list().await.unwrap_or_default();
    for start in listed.iter().filter_map(|(addr, _)| parse_peer_address(addr).ok()) {
        if !starts.contains(&start) {
            starts.push(start);
        }
    }
    starts
}

/// Gives the first contact a moment.
pub(super) async fn wait(handle: &Handle, peers: &[PeerAddress]) {
    let _ = tokio::time::timeout(FIRST_CONTACT, any_connected(handle, peers)).await;
}

/// Waits for a connection to one of `peers`.
pub(super) async fn reach(handle: &Handle, peers: &[PeerAddress]) -> Result<(), InferError> {
    let mut notices = handle.watch();
    let deadline = Instant::now() + REACH;
    let mut reasons: Vec<String> = Vec::new();
    loop {
        let snapshot = handle.snapshot().await;
        if snapshot.is_some_and(|s| s.peers.iter().any(|p| peers.iter().any(|b| b.peer == p.peer))) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, notices.recv()).await {
            Ok(Ok(SwarmNotice::BootstrapFailed { peer, reason })) => {
                let line = format!("{peer}: {reason}");
                if !reasons.contains(&line) {
                    reasons.push(line);
                }
                if reasons.len() >= peers.len() {
                    break;
                }
            }
            Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => {}
            Ok(Err(broadcast::error::RecvError::Closed)) => break,
            Err(_) => {
                reasons.push(format!("no answer within {} s", REACH.as_secs()));
                break;
            }
        }
    }
    let message = format!("no bootstrap peer could be reached: {}", reasons.join("; "));
    Err(InferError::new(ErrorCode::NoBootstrap, message).hint("check the address and that the node is running"))
}

async fn any_connected(handle: &Handle, peers: &[PeerAddress]) {
    let mut notices = handle.watch();
    loop {
        let snapshot = handle.snapshot().await;
        if snapshot.is_none_or(|s| s.peers.iter().any(|p| peers.iter().any(|b| b.peer == p.peer))) {
            return;
        }
        let _ = notices.recv().await;
    }
}
