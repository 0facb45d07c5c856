//! A daemon as a user starts it, and peers that cheat in the ledger: they repeat what they said before, change what they
//! signed, sign two stories, and take what they have no credit for. None of it moves a counter that it should not, and an
//! honest peer's account is as good afterwards.

pub mod peer;

use quelea_ledger::message::{DOMAIN, MAX_ENVELOPE};
use quelea_wire::{NetworkId, envelope::Signed, time::unix_ms};
use serde_json::Value;

use self::peer::Cheat;
use crate::harness::{Daemon, Launch, until};

pub const NETWORK: &str = "cheats";

/// Faults that a stranger may commit before it is banned, with room: 25 are one too many.
const FAULTS: usize = 20;

/// What a stranger may owe, in micro-credits, and the part of it that open holds may take.
const BASE: u64 = 1_000_000;
const HELD: u64 = BASE / 4;

async fn victim() -> Daemon {
    Launch::new().args(&["--network", NETWORK]).start().await
}

/// Its account with a peer.
async fn account(victim: &Daemon, cheat: &Cheat) -> Option<Value> {
    let ledger = victim.command(&["ledger", "balance", "--json"]).await.expect(0).json();
    let id = cheat.id.to_string();
    ledger["items"].as_array().unwrap().iter().find(|account| account["peer_id"] == id.as_str()).cloned()
}

async fn banned(victim: &Daemon, cheat: &Cheat) -> Option<String> {
    let bans = victim.command(&["peers", "bans", "--json"]).await.expect(0).json();
    let text = bans["items"].to_string();
    let of = bans["items"].as_array().unwrap().iter().find(|ban| ban.to_string().contains(&cheat.id.to_string()));
    of.map(|ban| ban["reason"].as_str().unwrap_or(&text).to_owned())
}

