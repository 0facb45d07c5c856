//! Random histories of many sessions against the rules that must hold whatever happens: pages are conserved, nobody is
//! stopped half way, every job is answered once, nobody starves, and what is taken over is what the keys name.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    AdmissionError, Input, Job, JobError, Phase, PrefixKey, PrefixKeys, RunnerConfig, SessionEvent, SessionId,
    SubmitError, Want,
    pace::Spent,
    pages_for,
    prefix::Scope,
    session::Rows,
    sessions::{Done, MAX_DECODE_ROWS, Opening, Sessions},
};
use crate::{KV_PAGE_ROWS, MAX_ROWS};

/// A cache that remembers which row it holds where.
#[derive(Default)]
pub(super) struct Book(Vec<u64>);

impl Rows for Book {
    type Block = Vec<u64>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn truncate(&mut self, rows: usize) {
        self.0.truncate(rows);
    }

    fn block(&self, index: usize) -> Vec<u64> {
        self.0[index * KV_PAGE_ROWS..(index + 1) * KV_PAGE_ROWS].to_vec()
    }

    fn append(&mut self, block: &Vec<u64>) -> bool {
        assert!(self.0.len().is_multiple_of(KV_PAGE_ROWS));
        self.0.extend(block);
        true
    }

    fn replace(&mut self, index: usize, block: &Vec<u64>) -> bool {
        assert_eq!(*block, self.block(index), "a page is replaced by one of the same rows");
        true
    }
}

/// What the test knows of a session.
struct Known {
    max_rows: usize,
    prompt: u64,
    len: usize,
    /// Blocks that have names.
    named: usize,
    submitted: bool,
    /// Rows that it submits are its prompt's: nothing has failed, nor was taken back.
    faithful: bool,
}

/// The row at `pos` of a prompt; prompts of one family begin alike.
fn row(prompt: u64, pos: usize) -> u64 {
    let family = prompt / 2;
    let differs = prompt % 2 == 1 && pos >= 2 * KV_PAGE_ROWS;
    family * 1_000_000 + u64::from(differs) * 500_000 + pos as u64
}

