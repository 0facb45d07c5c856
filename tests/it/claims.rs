//! A fraud claim in the hands of somebody else: computed again from the file and the model alone, believed only where it holds,
//! and then acted upon by the machine's own daemon.

use std::fs;

use libp2p::identity::Keypair;
use quelea_ledger::fraud::FraudClaim;
use quelea_shard::{commitment::Commitment, frame::SessionId};
use quelea_wire::{NetworkId, Profile, time::unix_ms};
use serde_json::Value;

use crate::harness::{DEMO, Daemon, Launch, ids, numbers, swarm, tempdir};

/// What a stage with this key has signed for an answer's second half, if it gave on `out_root`.
fn signed(answer: &Value, liar: &Keypair, change: impl Fn(&mut Commitment)) -> Vec<u8> {
    let hop = &answer["hops"][1];
    let root = |name: &str| hex::decode(hop["committed"][name].as_str().unwrap()).unwrap().try_into().unwrap();
    let mut of = Commitment {
        session: SessionId([7; 16]),
        epoch: 1,
        model: answer["model"].as_str().unwrap().parse().unwrap(),
        profile: Profile::Exact,
        span: hop["layers"].as_str().unwrap().parse().unwrap(),
        first: 0,
        rows: hop["committed"]["rows"].as_u64().unwrap().try_into().unwrap(),
        in_root: root("in_root"),
        out_root: root("out_root"),
    };
    change(&mut of);
    of.seal(liar, &network()).unwrap()
}

fn network() -> NetworkId {
    NetworkId::from_name("main")
}

async fn convicted(daemon: &Daemon, peer: &str) -> bool {
    let trust = daemon.command(&["trust", "--json"]).await.expect(0).json();
    trust["items"].as_array().unwrap().iter().any(|item| item["peer_id"] == peer && item["convicted"] == true)
}

#[tokio::test]
async fn a_claim_that_holds_convicts_at_another_daemon_and_a_forged_one_nowhere() {
    let swarm = swarm(DEMO, &["0..3", "3..6"]).await;
    let ask = ["--ignore-eos", "--max-tokens", "24", "Who are you?"];
    let answer = swarm.ask(DEMO, &ask).await.expect(0).json();
    let tokens: Vec<u32> =
        numbers(&answer["prompt_ids"]).into_iter().chain(ids(&answer)).map(|id| u32::try_from(id).unwrap()).collect();
    let (finder, liar) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let accused = liar.public().to_peer_id().to_string();
    let claim = |change: &dyn Fn(&mut Commitment)| {
        FraudClaim::seal(&finder, &network(), &signed(&answer, &liar, change), &tokens, unix_ms()).unwrap()
    };
    let true_one = claim(&|of| of.out_root[0] ^= 1);
    // It did what the model does; it was given other rows; and bytes that nobody has signed.
    let mut changed = true_one.clone();
    *changed.last_mut().unwrap() ^= 1;
    let forged = [claim(&|_| {}), claim(&|of| (of.in_root[0], of.out_root[0]) = (0, 0)), changed];

    let daemon = Launch::new().start().await;
    let dir = tempdir();
    let path = dir.path().join("a.fraud").to_str().unwrap().to_owned();
    let verify = ["verify", path.as_str(), "--model", DEMO];
    for bytes in forged {
        fs::write(&path, bytes).unwrap();
        daemon.command(&[&verify[..], &["--convict"]].concat()).await.expect(8).says(&["QUE-"]);
        assert!(!convicted(&daemon, &accused).await);
    }
    fs::write(&path, true_one).unwrap();
    // Looking is not acting.
    let seen = daemon.command(&[&verify[..], &["--json"]].concat()).await.expect(0).json();
    assert_eq!((&seen["ok"], &seen["verdict"], &seen["convicted"]), (&true.into(), &"wrong".into(), &false.into()));
    assert_eq!((&seen["peer_id"], &seen["layers"]), (&accused.as_str().into(), &answer["hops"][1]["layers"]));
    assert!(!convicted(&daemon, &accused).await);
    let acted = daemon.command(&[&verify[..], &["--convict", "--json"]].concat()).await.expect(0).json();
    assert_eq!(acted["convicted"], true);
    assert!(convicted(&daemon, &accused).await);
    // Of a daemon that is not there it is said so, and not that all is well.
    let nowhere = tempdir();
    let nowhere = nowhere.path().to_str().unwrap();
    crate::harness::quelea(&[&verify[..], &["--convict", "--data-dir", nowhere]].concat()).await.expect(3);
}
