//! What the loop tells those who watch. Watchers ask for a snapshot when they want to know more.

use libp2p::PeerId;

/// Something that happened on the network. Watchers that fall behind miss the oldest and are told how many.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SwarmNotice {
    /// There is one more listen address.
    Listening,
    /// The first connection to a peer stands.
    Connected,
    /// One more direct connection stands to a peer that was connected already. It may have been started again, or be reached
    /// without a relay from now on.
    Another {
        /// To whom.
        peer: PeerId,
    },
    /// A peer that was given to start from could not be dialled.
    BootstrapFailed {
        /// Whom we tried.
        peer: PeerId,
        /// What the transports said.
        reason: String,
    },
}
