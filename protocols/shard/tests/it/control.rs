//! Control streams without a swarm; on paused time.

use quelea_shard::{
    frame::{Cancel, Close, Frame, Origin, Probe, StreamKind},
    link::{CONTROL_INBOUND, CONTROL_QUEUE, ControlLink, LinkEnd, Role, SendError},
    protocol::FEATURES,
};
use quelea_wire::ErrorCode;

use crate::support::{frames::samples, greeted, session, soon};

#[tokio::test(start_paused = true)]
async fn control_carries_each_sides_frames_and_no_others() {
    let (a, b) = greeted(StreamKind::Control, 1000).await;
    let (to_stage, mut from_stage) = ControlLink::spawn(a, Role::Coordinator);
    let (to_coordinator, mut from_coordinator) = ControlLink::spawn(b, Role::Stage);
    for (_, frame) in samples() {
        let (by_coordinator, by_stage) = (to_stage.send(frame.clone()), to_coordinator.send(frame.clone()));
        match frame.origin() {
            Origin::Coordinator => {
                assert_eq!((by_coordinator, by_stage), (Ok(()), Err(SendError::Invalid)));
                assert_eq!(soon(from_coordinator.recv()).await, Some(frame));
            }
            Origin::Stage => {
                assert_eq!((by_coordinator, by_stage), (Err(SendError::Invalid), Ok(())));
                assert_eq!(soon(from_stage.recv()).await, Some(frame));
            }
            _ => assert_eq!((by_coordinator, by_stage), (Err(SendError::Invalid), Err(SendError::Invalid))),
        }
    }
    // What is queued when the coordinator leaves still arrives.
    let last = Close { session: session(1), epoch: 1 };
    assert_eq!(to_stage.send(last), Ok(()));
    drop(to_stage);
    assert_eq!(soon(from_coordinator.recv()).await, Some(last.into()));
    assert_eq!(soon(from_coordinator.recv()).await, None);
    assert!(matches!(soon(from_coordinator.ended()).await, LinkEnd::PeerClosed));
    assert!(matches!(soon(from_stage.ended()).await, LinkEnd::Done));
    assert_eq!(to_coordinator.send(samples().remove(4).1), Err(SendError::Ended));
}

#[tokio::test(start_paused = true)]
async fn control_frames_of_the_wrong_side_end_the_link() {
    let (a, b) = greeted(StreamKind::Control, 1000).await;
    let (_to_coordinator, from_coordinator) = ControlLink::spawn(b, Role::Stage);
    let (mut reader, mut writer) = (a.reader, a.writer);
    let (_, accept) = samples().remove(4);
    writer.send(&accept).await.expect("open");
    assert!(matches!(soon(from_coordinator.ended()).await, LinkEnd::Violation(ErrorCode::BadFrame)));
    assert!(matches!(soon(reader.next()).await, Ok(Some(Frame::Reject(r))) if r.code == ErrorCode::BadFrame));
}

#[tokio::test(start_paused = true)]
async fn what_a_feature_adds_is_neither_sent_nor_taken_without_it() {
    let on_control = |frame: &Frame| matches!(frame.origin(), Origin::Coordinator | Origin::Stage);
    let added = samples().into_iter().map(|(_, frame)| frame).filter(|frame| frame.features() != 0);
    let added: Vec<_> = added.filter(on_control).collect();
    assert_eq!(added.len(), 17);
    for frame in added {
        let (mut a, b) = greeted(StreamKind::Control, 10_000).await;
        let role = if frame.origin() == Origin::Coordinator { Role::Coordinator } else { Role::Stage };
        let (with, _) = ControlLink::spawn(b, role);
        assert_eq!((with.features(), with.send(frame.clone())), (FEATURES, Ok(())));

        // A peer of before, which sends it all the same.
        a.features = 0;
        let other = if role == Role::Coordinator { Role::Stage } else { Role::Coordinator };
        let (without, received) = ControlLink::spawn(a, other);
        assert!(matches!(soon(received.ended()).await, LinkEnd::Violation(ErrorCode::BadFrame)), "{frame:?}");
        drop(without);

        let (mut a, _b) = greeted(StreamKind::Control, 1000).await;
        a.features = 0;
        let (without, _) = ControlLink::spawn(a, role);
        assert_eq!((without.features(), without.send(frame)), (0, Err(SendError::Invalid)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_read_fills_a_bounded_queue_and_is_given_up() {
    let (a, b) = greeted(StreamKind::Control, 100).await;
    let (to_stage, _from_stage) = ControlLink::spawn(a, Role::Coordinator);
    let cancel = Cancel { session: session(1), epoch: 1, code: ErrorCode::Cancelled };
    let mut queued = 0;
    let end = loop {
        match to_stage.send(cancel) {
            Ok(()) => queued += 1,
            Err(e) => break e,
        }
    };
    assert_eq!((queued, end), (CONTROL_QUEUE, SendError::Full));
    assert!(matches!(soon(to_stage.ended()).await, LinkEnd::Silent));
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_side_whose_owner_is_slow_stops_reading_but_not_writing() {
    let (a, b) = greeted(StreamKind::Control, 100).await;
    let (to_stage, mut from_stage) = ControlLink::spawn(a, Role::Coordinator);
    let (to_coordinator, mut from_coordinator) = ControlLink::spawn(b, Role::Stage);
    let probe = Probe { session: session(1), epoch: 1 };
    // Fills the stage's queue, which nobody empties, then the pipe, then the coordinator's queue for good: no frame is
    // taken any more although everyone had many turns.
    let (mut taken, mut refused) = (0, 0);
    while refused < 100 {
        match to_stage.send(probe) {
            Ok(()) => (taken, refused) = (taken + 1, 0),
            Err(e) => (_, refused) = (assert_eq!(e, SendError::Full), refused + 1),
        }
        tokio::task::yield_now().await;
    }
    assert!((CONTROL_INBOUND + CONTROL_QUEUE..4 * CONTROL_QUEUE).contains(&taken), "{taken}");
    let (_, answer) = samples().remove(4);
    assert_eq!(to_coordinator.send(answer.clone()), Ok(()));
    assert_eq!(soon(from_stage.recv()).await, Some(answer));
    // Once the owner reads, all comes through.
    for _ in 0..taken {
        assert_eq!(soon(from_coordinator.recv()).await, Some(probe.into()));
    }
}
