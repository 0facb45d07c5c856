//! The session's table, row by row, and what holds whatever happens.

use std::time::Duration;

use libp2p::PeerId;
use proptest::{collection::vec, prelude::*};
use quelea_shard::{
    frame::{
        Cancel, Close, Closed, Fault, Frame, Open, Phase, Probe, Refuse, Reroute, Rerouted, Resume, Stalled, State,
        Trim,
    },
    session::{Act, Arrived, Event, Ignored, MAX_IN_FLIGHT, MAX_REROUTES, STALL, Session, Step},
};
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use crate::support::{frames::samples, peer, session};

const EPOCH: u32 = 7;
const MAX_ROWS: u32 = 200;
const STEP: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(30);

fn open(epoch: u32) -> Open {
    let (_, frame) = samples().into_iter().find(|(name, _)| *name == "open").expect("a sample");
    let Frame::Open(open) = frame else { panic!("named open") };
    Open {
        session: session(1),
        epoch,
        max_rows: MAX_ROWS,
        step_deadline_ms: 500,
        idle_ms: 30_000,
        prev: peer(1),
        ..open
    }
}

fn rows(seq: u32, pos: u32, rows: u16, deadline: Instant) -> Event {
    Event::Rows { from: peer(1), batch: Arrived { epoch: EPOCH, seq, pos, rows, rewind: false, deadline } }
}

fn computed(seq: u32) -> Event {
    Event::Computed { epoch: EPOCH, seq, compute_us: 10, queue_us: 2, hop_us: 5 }
}

fn trim(keep_rows: u32) -> Event {
    Event::Trim(Trim { session: session(1), epoch: EPOCH, keep_rows })
}

fn keep(epoch: u32) -> Event {
    Event::Keep { epoch }
}

fn probe() -> Event {
    Event::Probe(Probe { session: session(1), epoch: EPOCH })
}

fn close() -> Event {
    Event::Close(Close { session: session(1), epoch: EPOCH })
}

fn cancel(epoch: u32) -> Event {
    Event::Cancel(Cancel { session: session(1), epoch, code: ErrorCode::Cancelled })
}

fn failed() -> Event {
    Event::Failed { code: ErrorCode::NextSilent, about: Some(peer(2)), detail: "silent".into() }
}

fn next_lost(epoch: u32) -> Event {
    Event::NextLost { epoch, code: ErrorCode::NextSilent, detail: "silent".into() }
}

/// Between peers 5 and 6.
fn reroute(epoch: u32) -> Event {
    Event::Reroute(Box::new(Reroute {
        session: session(1),
        epoch,
        prev: peer(5),
        next: peer(6),
        next_addrs: Vec::new(),
    }))
}

fn resume(epoch: u32, from: u32) -> Event {
    Event::Resume(Resume { session: session(1), epoch, from, until: u32::MAX, roots_from: 0 })
}

struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn opening() -> Self {
        let now = Instant::now();
        Self { session: Session::new(open(EPOCH), now), now }
    }

    fn live() -> Self {
        let mut bench = Self::opening();
        assert_eq!(
            bench.step(Event::Admitted { kv_pages_free: 3, kept_rows: 0 }),
            ("accept", Act::Nothing, Phase::Live)
        );
        bench
    }

    /// With one batch of ten rows in flight.
    fn busy() -> Self {
        let mut bench = Self::live();
        let far = bench.far();
        assert_eq!(bench.step(rows(0, 0, 10, far)), ("", Act::Compute, Phase::Live));
        bench
    }

    /// One that is kept when its next peer is lost, with one batch of ten rows in flight.
    fn surviving() -> Self {
        let mut bench = Self::opening();
        bench.session = bench.session.surviving();
        assert_eq!(bench.step(Event::Admitted { kv_pages_free: 3, kept_rows: 0 }).0, "accept");
        let far = bench.far();
        assert_eq!(bench.step(rows(0, 0, 10, far)), ("", Act::Compute, Phase::Live));
        bench
    }

    fn draining() -> Self {
        let mut bench = Self::busy();
        assert_eq!(bench.step(close()), ("", Act::Nothing, Phase::Draining));
        bench
    }

    fn far(&self) -> Instant {
        self.now + Duration::from_secs(60)
    }

    fn on(&mut self, event: Event) -> Step {
        self.session.on(self.now, event)
    }

    /// What an event does: kind of reply, act, phase.
    fn step(&mut self, event: Event) -> (&'static str, Act, Phase) {
        let Step { reply, act } = self.on(event);
        (reply.map_or("", |f| kind(&f)), act, self.session.phase())
    }
}

