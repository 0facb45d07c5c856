use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules {
    start: Duration::from_secs(300),
    idle: Duration::from_secs(600),
    drain: Duration::from_secs(10),
    rest: Duration::from_secs(1),
    rest_most: Duration::from_secs(60),
    steady: Duration::from_secs(60),
    missed: 3,
};

/// A machine and its time.
struct Sim {
    machine: Machine,
    now: Instant,
}

impl Sim {
    fn new() -> Self {
        Self { machine: Machine::new(RULES), now: Instant::now() }
    }

    fn on(&mut self, event: Event) -> Option<Act> {
        self.machine.on(event, self.now)
    }

    fn after(&mut self, seconds: u64) -> Option<Act> {
        self.now += Duration::from_secs(seconds);
        self.on(Event::Tick)
    }

    fn ready() -> Self {
        let mut sim = Self::new();
        assert_eq!(sim.on(Event::Calls(1)), Some(Act::Start));
        assert_eq!(sim.on(Event::Healthy), None);
        assert_eq!(sim.machine.state(), State::Ready);
        sim
    }

    /// How long it rests.
    fn rest(&self) -> u64 {
        match self.machine.state() {
            State::Resting(until) => (until - self.now).as_secs(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_is_started_by_a_call_and_unloaded_when_nobody_calls_any_more() {
    let mut sim = Sim::new();
    assert_eq!((sim.after(9999), sim.machine.wake()), (None, None));
    assert_eq!(sim.on(Event::Calls(1)), Some(Act::Start));
    assert_eq!(sim.on(Event::Calls(2)), None, "once");
    sim.on(Event::Healthy);
    assert_eq!((sim.after(9999), sim.machine.wake()), (None, None), "not while calls are under way");
    sim.on(Event::Calls(0));
    assert_eq!(sim.after(599), None);
    sim.on(Event::Calls(1));
    sim.on(Event::Calls(0));
    assert_eq!(sim.after(599), None, "a call begins its time anew");
    assert_eq!(sim.after(1), Some(Act::Ask));
    assert_eq!(sim.machine.state(), State::Stopping);
    assert_eq!(sim.on(Event::Ended), None);
    assert_eq!((sim.machine.state(), sim.machine.restarts()), (State::Off, 0));
    assert_eq!(sim.on(Event::Calls(1)), Some(Act::Start));
}

#[test]
fn a_call_that_comes_while_it_is_unloaded_starts_it_again() {
    let mut sim = Sim::ready();
    sim.on(Event::Calls(0));
    assert_eq!(sim.after(600), Some(Act::Ask));
    assert_eq!(sim.on(Event::Calls(1)), None);
    assert_eq!(sim.on(Event::Ended), Some(Act::Start));
    assert_eq!(sim.machine.restarts(), 0, "it had not failed");
}

#[test]
fn after_a_crash_it_rests_twice_as_long_each_time_and_is_started_again() {
    let mut sim = Sim::ready();
    for (n, rest) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        assert_eq!(sim.on(Event::Ended), None);
        sim.on(Event::Calls(0));
        assert_eq!(sim.rest(), rest);
        assert_eq!(sim.after(rest - 1), None);
        assert_eq!(sim.after(1), Some(Act::Start), "it had been of use");
        assert_eq!(sim.machine.restarts(), n as u64 + 1);
        sim.on(Event::Healthy);
        assert_eq!(sim.after(59), None);
    }
    sim.after(1);
    sim.on(Event::Ended);
    assert_eq!(sim.rest(), 1, "after a steady time a crash is the first again");
}

#[test]
fn what_has_never_been_ready_waits_until_somebody_wants_it() {
    let mut sim = Sim::new();
    sim.on(Event::Calls(1));
    assert_eq!(sim.on(Event::Ended), None);
    sim.on(Event::Calls(0));
    assert_eq!((sim.after(1), sim.machine.state()), (None, State::Off));
    assert_eq!(sim.on(Event::Calls(1)), Some(Act::Start));
    sim.on(Event::Ended);
    assert_eq!(sim.rest(), 2, "what failed before is not forgotten");
    assert_eq!(sim.after(2), Some(Act::Start), "somebody waits");
}

#[test]
fn who_does_not_become_ready_or_hangs_is_killed_and_has_failed() {
    let mut sim = Sim::new();
    sim.on(Event::Calls(1));
    for _ in 0..9 {
        assert_eq!(sim.on(Event::Missed), None, "the weights are being read");
    }
    assert_eq!(sim.after(299), None);
    assert_eq!(sim.after(1), Some(Act::Kill));
    assert_eq!(sim.after(10), Some(Act::Kill), "again, if it is still there");
    sim.on(Event::Ended);
    assert_eq!(sim.rest(), 1);

    let mut sim = Sim::ready();
    for event in [Event::Missed, Event::Missed, Event::Healthy, Event::Missed, Event::Missed] {
        assert_eq!(sim.on(event), None);
    }
    assert_eq!(sim.on(Event::Missed), Some(Act::Kill));
    sim.on(Event::Calls(0));
    sim.on(Event::Ended);
    assert_eq!(sim.after(1), Some(Act::Start));
    assert_eq!(sim.machine.restarts(), 1);
}

#[test]
fn the_node_stops_and_nothing_is_started_any_more() {
    for began in [Sim::new(), Sim::ready()] {
        let mut sim = began;
        let running = sim.machine.state() == State::Ready;
        assert_eq!(sim.on(Event::Shutdown), running.then_some(Act::Ask));
        assert_eq!(sim.machine.closed(), !running);
        sim.on(Event::Ended);
        assert_eq!((sim.on(Event::Calls(1)), sim.machine.closed()), (None, true));
    }
    let mut stubborn = Sim::ready();
    stubborn.on(Event::Shutdown);
    assert_eq!(stubborn.after(10), Some(Act::Kill));
    let mut resting = Sim::ready();
    resting.on(Event::Ended);
    resting.on(Event::Shutdown);
    assert!(resting.machine.closed());
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u32..3).prop_map(Event::Calls),
        Just(Event::Healthy),
        Just(Event::Missed),
        Just(Event::Ended),
        Just(Event::Tick),
        Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens there is one process at most, it ends when it is told to, and nobody waits for ever.
    #[test]
    fn one_process_at_most_and_always_a_way_on(events in proptest::collection::vec((event(), 0u64..400), 1..80)) {
        let mut sim = Sim::new();
        let mut lives = false;
        for (event, seconds) in events {
            if event == Event::Ended && !lives {
                continue;
            }
            sim.now += Duration::from_secs(seconds);
            lives &= event != Event::Ended;
            match sim.on(event) {
                Some(Act::Start) => {
                    prop_assert!(!lives, "a second process");
                    lives = true;
                }
                Some(Act::Ask | Act::Kill) => prop_assert!(lives, "nobody to tell"),
                None => {}
            }
            let has_one = matches!(sim.machine.state(), State::Starting | State::Ready | State::Stopping);
            prop_assert_eq!(lives, has_one);
            if sim.machine.calls > 0 && sim.machine.state() != State::Ready {
                prop_assert!(sim.machine.wake().is_some(), "a call waits for nothing");
            }
        }
        sim.on(Event::Shutdown);
        for _ in 0..3 {
            if lives {
                sim.after(10);
                lives = false;
                sim.on(Event::Ended);
            }
        }
        prop_assert!(sim.machine.closed());
    }
}
