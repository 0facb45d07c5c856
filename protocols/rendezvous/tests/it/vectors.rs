//! Frozen bytes: libp2p's, so they may never change. They were made by another program, from the specification.

use quelea_rendezvous::{Answer, Listed, Record, Request, Status, namespace};
use quelea_wire::NetworkId;

/// Records by the key of 32 ones, at 192.0.2.1, TCP port 8468: in the form of libp2p in Rust, and in the standard one.
const RECORDS: [&str; 2] = [
    "0a24080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c121c2f6c69627032702f726f7574696e672d73746174652d7265636f72641a3a0a260024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c1080e2cfaa061a0a0a0804c00002010621142a40bdf338952ebcc21aaea4eb1ecc33da5acbffe93ff8a212b42f8d089f8cdb2d2b71e95ce496acbb8bd601ad0148e5805e994806a7956f152a4cca482c88ba980b",
    "0a24080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c120203011a3a0a260024080112208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c1080e2cfaa061a0a0a0804c00002010621142a401ebf067cc8976d5d448fce69e9a8cb1dde6c118c7597641670bce6424b42db22656cc81f0e445ed67077e582086ebe302297d1bd208cf5adfaf108e1d1a7e40d",
];

/// What stands behind the length.
fn inner(hex: &str) -> Vec<u8> {
    let framed = hex::decode(hex).unwrap();
    framed[1..].to_vec()
}

#[test]
fn requests() {
    let ns = || "ns".to_owned();
    for (request, hex) in [
        (
            Request::Register { namespace: ns(), record: vec![1, 2, 3], ttl: Some(7200) },
            "100800120c0a026e73120301020318a038",
        ),
        (Request::Unregister { namespace: ns() }, "08080222040a026e73"),
        (
            Request::Discover { namespace: Some(ns()), cookie: Some(vec![7; 8]), limit: Some(64) },
            "1408032a100a026e7310401a080707070707070707",
        ),
        (Request::Discover { namespace: None, cookie: None, limit: None }, "0408032a00"),
    ] {
        assert_eq!(hex::encode(request.encode()), hex);
        assert_eq!(Request::decode(&inner(hex)), Ok(request));
    }
}

#[test]
fn answers() {
    let listed = Listed { namespace: "ns".into(), record: vec![1, 2, 3], ttl: 60 };
    for (answer, hex) in [
        (Answer::Register(Ok(7200)), "0908011a05080018a038"),
        (Answer::Register(Err(Status::NotAuthorized)), "0708011a0308c801"),
        (
            Answer::Discover(Ok((vec![listed], vec![7; 8]))),
            "1d080432190a0b0a026e731203010203183c120807070707070707071800",
        ),
        (Answer::Discover(Err(Status::InvalidCookie)), "06080432021867"),
    ] {
        assert_eq!(hex::encode(answer.encode()), hex);
        assert_eq!(Answer::decode(&inner(hex)), Ok(answer));
    }
}

#[test]
fn records_signed_long_ago_still_hold() {
    for hex in RECORDS {
        let record = Record::verify(&hex::decode(hex).unwrap()).unwrap();
        assert_eq!((record.peer(), record.seq()), (crate::key(1).public().to_peer_id(), 1_700_000_000));
        assert_eq!(record.addrs(), [crate::addr("/ip4/192.0.2.1/tcp/8468")]);
    }
}

#[test]
fn a_network_has_its_namespace() {
    assert_eq!(namespace(&NetworkId::from_name("main")), "/quelea/ca376a87/rendezvous/1");
}