/// What it has stored adds up, every signature included.
async fn adds_up(victim: &Daemon) {
    victim.command(&["ledger", "verify"]).await.expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_of_an_earlier_session_change_nothing() {
    let victim = victim().await;
    let mut cheat = Cheat::synced(&victim).await;
    cheat.promise(100_000).await;
    cheat.promise(20_000).await;
    let earlier = cheat.said.clone();
    assert!(earlier.len() >= 4, "two syncs and two notes");
    cheat.leave(&victim).await;
    assert!(cheat.connect().await);
    cheat.sync().await;
    for _ in 0..5 {
        for packet in &earlier {
            assert!(cheat.say(packet.clone()).await, "it is a packet");
        }
    }
    // An old sync may have begun a session anew; an honest side takes that up.
    cheat.promise(3).await;
    let account = account(&victim, &cheat).await.unwrap();
    assert_eq!((account["received"].as_u64(), account["frozen"].as_str()), (Some(120_003), None), "{account}");
    assert_eq!(banned(&victim, &cheat).await, None, "nobody is to blame for what is late");
    adds_up(&victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_with_any_byte_changed_is_worth_nothing() {
    let victim = victim().await;
    let length = {
        let cheat = Cheat::new(&victim);
        cheat.signed(cheat.note(unix_ms(), 500, 500)).len()
    };
    let offsets: Vec<usize> = (0..length).collect();
    // Each name may do so only so often.
    for offsets in offsets.chunks(FAULTS) {
        let mut cheat = Cheat::synced(&victim).await;
        let note = cheat.signed(cheat.note(unix_ms(), 500, 500));
        for at in offsets {
            let mut changed = note.clone();
            changed[*at] ^= 1 << (at % 8);
            assert!(cheat.say(cheat.framed(changed)).await, "byte {at}: in the form of a packet");
        }
        cheat.promise(7).await;
        let account = account(&victim, &cheat).await.unwrap();
        assert_eq!((account["received"].as_u64(), account["frozen"].as_str()), (Some(7), None), "{account}");
    }
    adds_up(&victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_signed_for_something_else_is_no_note() {
    let victim = victim().await;
    let mut cheat = Cheat::synced(&victim).await;
    let other = Cheat::new(&victim);
    let note = cheat.note(unix_ms(), 500, 500);
    let own = cheat.signed(note.clone());
    let opened = Signed::open(&own, &cheat.network, DOMAIN, MAX_ENVELOPE).unwrap();
    let (kind, body) = (opened.kind, opened.body().to_vec());
    let sealed = |network: &NetworkId, domain: &str, kind: u8| {
        Signed::seal(&cheat.key, network, domain, kind, &body).unwrap().raw().to_vec()
    };
    let foreign = NetworkId::from_name("another");
    let wrong = [
        ("another domain", sealed(&cheat.network, "quelea/announce/1", kind)),
        ("another network", sealed(&foreign, DOMAIN, kind)),
        ("another kind", sealed(&cheat.network, DOMAIN, 7)),
        ("a kind that is none", sealed(&cheat.network, DOMAIN, 200)),
        ("another signer", other.signed(note.clone())),
        ("another creditor", cheat.signed(quelea_ledger::message::Note { creditor: other.id, ..note.clone() })),
        ("more than in all", cheat.signed(quelea_ledger::message::Note { delta: 501, ..note.clone() })),
        ("another account", cheat.signed(quelea_ledger::message::Note { unit: quelea_ledger::Unit(9), ..note })),
    ];
    for (what, envelope) in wrong {
        assert!(cheat.say(cheat.framed(envelope)).await, "{what}");
    }
    cheat.promise(7).await;
    let account = account(&victim, &cheat).await.unwrap();
    assert_eq!((account["received"].as_u64(), account["frozen"].as_str()), (Some(7), None), "{account}");
    // It goes on, and is not let in any more.
    for _ in 0..30 {
        if !cheat.say(cheat.framed(vec![7; 200])).await {
            break;
        }
    }
    cheat.until_cut_off().await;
    until("a ban", async || banned(&victim, &cheat).await).await;
    cheat.is_shut_out().await;
    adds_up(&victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_two_stories_is_out_for_it() {
    let one = victim().await;
    let mut honest = Cheat::synced(&one).await;
    let mut cheat = Cheat::synced(&one).await;
    let seq = unix_ms();
    let stories = [100, 90].map(|issued| cheat.signed(cheat.note(seq, issued, issued)));
    assert!(cheat.say(cheat.framed(stories[0].clone())).await);
    let arrived = async || account(&one, &cheat).await.filter(|account| account["received"] == 100);
    until("the first story", arrived).await;
    cheat.say(cheat.framed(stories[1].clone())).await;
    cheat.until_cut_off().await;
    assert_eq!(until("a ban", async || banned(&one, &cheat).await).await, "fraud");
    cheat.is_shut_out().await;
    let account_now = account(&one, &cheat).await.unwrap();
    assert_eq!((account_now["received"].as_u64(), account_now["frozen"].as_str()), (Some(100), Some("evidence")));

    honest.promise(1).await;
    assert_eq!(account(&one, &honest).await.unwrap()["received"], 1);
    adds_up(&one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_holds_at_once_take_no_more_than_the_limit() {
    let victim = victim().await;
    let max = HELD / 5;
    let mut cheats = Vec::new();
    for _ in 0..3 {
        cheats.push(Cheat::synced(&victim).await);
    }
    let overdraw = async |cheat: &Cheat| {
        cheat.say_all((1..=64).map(|n| cheat.framed(cheat.signed(cheat.hold(n, max)))).collect()).await
    };
    for cheat in &cheats {
        assert_eq!(overdraw(cheat).await, 64);
    }
    for cheat in &mut cheats {
        cheat.promise(1).await;
        let account = account(&victim, cheat).await.unwrap();
        assert_eq!((account["held"].as_u64(), account["limit"].as_u64()), (Some(HELD), Some(BASE)), "{account}");
    }
    // Again under the same names nothing more is taken.
    for cheat in &mut cheats {
        assert_eq!(overdraw(cheat).await, 64);
        cheat.promise(1).await;
        assert_eq!(account(&victim, cheat).await.unwrap()["held"].as_u64(), Some(HELD));
    }
    adds_up(&victim).await;
}

/// Packets faster than they are allowed to come hold up nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_packets_holds_up_nobody_else() {
    let victim = victim().await;
    let (flooding, mut honest) = (Cheat::synced(&victim).await, Cheat::synced(&victim).await);
    // Well-formed, of no session: nobody is to blame, and nothing is stored.
    let stale = flooding.said[0].clone();
    let (in_swing, swings) = tokio::sync::oneshot::channel();
    let flood = tokio::spawn(async move {
        let mut taken = flooding.say_all(vec![stale.clone(); 200]).await;
        in_swing.send(()).unwrap();
        for _ in 0..9 {
            taken += flooding.say_all(vec![stale.clone(); 200]).await;
        }
        taken
    });
    swings.await.unwrap();
    for _ in 0..5 {
        honest.promise(10).await;
    }
    assert_eq!(account(&victim, &honest).await.unwrap()["received"], 50);
    let taken = flood.await.unwrap();
    assert!(taken <= 2000, "{taken}");
    adds_up(&victim).await;
}