fn kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Accept(_) => "accept",
        Frame::Refuse(_) => "refuse",
        Frame::State(_) => "state",
        Frame::Closed(_) => "closed",
        Frame::Fault(_) => "fault",
        Frame::Stalled(_) => "stalled",
        Frame::Rerouted(_) => "rerouted",
        other => panic!("a stage never sends {other:?}"),
    }
}

#[test]
fn the_table_holds() {
    use Act::{Admit, Compute, Ignore, Nothing, Release};
    use Phase::{Closed, Draining, Live, Opening};
    let wrong = Ignore(Ignored::WrongPhase);
    let not_admitted = || Event::NotAdmitted { code: ErrorCode::NoKvPages, detail: String::new(), retry_after_ms: 0 };
    let reopened = || Event::Open(Box::new(open(EPOCH + 1)));
    let far = Instant::now() + Duration::from_secs(60);
    type Row = (fn() -> Bench, Event, &'static str, Act, Phase);
    let table: Vec<Row> = vec![
        (Bench::opening, not_admitted(), "refuse", Release, Closed),
        (Bench::opening, rows(0, 0, 1, far), "", wrong, Opening),
        (Bench::opening, trim(0), "", wrong, Opening),
        (Bench::opening, keep(EPOCH), "", wrong, Opening),
        (Bench::opening, probe(), "state", Nothing, Opening),
        (Bench::opening, close(), "closed", Release, Closed),
        (Bench::opening, cancel(EPOCH), "closed", Release, Closed),
        (Bench::opening, failed(), "fault", Release, Closed),
        (Bench::opening, reopened(), "", Admit, Opening),
        (Bench::opening, Event::Gone, "", Release, Closed),
        (Bench::opening, Event::Tick, "", Nothing, Opening),
        (Bench::live, Event::Admitted { kv_pages_free: 1, kept_rows: 0 }, "", wrong, Live),
        (Bench::live, not_admitted(), "", wrong, Live),
        (Bench::live, computed(0), "", wrong, Live),
        (Bench::live, rows(5, 0, 1, far), "", Compute, Live),
        (Bench::live, rows(0, 1, 1, far), "fault", Release, Closed),
        (Bench::live, rows(0, 0, 0, far), "fault", Release, Closed),
        (Bench::live, rows(0, 0, 129, far), "fault", Release, Closed),
        (Bench::live, rows(0, u32::MAX, 1, far), "fault", Release, Closed),
        (Bench::live, trim(0), "state", Act::Trim { keep_rows: 0 }, Live),
        (Bench::live, trim(1), "fault", Release, Closed),
        (Bench::live, keep(EPOCH), "", Act::Keep, Live),
        (Bench::live, keep(EPOCH - 1), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::live, close(), "closed", Release, Closed),
        (Bench::live, cancel(EPOCH), "closed", Release, Closed),
        (Bench::live, cancel(EPOCH - 1), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::live, cancel(EPOCH + 1), "", Ignore(Ignored::UnopenedEpoch), Live),
        (Bench::live, Event::Open(Box::new(open(EPOCH))), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::live, reopened(), "", Admit, Opening),
        (Bench::live, failed(), "fault", Release, Closed),
        (Bench::live, Event::Gone, "", Release, Closed),
        (Bench::live, Event::Tick, "", Nothing, Live),
        (Bench::busy, rows(1, 10, 1, far), "", Compute, Live),
        (Bench::busy, rows(0, 10, 1, far), "fault", Release, Closed),
        (Bench::busy, rows(1, 0, 10, far), "fault", Release, Closed),
        (Bench::busy, trim(5), "fault", Release, Closed),
        (Bench::busy, computed(0), "", Nothing, Live),
        (Bench::busy, computed(1), "", wrong, Live),
        (Bench::busy, close(), "", Nothing, Draining),
        (Bench::busy, reopened(), "", Admit, Opening),
        (Bench::busy, next_lost(EPOCH), "fault", Release, Closed),
        (Bench::busy, next_lost(EPOCH - 1), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::busy, reroute(EPOCH + 1), "", wrong, Live),
        (Bench::busy, resume(EPOCH, 0), "", wrong, Live),
        (Bench::surviving, next_lost(EPOCH), "stalled", Nothing, Live),
        (Bench::surviving, next_lost(EPOCH - 1), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::surviving, reroute(EPOCH + 1), "", Act::Reroute, Live),
        (Bench::surviving, reroute(EPOCH), "", Ignore(Ignored::StaleEpoch), Live),
        (Bench::surviving, Event::Linked { epoch: EPOCH }, "", wrong, Live),
        (Bench::surviving, resume(EPOCH, 3), "", Act::Resume { from: 3, until: u32::MAX, roots_from: 0 }, Live),
        (Bench::surviving, resume(EPOCH + 1, 3), "", Ignore(Ignored::UnopenedEpoch), Live),
        (Bench::surviving, resume(EPOCH, MAX_ROWS + 1), "fault", Release, Closed),
        (Bench::draining, next_lost(EPOCH), "fault", Release, Closed),
        (Bench::draining, rows(1, 10, 1, far), "", wrong, Draining),
        (Bench::draining, trim(0), "", wrong, Draining),
        (Bench::draining, keep(EPOCH), "", Act::Keep, Draining),
        (Bench::draining, probe(), "state", Nothing, Draining),
        (Bench::draining, computed(0), "closed", Release, Closed),
        (Bench::draining, close(), "", wrong, Draining),
        (Bench::draining, cancel(EPOCH), "closed", Release, Closed),
        (Bench::draining, failed(), "fault", Release, Closed),
        (Bench::draining, reopened(), "", Admit, Opening),
        (Bench::draining, Event::Gone, "", Release, Closed),
    ];
    for (bench, event, reply, act, phase) in table {
        let mut bench = bench();
        let before = bench.session.phase();
        assert_eq!(bench.step(event.clone()), (reply, act, phase), "{before:?} and {event:?}");
        if phase == Closed {
            assert_eq!(bench.step(probe()), ("", Ignore(Ignored::Closed), Closed), "after {before:?} and {event:?}");
        }
    }
}

#[test]
fn rows_begin_after_those_that_were_kept() {
    let kept = || {
        let mut bench = Bench::opening();
        match bench.on(Event::Admitted { kv_pages_free: 3, kept_rows: 96 }).reply {
            Some(Frame::Accept(accept)) => assert_eq!((accept.kv_pages_free, accept.kept_rows), (3, 96)),
            other => panic!("{other:?}"),
        }
        bench
    };
    let far = Instant::now() + Duration::from_secs(60);
    assert_eq!(kept().step(rows(0, 0, 1, far)).0, "fault");
    let mut bench = kept();
    assert_eq!(bench.step(rows(0, 96, 1, far)).1, Act::Compute);
    assert_eq!(bench.session.totals().rows_in, 1, "kept rows are not done");
    let mut bench = kept();
    assert_eq!(bench.step(trim(64)), ("state", Act::Trim { keep_rows: 64 }, Phase::Live));
    assert_eq!(bench.step(rows(0, 64, 1, far)).1, Act::Compute);
    assert_eq!(kept().step(trim(97)).0, "fault");
}

#[test]
fn a_session_outlives_its_neighbours() {
    let mut bench = Bench::surviving();
    let stalled = bench.on(next_lost(EPOCH)).reply;
    let Some(Frame::Stalled(Stalled { code: ErrorCode::NextSilent, about, .. })) = stalled else {
        panic!("{stalled:?}")
    };
    assert_eq!(about, peer(2));
    assert_eq!(bench.step(next_lost(EPOCH)), ("", Act::Nothing, Phase::Live), "said once");
    let far = bench.far();
    assert_eq!(bench.step(rows(1, 10, 2, far)).1, Act::Compute, "what comes is computed");

    assert_eq!(bench.step(reroute(EPOCH + 3)).1, Act::Reroute);
    assert_eq!((bench.session.open().prev, bench.session.open().next), (peer(5), peer(6)));
    assert_eq!(bench.session.expect(&peer(1), EPOCH), None, "nothing of before");
    assert!(bench.session.expect(&peer(5), EPOCH + 3).is_some());
    assert_eq!(bench.step(resume(EPOCH + 3, 0)).1, Act::Ignore(Ignored::WrongPhase), "not before it is reached");
    assert_eq!(bench.step(computed(0)), ("", Act::Nothing, Phase::Live), "not before it is reached");
    assert_eq!(bench.step(Event::Linked { epoch: EPOCH + 3 }), ("", Act::Nothing, Phase::Live), "one is in flight");
    assert!(bench.session.awaits(EPOCH, 1) && !bench.session.awaits(EPOCH + 3, 1));
    let rerouted = bench.on(computed(1)).reply;
    let expected = Rerouted { session: session(1), epoch: EPOCH + 3, pos: 12, log_from: 0 };
    assert_eq!(rerouted, Some(expected.into()));
    assert_eq!(bench.step(resume(EPOCH + 3, 4)).1, Act::Resume { from: 4, until: u32::MAX, roots_from: 0 });

    // Rows of the new neighbour, numbered anew, go on where those of before ended.
    let batch = Arrived { epoch: EPOCH + 3, seq: 0, pos: 12, rows: 1, rewind: false, deadline: far };
    assert_eq!(bench.step(Event::Rows { from: peer(5), batch }).1, Act::Compute);
    assert_eq!(bench.step(Event::Rows { from: peer(1), batch }).1, Act::Ignore(Ignored::WrongPredecessor));
}

#[test]
fn what_a_session_has_forgotten_is_not_handed_on() {
    let mut bench = Bench::surviving();
    assert_eq!(bench.step(computed(0)).1, Act::Nothing);
    assert_eq!(bench.step(Event::Forgot { log_from: 6 }).1, Act::Nothing);
    assert_eq!(bench.step(reroute(EPOCH + 1)).1, Act::Reroute);
    match bench.on(Event::Linked { epoch: EPOCH + 1 }).reply {
        Some(Frame::Rerouted(f)) => assert_eq!((f.pos, f.log_from), (10, 6)),
        other => panic!("{other:?}"),
    }
    // Trimmed to before that, it keeps what it computes from there on.
    let trimmed = Event::Trim(Trim { session: session(1), epoch: EPOCH + 1, keep_rows: 4 });
    assert_eq!(bench.step(trimmed).0, "state");
    assert_eq!(bench.step(resume(EPOCH + 1, 3)).0, "fault");
    assert_eq!(bench.session.phase(), Phase::Closed);
}

#[test]
fn a_session_does_not_wait_for_ever_nor_move_for_ever() {
    let mut bench = Bench::surviving();
    assert_eq!(bench.step(computed(0)).1, Act::Nothing);
    assert_eq!(bench.step(next_lost(EPOCH)).0, "stalled");
    assert_eq!(bench.session.wake_at(), Some(bench.now + STALL.min(IDLE)));
    bench.now += STALL;
    match bench.on(Event::Tick).reply {
        Some(Frame::Fault(Fault { code: ErrorCode::NextSilent, about, .. })) => assert_eq!(about, Some(peer(2))),
        other => panic!("{other:?}"),
    }
    let mut bench = Bench::surviving();
    for n in 1..=MAX_REROUTES {
        assert_eq!(bench.step(reroute(EPOCH + n)).1, Act::Reroute);
    }
    assert_eq!(bench.step(reroute(EPOCH + MAX_REROUTES + 1)).0, "fault");
}

#[test]
fn rows_come_from_the_predecessor_alone() {
    let mut bench = Bench::live();
    let batch = Arrived { epoch: EPOCH, seq: 0, pos: 0, rows: 1, rewind: false, deadline: bench.far() };
    let step = bench.step(Event::Rows { from: peer(9), batch });
    assert_eq!(step, ("", Act::Ignore(Ignored::WrongPredecessor), Phase::Live));
    let older = Event::Rows { from: peer(1), batch: Arrived { epoch: EPOCH - 1, ..batch } };
    assert_eq!(bench.step(older), ("", Act::Ignore(Ignored::StaleEpoch), Phase::Live));
    assert_eq!(bench.session.ignored(), 2);
    let shape = bench.session.expect(&peer(1), EPOCH).expect("takes rows");
    assert_eq!((shape.width, shape.max_rows), (2048, MAX_ROWS));
    assert_eq!(bench.session.expect(&peer(9), EPOCH), None);
    assert_eq!(bench.session.expect(&peer(1), EPOCH - 1), None);
    assert_eq!(Bench::draining().session.expect(&peer(1), EPOCH), None);
}

#[test]
fn replies_tell_what_was_done() {
    let mut bench = Bench::live();
    let far = bench.far();
    assert_eq!(bench.step(rows(0, 0, 100, far)).1, Act::Compute);
    assert_eq!(bench.step(rows(1, 100, 28, far)).1, Act::Compute);
    assert_eq!(bench.step(computed(0)).1, Act::Nothing);
    match bench.on(probe()).reply {
        Some(Frame::State(State { pos: 128, phase: Phase::Live, totals, .. })) => {
            let t = totals;
            assert_eq!((t.rows_in, t.rows_out, t.compute_us, t.queue_us, t.hop_us), (128, 100, 10, 2, 5));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.step(computed(1)).1, Act::Nothing);
    assert_eq!(bench.step(trim(64)), ("state", Act::Trim { keep_rows: 64 }, Phase::Live));
    assert_eq!(bench.step(rows(2, 64, 1, far)).1, Act::Compute);
    match bench.on(cancel(EPOCH)).reply {
        Some(Frame::Closed(Closed { code: Some(ErrorCode::Cancelled), epoch: EPOCH, totals, .. })) => {
            assert_eq!((totals.rows_in, totals.rows_out), (129, 128));
        }
        other => panic!("{other:?}"),
    }
    match Bench::live().on(failed()).reply {
        Some(Frame::Fault(Fault { code: ErrorCode::NextSilent, about, .. })) => assert_eq!(about, Some(peer(2))),
        other => panic!("{other:?}"),
    }
    let refused = Event::NotAdmitted { code: ErrorCode::NoKvPages, detail: "full".into(), retry_after_ms: 700 };
    match Bench::opening().on(refused).reply {
        Some(Frame::Refuse(Refuse { code: ErrorCode::NoKvPages, detail, retry_after_ms: 700, .. })) => {
            assert_eq!(detail, "full");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_ends_when_its_time_is_over() {
    let mut bench = Bench::live();
    assert_eq!(bench.session.wake_at(), Some(bench.now + IDLE));
    bench.now += IDLE - Duration::from_millis(1);
    assert_eq!(bench.step(Event::Tick), ("", Act::Nothing, Phase::Live));
    bench.now += Duration::from_millis(1);
    assert!(matches!(bench.on(Event::Tick).reply, Some(Frame::Fault(Fault { code: ErrorCode::IdleTimeout, .. }))));

    // A batch's own deadline counts when it is before the stage's.
    for (deadline, expected) in [(STEP / 2, STEP / 2), (STEP * 9, STEP)] {
        let mut bench = Bench::live();
        let start = bench.now;
        assert_eq!(bench.step(rows(0, 0, 1, start + deadline)).1, Act::Compute);
        assert_eq!(bench.session.wake_at(), Some(start + expected));
        bench.now = start + expected;
        let late = bench.on(Event::Tick).reply;
        assert!(matches!(late, Some(Frame::Fault(Fault { code: ErrorCode::DeadlineExceeded, .. }))));
        assert_eq!(bench.session.wake_at(), None);
    }
}

#[test]
fn batches_in_flight_and_rows_are_bounded() {
    let mut bench = Bench::live();
    let far = bench.far();
    for n in 0..u32::try_from(MAX_IN_FLIGHT).expect("few") {
        assert_eq!(bench.step(rows(n, n, 1, far)).1, Act::Compute);
    }
    let next = u32::try_from(MAX_IN_FLIGHT).expect("few");
    let over = bench.on(rows(next, next, 1, far)).reply;
    assert!(matches!(over, Some(Frame::Fault(Fault { code: ErrorCode::Overloaded, .. }))));

    let mut bench = Bench::live();
    assert_eq!(bench.step(rows(0, 0, 128, far)).1, Act::Compute);
    assert_eq!(bench.step(rows(1, 128, 72, far)).1, Act::Compute);
    let over = bench.on(rows(2, MAX_ROWS, 1, far)).reply;
    assert!(matches!(over, Some(Frame::Fault(Fault { code: ErrorCode::ContextFull, .. }))));
}

/// What speculation does: rows that were guessed wrong go when the next ones begin before them.
#[test]
fn rows_go_back_when_they_say_so_and_only_then() {
    let mut bench = Bench::live();
    let far = bench.far();
    let back = |seq, pos, rewind| Event::Rows {
        from: peer(1),
        batch: Arrived { epoch: EPOCH, seq, pos, rows: 3, rewind, deadline: far },
    };
    assert_eq!(bench.step(rows(0, 0, 10, far)).1, Act::Compute);
    bench.step(computed(0));
    assert_eq!(bench.step(back(1, 7, true)).1, Act::Compute);
    assert_eq!(bench.session.pos(), 10);
    assert_eq!(bench.step(back(2, 10, true)).1, Act::Compute, "nothing to forget");
    assert_eq!(bench.session.totals().rows_in, 16, "what is computed again counts again");
    let refused = |event| {
        let mut bench = bench.session.clone();
        matches!(bench.on(Instant::now(), event).reply, Some(Frame::Fault(Fault { code: ErrorCode::BadPosition, .. })))
    };
    assert!(refused(back(3, 10, false)), "it does not say so");
    assert!(refused(back(3, 14, true)), "a gap");
    assert!(refused(back(2, 10, true)), "an old number");
}

fn epoch_of_before() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(EPOCH), 1 => Just(EPOCH - 1), 2 => Just(EPOCH + 1), 1 => any::<u32>()]
}

fn any_event(start: Instant) -> impl Strategy<Value = Event> {
    let epoch = prop_oneof![6 => Just(EPOCH), 1 => Just(EPOCH - 1), 1 => Just(EPOCH + 1), 1 => any::<u32>()];
    let pos = prop_oneof![4 => 0..=MAX_ROWS, 1 => any::<u32>()];
    let after = (0..2000_u64).prop_map(move |ms| start + Duration::from_millis(ms));
    let from = prop_oneof![8 => Just(1), 1 => Just(2)].prop_map(peer);
    let s = session(1);
    prop_oneof![
        3 => any::<u8>().prop_map(|kept| Event::Admitted { kv_pages_free: 1, kept_rows: u32::from(kept) }),
        1 => epoch.clone().prop_map(keep),
        1 => Just(Event::NotAdmitted { code: ErrorCode::NoKvPages, detail: String::new(), retry_after_ms: 0 }),
        1 => epoch.clone().prop_map(|e| Event::Open(Box::new(open(e)))),
        9 => (from, epoch.clone(), 0..40_u32, pos.clone(), 0..4_u16, any::<bool>(), after).prop_map(
            |(from, epoch, seq, pos, rows, rewind, deadline)| {
                Event::Rows { from, batch: Arrived { epoch, seq, pos, rows, rewind, deadline } }
            }
        ),
        6 => (epoch.clone(), 0..40_u32).prop_map(|(epoch, seq)| {
            Event::Computed { epoch, seq, compute_us: u64::MAX, queue_us: 1, hop_us: 1 }
        }),
        2 => (epoch.clone(), pos)
            .prop_map(move |(epoch, keep_rows)| Event::Trim(Trim { session: s, epoch, keep_rows })),
        2 => epoch.clone().prop_map(move |epoch| Event::Probe(Probe { session: s, epoch })),
        1 => epoch.clone().prop_map(cancel),
        1 => epoch.prop_map(move |epoch| Event::Close(Close { session: s, epoch })),
        1 => Just(failed()),
        2 => epoch_of_before().prop_map(next_lost),
        2 => epoch_of_before().prop_map(reroute),
        2 => epoch_of_before().prop_map(|epoch| Event::Linked { epoch }),
        2 => (epoch_of_before(), 0..=MAX_ROWS).prop_map(|(epoch, from)| resume(epoch, from)),
        1 => (0..=MAX_ROWS).prop_map(|log_from| Event::Forgot { log_from }),
        1 => Just(Event::Gone),
        3 => Just(Event::Tick),
    ]
}

/// Rows that follow, more often than chance would have it.
fn in_order(session: &Session, event: Event) -> Event {
    match event {
        Event::Rows { from, batch } if batch.seq < 30 => {
            let seq = u32::try_from(session.totals().rows_in).unwrap_or(u32::MAX);
            let back = if batch.rewind { u32::from(batch.rows) } else { 0 };
            let pos = session.pos().saturating_sub(back);
            Event::Rows { from, batch: Arrived { seq, pos, rows: batch.rows.max(1), ..batch } }
        }
        other => other,
    }
}

fn last_word(frame: &Frame) -> bool {
    matches!(frame, Frame::Closed(_) | Frame::Refuse(_) | Frame::Fault(_))
}

proptest! {
    #[test]
    fn whatever_happens(events in vec((any_event(Instant::now()), 0..80_u64), 1..120), survives in any::<bool>()) {
        let start = Instant::now();
        let (mut now, mut s) = (start, Session::new(open(EPOCH), start));
        if survives {
            s = s.surviving();
        }
        let mut last_words = 0;
        for (event, ms) in events {
            now += Duration::from_millis(ms);
            let event = in_order(&s, event);
            let (before, wake) = (s.clone(), s.wake_at());
            let ticked = event == Event::Tick;
            let prev = before.open().prev;
            let from_other = matches!(&event, Event::Rows { from, .. } if *from != prev);
            let opens = matches!(&event, Event::Open(o) if o.epoch > before.open().epoch);
            let moves = matches!(&event, Event::Reroute(f) if f.epoch > before.open().epoch);
            let step = s.on(now, event);

            last_words += usize::from(step.reply.as_ref().is_some_and(last_word));
            prop_assert!(last_words <= 1, "one last word");
            prop_assert!(step.reply.as_ref().is_none_or(last_word) || s.phase() != Phase::Closed);
            prop_assert_eq!(step.act == Act::Release, before.phase() != Phase::Closed && s.phase() == Phase::Closed);
            prop_assert_eq!(step.act == Act::Admit, opens && before.phase() != Phase::Closed);
            prop_assert!(step.act != Act::Reroute || (moves && survives && before.phase() == Phase::Live));
            prop_assert!(s.in_flight() <= before.in_flight() || step.act == Act::Compute);
            if step.act == Act::Reroute {
                prop_assert!(s.pos() == before.pos() && s.in_flight() == before.in_flight(), "nothing is lost");
            }
            if let Some(Frame::Rerouted(f)) = &step.reply {
                prop_assert!(s.in_flight() == 0 && f.pos == s.pos() && f.log_from <= f.pos && f.epoch == s.open().epoch);
            }
            if let Some(Frame::Stalled(_)) = &step.reply {
                prop_assert!(survives);
            }
            prop_assert!(s.open().epoch >= before.open().epoch);
            prop_assert!(s.open().epoch == before.open().epoch || opens || moves, "only the coordinator raises the epoch");
            prop_assert!(s.pos() <= MAX_ROWS && s.in_flight() <= MAX_IN_FLIGHT);
            prop_assert!(s.totals().rows_out <= s.totals().rows_in);
            if step.act == Act::Compute {
                prop_assert!(before.phase() == Phase::Live && !from_other && s.in_flight() == before.in_flight() + 1);
            }
            if let Act::Ignore(_) = step.act {
                prop_assert!(step.reply.is_none() && s.phase() == before.phase() && s.pos() == before.pos());
                prop_assert_eq!(s.ignored(), before.ignored() + 1);
            }
            if ticked {
                prop_assert_eq!(s.phase() == Phase::Closed, before.phase() == Phase::Closed || wake.is_some_and(|at| at <= now));
            }
            prop_assert_eq!(s.wake_at().is_some(), matches!(s.phase(), Phase::Live | Phase::Draining));
            let mut anyone = [1, 2, 3, 5, 6].map(peer).into_iter();
            let anyone: Option<PeerId> = anyone.find(|p| s.expect(p, s.open().epoch).is_some());
            prop_assert_eq!(anyone, (s.phase() == Phase::Live).then_some(s.open().prev));
        }
    }
}
