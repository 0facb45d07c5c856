//! More of what is allowed than anybody needs: announcements asked for, records put, gossip.

use std::time::Duration;

use futures::AsyncReadExt;
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::oneshot;

use super::{
    attacker::{Attacker, write_raw},
    network,
    pb::{field, prefixed},
    target::Target,
};

/// Requests of each kind in a round.
const REQUESTS: usize = 10_000;

/// Rounds begin no faster than that.
const ROUND: Duration = Duration::from_millis(10);

/// Kademlia's ADD_PROVIDER for a random key, by `peer`, with an address that is not its own.
fn add_provider(peer: &PeerId) -> Vec<u8> {
    let key: [u8; 32] = rand::random();
    let addr: libp2p::Multiaddr = "/ip4/192.0.2.1/tcp/22".parse().unwrap();
    let provider = [field(1, &peer.to_bytes()), field(2, &addr.to_vec())].concat();
    // Type 2 (a varint), key, provider.
    prefixed(&[vec![0x08, 2], field(2, &key), field(9, &provider)].concat())
}

/// Kademlia's PUT_VALUE of a kilobyte for a random key.
fn put_value() -> Vec<u8> {
    let key = [b"/quelea/user/".as_slice(), &rand::random::<[u8; 32]>()].concat();
    let record = [field(1, &key), field(2, &[7; 1000])].concat();
    prefixed(&[vec![0x08, 0], field(2, &key), field(3, &record)].concat())
}

/// A gossip message on an announcement topic that holds no announcement, with a signature that is none.
fn gossip() -> Vec<u8> {
    let topic = format!("/quelea/{}/announce/{}", network().short(), rand::random_range(0..16));
    let data: [u8; 32] = rand::random();
    let message = [field(2, &data), field(4, topic.as_bytes()), field(5, &[9; 64])].concat();
    prefixed(&field(2, &message))
}

/// Sends that many messages, several on a stream where the victim reads on.
pub async fn send(attacker: &Attacker, name: &str, message: impl Fn() -> Vec<u8>) {
    let protocol: StreamProtocol = network().protocol(name, 1);
    let (mut sent, mut refused) = (0, 0);
    while sent < REQUESTS && refused < 100 {
        let Some(mut stream) = attacker.open(&protocol).await else {
            refused += 1;
            continue;
        };
        while sent < REQUESTS && write_raw(&mut stream, &message()).await {
            sent += 1;
            if name == "announce" {
                // One request a stream.
                let _ = stream.read(&mut [0; 64]).await;
                break;
            }
        }
    }
}

/// Ten thousand of everything, again and again.
pub async fn floods(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(4).await;
    let [asking, providing, putting, gossiping] = &attackers[..] else { panic!("not let in") };
    let everything = async {
        // Once all are banned a round ends at once, and without a pause nobody else of this task would have a turn.
        let mut round = tokio::time::interval(ROUND);
        loop {
            round.tick().await;
            tokio::join!(
                send(asking, "announce", || vec![1]),
                send(providing, "kad", || add_provider(&providing.peer)),
                send(putting, "kad", put_value),
                send(gossiping, "gossip", gossip),
            );
        }
    };
    let begun = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        swing.send(()).unwrap();
    };
    tokio::join!(everything, begun);
}
