//! This node's ledger: what reaches it from the swarm.

use libp2p::PeerId;

/// What the swarm tells the keeper of the ledger. It never waits for the keeper: what finds no place is counted and dropped.
#[derive(Debug)]
#[allow(dead_code, reason = "the keeper reads them")]
pub(crate) enum Input {
    /// A peer sent a packet: bytes in the form of one, of which nothing has been checked. When there is no place the peer is
    /// told to send it again.
    Packet { peer: PeerId, packet: Vec<u8> },
    /// A peer has its first connection. When this is lost, the session begins with the first packet of either side.
    Connected(PeerId),
    /// A peer's last connection is gone. When this is lost, what is sent to it is dropped by the swarm.
    Disconnected(PeerId),
}

/// Inputs that may wait; beyond, peers are told that this node is busy. At 4 KiB for the longest packet these are 4 MiB, and
/// half a second at the 2,000 packets a second that the swarm admits.
#[allow(dead_code, reason = "the keeper makes the channel")]
pub(crate) const INPUTS: usize = 1024;