fn keys(prompt: u64, pages: usize) -> Vec<PrefixKey> {
    let key = |index: usize| {
        let rows: Vec<u8> = (0..(index + 1) * KV_PAGE_ROWS).flat_map(|pos| row(prompt, pos).to_le_bytes()).collect();
        *blake3::hash(&rows).as_bytes()
    };
    (0..pages.min(4)).map(key).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Open {
        group: u64,
        pages: usize,
        prompt: u64,
        deaf: bool,
    },
    Submit {
        at: usize,
        rows: usize,
        prefill: bool,
        /// Rows before the session's end where the job begins.
        back: usize,
    },
    Trim {
        at: usize,
        keep: usize,
    },
    Keep {
        at: usize,
    },
    Close {
        at: usize,
    },
    /// Computes a batch, with something happening to the `at`th session meanwhile.
    Tick {
        fails: bool,
        meanwhile: Option<(usize, bool)>,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_u64, 1..6_usize, 0..6_u64, any::<bool>())
            .prop_map(|(group, pages, prompt, deaf)| Step::Open { group, pages, prompt, deaf }),
        6 => (0..12_usize, 1..=MAX_ROWS, any::<bool>(), prop_oneof![6 => Just(0), 1 => 1..70_usize])
            .prop_map(|(at, rows, prefill, back)| Step::Submit { at, rows, prefill, back }),
        2 => (0..12_usize, 0..200_usize).prop_map(|(at, keep)| Step::Trim { at, keep }),
        2 => (0..12_usize).prop_map(|at| Step::Keep { at }),
        1 => (0..12_usize).prop_map(|at| Step::Close { at }),
        6 => (proptest::bool::weighted(0.1), proptest::option::of((0..12_usize, any::<bool>())))
            .prop_map(|(fails, meanwhile)| Step::Tick { fails, meanwhile }),
        1 => (1..400_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

const CONFIG: RunnerConfig =
    RunnerConfig { kv_pages: 16, max_sessions: 6, queue: 20, grace: Duration::from_millis(300) };

struct World {
    sessions: Sessions<Book>,
    known: BTreeMap<SessionId, Known>,
    now: Instant,
    /// Sessions that were told to go.
    told: Arc<Mutex<Vec<SessionId>>>,
    submitted: usize,
    answered: Arc<Mutex<usize>>,
    /// Ticks that the next job of a session has waited.
    waited: BTreeMap<SessionId, usize>,
    /// Counts rows that are no prompt's.
    strays: f32,
}

impl World {
    fn nth(&self, at: usize) -> Option<SessionId> {
        self.known.keys().nth(at % self.known.len().max(1)).copied()
    }

    /// Tells those who had to go, and forgets them.
    fn tell(&mut self, evicted: super::sessions::Evicted) {
        evicted.into_iter().for_each(|tell| tell(SessionEvent::Evicted));
        for id in self.told.lock().unwrap().drain(..) {
            self.known.remove(&id).expect("only what is open is closed, and once");
            self.waited.remove(&id);
        }
    }

    fn open(&mut self, group: u64, pages: usize, prompt: u64, deaf: bool) {
        let max_rows = pages * KV_PAGE_ROWS - usize::from(prompt == 3);
        let pages = pages_for(max_rows as u32);
        let (told, name) = (self.told.clone(), Arc::new(Mutex::new(None)));
        let own = name.clone();
        let hears = move |_| told.lock().unwrap().push(own.lock().unwrap().expect("opened"));
        // Of some prompts only the beginning has names when they begin.
        let mut keys = keys(prompt, pages as usize);
        keys.truncate(if prompt.is_multiple_of(3) { 1 } else { keys.len() });
        let named = keys.len();
        let opening = Opening {
            scope: Scope { group, first: 0, layers: 1 },
            leads: true,
            pages,
            prefix: PrefixKeys::from_keys(keys, max_rows as u32 - 1),
            cache: Book(Vec::new()),
            on_event: if deaf { None } else { Some(Box::new(hears)) },
        };
        let (free, places) = (self.sessions.pages().free(), CONFIG.max_sessions - self.sessions.len());
        let mut evicted = Vec::new();
        let opened = self.sessions.open(opening, self.now, &mut evicted);
        self.tell(evicted);
        match opened {
            Ok((id, len)) => {
                *name.lock().unwrap() = Some(id);
                assert!(len < max_rows && len.is_multiple_of(KV_PAGE_ROWS));
                self.known.insert(id, Known { max_rows, prompt, len, named, submitted: false, faithful: true });
            }
            Err(AdmissionError::Pages { needed_pages, free_pages }) => {
                assert!(needed_pages > free_pages && pages > free);
            }
            Err(AdmissionError::Sessions { .. }) => assert_eq!(places, 0),
            Err(other) => panic!("{other}"),
        }
    }

    fn submit(&mut self, id: SessionId, rows: usize, prefill: bool, back: usize) {
        let known = self.known.get_mut(&id).unwrap();
        let pos = known.len.saturating_sub(back);
        let goes_back = pos < known.len;
        let rows = rows.min(known.max_rows - known.len);
        if rows == 0 {
            return;
        }
        let (rows, phase) = if prefill { (rows, Phase::Prefill) } else { (1, Phase::Decode) };
        // Rows of nobody else, or the prompt's.
        self.strays += 1.0;
        let tag = if known.faithful { 0.0 } else { self.strays };
        let answered = self.answered.clone();
        let job = Job {
            session: id,
            pos: pos as u32,
            input: Input::Rows(vec![tag]),
            want: Want::Rows,
            phase,
            deadline: self.now,
            reply: Box::new(move |_| *answered.lock().unwrap() += 1),
        };
        match self.sessions.submit(job, rows, self.now) {
            Ok(()) => {
                self.submitted += 1;
                // Before the first job it only begins with less than it was given; see `trim`.
                known.faithful &= !(goes_back && known.submitted);
                known.submitted = true;
                known.len = pos + rows;
            }
            Err(SubmitError::QueueFull { .. }) => assert_eq!(self.sessions.queued(), CONFIG.queue),
            Err(other) => panic!("{other}"),
        }
    }

    fn tick(&mut self, fails: bool, meanwhile: Option<(usize, bool)>) {
        let ready = self.sessions.waiting();
        let picked = self.sessions.pick();
        assert_eq!(picked.is_empty(), ready.is_empty(), "work that is there is done");
        for id in ready {
            let waited = self.waited.entry(id).or_default();
            *waited = if picked.contains(&id) { 0 } else { *waited + 1 };
            // Each of at most six sessions goes before it once, with its group's turn coming every third time.
            assert!(*waited <= 3 * CONFIG.max_sessions, "a session starves");
        }
        let mut evicted = Vec::new();
        let taken: Vec<_> = picked.iter().filter_map(|id| self.sessions.take(*id, &mut evicted)).collect();
        assert_eq!(taken.len() + evicted.len(), picked.len(), "only who has no page to go back to is not served");
        self.tell(evicted);
        // How groups share them is the rule of `in_turns`, which has properties of its own.
        let decodes = taken.iter().filter(|taken| taken.pending.job.phase == Phase::Decode).count();
        assert!(decodes <= MAX_DECODE_ROWS && taken.len() - decodes <= 1);

        let (mut done, mut replies) = (Vec::new(), Vec::new());
        for mut taken in taken {
            let (session, rows, job) = (taken.pending.job.session, taken.pending.rows, taken.pending.job);
            let (known, from) = (self.known.get_mut(&session).unwrap(), job.pos as usize);
            if known.faithful {
                let right = |(pos, held): (usize, &u64)| *held == row(known.prompt, pos);
                assert!(taken.cache.0.iter().enumerate().all(right), "it holds rows of another prompt");
            }
            let Input::Rows(tag) = job.input else { unreachable!() };
            let value =
                |pos| if tag[0] == 0.0 { row(known.prompt, pos) } else { u64::MAX - 1000 * tag[0] as u64 - pos as u64 };
            // What stands behind a job that failed does not follow.
            let ok = !fails && taken.cache.len() == from;
            if ok {
                taken.cache.0.extend((from..from + rows).map(value));
            } else {
                known.faithful = false;
            }
            done.push(Done { session, cache: taken.cache, ok });
            replies.push(job.reply);
        }
        if let Some((id, close)) = meanwhile.and_then(|(at, close)| Some((self.nth(at)?, close))) {
            if close { self.close(id) } else { self.trim(id, 40) }
        }
        let (total, mut evicted) = (done.len(), Vec::new());
        let spent = Spent { wall: Duration::from_millis(1), on_core: None };
        self.sessions.bring_back(done, total, spent, self.now, &mut evicted);
        self.tell(evicted);
        replies.into_iter().for_each(|reply| reply(Err(JobError::Closed)));
    }

    fn trim(&mut self, id: SessionId, keep: usize) {
        let known = self.known.get_mut(&id).unwrap();
        known.len = known.len.min(keep);
        known.faithful &= !known.submitted;
        let mut evicted = Vec::new();
        self.sessions.trim(id, keep, &mut evicted);
        self.tell(evicted);
    }

    /// Names the rest of the prompt's blocks, unless the rows are no longer the prompt's.
    fn keep(&mut self, id: SessionId) {
        let known = self.known.get_mut(&id).unwrap();
        if known.faithful {
            let mut keys = keys(known.prompt, pages_for(known.max_rows as u32) as usize);
            let keys = keys.split_off(known.named);
            let first = known.named;
            known.named += keys.len();
            self.sessions.keep(id, first, &PrefixKeys::from_keys(keys, 0));
        }
    }

    fn close(&mut self, id: SessionId) {
        self.sessions.close(id);
        self.known.remove(&id);
        self.waited.remove(&id);
    }

    /// What the thread does before each batch.
    fn answer_orphans(&mut self) {
        self.sessions.orphans().into_iter().for_each(|job| (job.reply)(Err(JobError::Closed)));
    }

    fn check(&self) {
        let held = self.sessions.check();
        for (id, known) in &self.known {
            assert_eq!(held[id], pages_for(known.max_rows as u32), "a session has the pages it was opened for");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_whatever_happens(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World {
            sessions: Sessions::new(CONFIG),
            known: BTreeMap::new(),
            now: Instant::now(),
            told: Arc::default(),
            submitted: 0,
            answered: Arc::default(),
            waited: BTreeMap::new(),
            strays: 0.0,
        };
        for step in steps {
            match step {
                Step::Open { group, pages, prompt, deaf } => world.open(group, pages, prompt, deaf),
                Step::Wait { ms } => world.now += Duration::from_millis(ms),
                Step::Tick { fails, meanwhile } => world.tick(fails, meanwhile),
                Step::Submit { at, rows, prefill, back } => {
                    world.nth(at).into_iter().for_each(|id| world.submit(id, rows, prefill, back));
                }
                Step::Trim { at, keep } => world.nth(at).into_iter().for_each(|id| world.trim(id, keep)),
                Step::Keep { at } => world.nth(at).into_iter().for_each(|id| world.keep(id)),
                Step::Close { at } => world.nth(at).into_iter().for_each(|id| world.close(id)),
            }
            world.answer_orphans();
            world.check();
        }
        while !world.sessions.waiting().is_empty() {
            world.tick(false, None);
            // A session that has no page to go back to is closed in the last tick, too.
            world.answer_orphans();
            world.check();
        }
        prop_assert_eq!(*world.answered.lock().unwrap(), world.submitted, "every job is answered once");
        let open: Vec<_> = world.known.keys().copied().collect();
        open.into_iter().for_each(|id| world.close(id));
        prop_assert_eq!(world.sessions.pages().free(), CONFIG.kv_pages);
    }
}
