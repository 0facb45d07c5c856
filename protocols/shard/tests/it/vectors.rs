//! Frozen bytes. A change here is a change of the protocol: it needs a new kind, a feature bit or a new major version.

use std::collections::BTreeMap;

use quelea_shard::frame::{self, Frame};

use crate::support::frames::samples;

/// `name hex`, one a line.
const FROZEN: &str = include_str!("vectors.txt");

fn frozen() -> BTreeMap<&'static str, Vec<u8>> {
    let parse = |line: &'static str| {
        let (name, bytes) = line.split_once(' ').expect("a name and its bytes");
        (name, hex::decode(bytes).expect("hex"))
    };
    FROZEN.lines().map(parse).collect()
}

#[test]
fn every_kind_has_its_frozen_bytes() {
    let frozen = frozen();
    let mut missing = Vec::new();
    for (name, frame) in samples() {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        if frozen.get(name) != Some(&bytes) {
            missing.push(format!("{name} {}", hex::encode(&bytes)));
        }
    }
    assert!(missing.is_empty(), "these frames are not as frozen:\n{}", missing.join("\n"));
    assert_eq!(frozen.len(), samples().len());
}

#[test]
fn frozen_bytes_are_read_back() {
    let frozen = frozen();
    for (name, frame) in samples() {
        let (raw, len) = frame::split(&frozen[name]).expect("a frame").expect("all of it");
        assert_eq!(len, frozen[name].len(), "{name}");
        assert_eq!(Frame::decode(raw.kind, raw.body).expect("its fields"), Some(frame), "{name}");
    }
}

#[test]
fn every_kind_is_among_them_and_within_its_cap() {
    let kinds: Vec<u8> = samples().iter().map(|(_, f)| f.kind()).collect();
    for kind in 0..=u8::MAX {
        // Bodies of unknown kinds are not looked into.
        let known = !matches!(Frame::decode(kind, &[]), Ok(None));
        assert_eq!(known, kinds.contains(&kind), "kind {kind:#04x}");
    }
    for (name, bytes) in frozen() {
        assert!(bytes.len() <= frame::HEADER + frame::max_body(bytes[4]), "{name}");
    }
}
