use proptest::prelude::*;

use super::{
    super::diversity::{GROUP_PER_BUCKET, GROUP_PER_TABLE},
    *,
};
use crate::{Config, identify::MAX_ADDRESSES};

fn table() -> Behaviour {
    super::super::new(PeerId::random(), &Config::default())
}

fn addr(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn peers_in(kad: &mut Behaviour) -> usize {
    kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
}

#[test]
fn one_address_group_gets_three_places_and_no_more() {
    let mut kad = table();
    let taken = (1..=100)
        .filter(|n| insert(&mut kad, PeerId::random(), &[addr(&format!("/ip4/9.8.7.{n}/tcp/8468"))], None) > 0)
        .count();
    assert!((GROUP_PER_BUCKET..=GROUP_PER_TABLE).contains(&taken), "{taken}");
    assert_eq!(peers_in(&mut kad), taken);
    for n in 0..20 {
        insert(&mut kad, PeerId::random(), &[addr(&format!("/ip6/2001:db8:1:{n}::1/tcp/8468"))], None);
    }
    assert!(peers_in(&mut kad) <= taken + GROUP_PER_TABLE);
}

#[test]
fn five_groups_with_a_hundred_names_each_hold_fifteen_places() {
    let mut kad = table();
    for n in 0..500_u32 {
        insert(&mut kad, PeerId::random(), &[addr(&format!("/ip4/9.8.{}.{}/tcp/1", n % 5, n / 5 + 1))], None);
    }
    assert!(peers_in(&mut kad) <= 15, "{}", peers_in(&mut kad));
}

#[test]
fn home_and_loopback_are_not_one_group() {
    for pattern in ["/ip4/127.0.0.1/tcp/", "/ip4/192.168.1.2/tcp/", "/ip6/fd00::2/tcp/", "/dns4/worker/tcp/"] {
        let mut kad = table();
        let taken = (1..=15)
            .filter(|port| insert(&mut kad, PeerId::random(), &[addr(&format!("{pattern}{port}"))], None) > 0)
            .count();
        assert_eq!(taken, 15, "{pattern}");
    }
}

#[test]
fn a_known_peer_may_move_but_not_collect_addresses() {
    let mut kad = table();
    let peer = PeerId::random();
    for n in 1..=20 {
        let now = addr(&format!("/ip4/9.8.7.{n}/tcp/8468"));
        assert_eq!(insert(&mut kad, peer, std::slice::from_ref(&now), None), 1);
        let held = addresses(&mut kad, &peer);
        assert!(held.len() <= MAX_ADDRESSES && held.contains(&named(&now, peer)), "{held:?}");
        assert_eq!(insert(&mut kad, peer, &[now], None), 0, "it is there already");
    }
    let many: Vec<_> = (1..=20).map(|n| addr(&format!("/ip4/9.8.7.6/tcp/{n}"))).collect();
    assert_eq!(insert(&mut kad, peer, &many, None), MAX_ADDRESSES);
    assert_eq!((addresses(&mut kad, &peer).len(), peers_in(&mut kad)), (MAX_ADDRESSES, 1));
}

/// Threat 12: an attacker with as many names as it likes and five networks, which claims whatever it likes.
#[test]
fn five_networks_hold_fifteen_places_whatever_their_peers_claim() {
    let mut kad = table();
    for n in 0..500_u32 {
        let from = addr(&format!("/ip4/9.8.{}.{}/tcp/{}", n % 5, n / 5 + 1, 40_000 + n));
        let claim = match n % 4 {
            0 => format!("/ip4/11.{}.{}.1/tcp/1", n / 256, n % 256),
            1 => format!("/dns4/a{n}.example{n}.org/tcp/1"),
            2 => format!("/dns4/host{n}/tcp/1"),
            _ => format!("/ip6/2001:db8:{n:x}::1/tcp/1"),
        };
        insert(&mut kad, PeerId::random(), &[addr(&claim)], Some(&from));
    }
    assert!(peers_in(&mut kad) <= 15, "{}", peers_in(&mut kad));
    assert!(kad.store_mut().crowd.refused >= 485);
    // Everybody else still gets in.
    let honest = addr("/ip4/77.1.2.3/tcp/8468");
    assert_eq!(insert(&mut kad, PeerId::random(), std::slice::from_ref(&honest), Some(&honest)), 1);
}

#[test]
fn what_kademlia_adds_by_itself_is_taken_back() {
    let mut kad = table();
    let crowd: Vec<PeerId> = (0..GROUP_PER_TABLE + 3).map(|_| PeerId::random()).collect();
    for (n, peer) in crowd.iter().enumerate() {
        insert(&mut kad, *peer, &[addr(&format!("/ip4/77.1.{n}.1/tcp/1"))], None);
        // As it does when it dials a peer of the table somewhere else.
        kad.add_address(peer, addr(&format!("/ip4/9.8.7.{n}/tcp/1")));
    }
    let taken: usize = crowd.iter().map(|peer| enforce(&mut kad, peer)).sum();
    assert!((3..=4).contains(&taken), "{taken}");
    assert_eq!(peers_in(&mut kad), crowd.len(), "all of them have another address");
    assert_eq!(crowd.iter().map(|peer| enforce(&mut kad, peer)).sum::<usize>(), 0);
}

proptest! {
    // Each step looks through the whole table several times.
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However peers come, move and go: no group has more than its share, and nothing is remembered of who has left.
    #[test]
    fn groups_keep_to_their_share(steps in proptest::collection::vec((0_usize..30, 0_u8..3, 1_u8..250, 0_u8..4), 1..120)) {
        let mut kad = table();
        let peers: Vec<PeerId> = (0..30).map(|_| PeerId::random()).collect();
        for (who, net, host, what) in steps {
            let now = addr(&format!("/ip4/9.8.{net}.{host}/tcp/1"));
            match what {
                0 => { kad.remove_peer(&peers[who]); }
                1 => { insert(&mut kad, peers[who], &[now], None); }
                2 => { insert(&mut kad, peers[who], std::slice::from_ref(&now), Some(&now)); }
                _ => {
                    kad.add_address(&peers[who], now);
                    enforce(&mut kad, &peers[who]);
                }
            }
            let mut standing: HashMap<(Group, Option<u32>), BTreeSet<PeerId>> = HashMap::new();
            for peer in &peers {
                let bucket = bucket_of(&mut kad, peer);
                for group in addresses(&mut kad, peer).iter().filter_map(group_of) {
                    standing.entry((group.clone(), bucket)).or_default().insert(*peer);
                    standing.entry((group, None)).or_default().insert(*peer);
                }
            }
            for ((_, bucket), peers) in standing {
                let most = if bucket.is_some() { GROUP_PER_BUCKET } else { GROUP_PER_TABLE };
                prop_assert!(peers.len() <= most);
            }
            let _ = seats(&mut kad);
            let in_table: BTreeSet<PeerId> = peers.iter().filter(|p| !addresses(&mut kad, p).is_empty()).copied().collect();
            prop_assert!(kad.store_mut().crowd.from.keys().all(|peer| in_table.contains(peer)));
        }
    }
}
