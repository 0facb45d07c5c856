//! The greeting on a new stream; on paused time.

use quelea_shard::{
    frame::{Frame, Hello, HelloAck, Probe, StreamKind},
    protocol::{self, GREETING_TIMEOUT, HandshakeError, VERSION},
};
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use crate::support::{halves, pipe, session, soon};

#[tokio::test(start_paused = true)]
async fn greetings_agree_on_the_lower_version_and_the_common_features() {
    let (a, b) = pipe(1000);
    let accepted = tokio::spawn(protocol::accept(b));
    let (mut reader, mut writer) = halves(a);
    let hello = Hello { version: u16::MAX, stream: StreamKind::Control, features: u64::MAX };
    writer.send(&hello.into()).await.expect("open");
    let answer = soon(reader.next()).await;
    let expected = HelloAck { version: VERSION, features: protocol::FEATURES };
    assert!(matches!(answer, Ok(Some(Frame::HelloAck(ack))) if ack == expected));
    let negotiated = soon(accepted).await.expect("runs").expect("greeted");
    assert_eq!(
        (negotiated.kind, negotiated.version, negotiated.features),
        (StreamKind::Control, 1, protocol::FEATURES)
    );
}

#[tokio::test(start_paused = true)]
async fn greetings_that_come_to_nothing_say_why() {
    // Silence, on both ends.
    let (a, _b) = pipe(1000);
    let start = Instant::now();
    assert!(matches!(protocol::initiate(a, StreamKind::Bulk).await, Err(HandshakeError::Timeout)));
    let (a, _b) = pipe(1000);
    assert!(matches!(protocol::accept(a).await, Err(HandshakeError::Timeout)));
    assert_eq!(start.elapsed(), 2 * GREETING_TIMEOUT);
    // The peer leaves.
    let (a, b) = pipe(1000);
    drop(b);
    assert!(protocol::accept(a).await.is_err());
    // The peer is not wanted.
    let (a, b) = pipe(1000);
    let refuse = |kind| if kind == StreamKind::Control { Err(ErrorCode::ShuttingDown) } else { Ok(()) };
    let (a, b) = tokio::join!(protocol::initiate(a, StreamKind::Control), protocol::accept_if(b, refuse));
    assert!(matches!(a, Err(HandshakeError::Rejected { code: ErrorCode::ShuttingDown })));
    assert!(matches!(b, Err(HandshakeError::Refused { code: ErrorCode::ShuttingDown })));
    // What comes first is no greeting, or of a version that never was.
    let first: [(Frame, ErrorCode); 2] = [
        (Probe { session: session(1), epoch: 1 }.into(), ErrorCode::BadFrame),
        (Hello { version: 0, stream: StreamKind::Bulk, features: 0 }.into(), ErrorCode::VersionMismatch),
    ];
    for (frame, code) in first {
        let (a, b) = pipe(1000);
        let (mut reader, mut writer) = halves(a);
        let accepted = tokio::spawn(protocol::accept(b));
        writer.send(&frame).await.expect("open");
        assert!(matches!(soon(reader.next()).await, Ok(Some(Frame::Reject(r))) if r.code == code));
        assert!(soon(accepted).await.expect("runs").is_err());
    }
    // The answer's version is not one we offered.
    for version in [0, VERSION + 1] {
        let (a, b) = pipe(1000);
        let (_reader, mut writer) = halves(b);
        writer.send(&HelloAck { version, features: 0 }.into()).await.expect("open");
        let greeted = protocol::initiate(a, StreamKind::Bulk).await;
        assert!(matches!(greeted, Err(HandshakeError::Refused { code: ErrorCode::VersionMismatch })));
    }
}
