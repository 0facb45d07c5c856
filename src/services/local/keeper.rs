//! The task that follows the rules: it starts the process, looks at its health, and notices its end.

use std::{
    future::pending,
    io,
    process::ExitStatus,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::sleep_until,
};

use super::{
    machine::{Act, Event, Machine, Rules, State},
    process::{Order, Process},
};
use crate::{
    inference::memory,
    services::builtin::upstream::{Health, Remote},
    telemetry::{Telemetry, local_llm},
};

/// Between two looks at its health while the model is being loaded.
const LOOK_STARTING: Duration = Duration::from_millis(200);

/// The same, when it is ready.
const LOOK: Duration = Duration::from_secs(5);

/// An answer in which no token came for so long is taken for a process that hangs: the first may need a long prompt computed.
const SILENT_S: u64 = 600;

/// How long the task may take to end the process, besides what the rules give that.
const MARGIN: Duration = Duration::from_secs(5);

fn rules(idle: Duration) -> Rules {
    Rules {
        start: Duration::from_secs(300),
        idle,
        drain: Duration::from_secs(12),
        rest: Duration::from_secs(1),
        rest_most: Duration::from_secs(60),
        steady: Duration::from_secs(60),
        missed: 3,
    }
}

/// What calls and the task have in common.
#[derive(Debug, Default)]
struct Shared {
    calls: AtomicU32,
    changed: Notify,
}

/// The task's handle.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    stop: watch::Sender<bool>,
    drain: Duration,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// A call that wants the process.
#[derive(Debug)]
pub(super) struct Wanted<'a>(&'a Shared);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

impl Keeper {
    pub(super) fn start(order: Order, idle: Duration, remote: Arc<Remote>, telemetry: Telemetry) -> Self {
        let (shared, rules) = (Arc::<Shared>::default(), rules(idle));
        let (say, state) = watch::channel(State::Off);
        let (stop, stopping) = watch::channel(false);
        let task = Task {
            order,
            remote,
            telemetry,
            shared: shared.clone(),
            machine: Machine::new(rules),
            process: None,
            looking: None,
            began: Instant::now(),
            say,
        };
        let task = Mutex::new(Some(tokio::spawn(task.run(stopping))));
        Self { shared, state, stop, drain: rules.drain, task }
    }

    /// Until this is dropped the process is wanted.
    pub(super) fn want(&self) -> Wanted<'_> {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.shared.changed.notify_one();
        Wanted(&self.shared)
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub(super) async fn stop(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.stop.send_replace(true);
        if let Some(task) = task {
            // Twice: asked, and killed.
            let most = self.drain.saturating_mul(2).saturating_add(MARGIN);
            if tokio::time::timeout(most, task).await.is_err() {
                tracing::error!("the process behind llm_local does not end");
            }
        }
    }
}

struct Task {
    order: Order,
    remote: Arc<Remote>,
    telemetry: Telemetry,
    shared: Arc<Shared>,
    machine: Machine,
    process: Option<Process>,
    /// A look at its health that is under way.
    looking: Option<BoxFuture<'static, Health>>,
    /// When it was started last.
    began: Instant,
    say: watch::Sender<State>,
}

/// How it ended; never, without one.
async fn ended(process: &mut Option<Process>) -> io::Result<ExitStatus> {
    match process {
        Some(process) => process.ended().await,
        None => pending().await,
    }
}

async fn looked(looking: &mut Option<BoxFuture<'static, Health>>) -> Health {
    match looking {
        Some(looking) => looking.await,
        None => pending().await,
    }
}

impl Task {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        self.publish();
        let mut stopped = false;
        while !self.machine.closed() {
            self.look();
            let wake = self.machine.wake();
            let due = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            let event = tokio::select! {
                () = self.shared.changed.notified() => Event::Calls(self.shared.calls.load(Ordering::Relaxed)),
                () = due => Event::Tick,
                how = ended(&mut self.process) => self.has_ended(how),
                health = looked(&mut self.looking) => {
                    self.looking = None;
                    match health {
                        Health::Ready { silent_s } if silent_s < SILENT_S => Event::Healthy,
                        Health::Ready { .. } | Health::Missed => Event::Missed,
                        Health::Loading => continue,
                    }
                }
                // The sender's end is the node's.
                _ = stopping.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    Event::Shutdown
                }
            };
            self.step(event);
        }
    }

    /// Looks at its health after a pause, if nobody does.
    fn look(&mut self) {
        if self.process.is_none() {
            self.looking = None;
        } else if self.looking.is_none() {
            let pause = if self.machine.state() == State::Ready { LOOK } else { LOOK_STARTING };
            let remote = self.remote.clone();
            self.looking = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                remote.health().await
            }));
        }
    }

    fn has_ended(&mut self, how: io::Result<ExitStatus>) -> Event {
        self.process = None;
        match how {
            Ok(status) if self.machine.state() == State::Stopping => tracing::info!(%status, "llm_local is unloaded"),
            Ok(status) => tracing::warn!(%status, "the process behind llm_local has ended by itself"),
            Err(error) => tracing::warn!(%error, "the process behind llm_local is lost"),
        }
        // Where it had no time to do so itself.
        let _ = std::fs::remove_file(&self.order.socket);
        Event::Ended
    }

    fn step(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let before = self.machine.state();
            let act = self.machine.on(event, Instant::now());
            match (before, self.machine.state()) {
                (State::Starting, State::Ready) => {
                    tracing::info!(took_s = self.began.elapsed().as_secs_f64(), "llm_local is ready");
                }
                (State::Ready | State::Starting, State::Stopping) if act == Some(Act::Kill) => {
                    tracing::warn!("the process behind llm_local does not answer, and is ended");
                }
                _ => {}
            }
            match act {
                None => {}
                Some(Act::Start) => {
                    if let Err(error) = self.start() {
                        tracing::error!(program = %self.order.program.display(), %error, "llm_local cannot be started");
                        next = Some(Event::Ended);
                    }
                }
                Some(Act::Ask) => self.process.iter().for_each(Process::ask),
                Some(Act::Kill) => self.process.iter_mut().for_each(Process::kill),
            }
            self.publish();
        }
    }

    fn start(&mut self) -> io::Result<()> {
        let left = || Some(memory::available()? / 4 * 3);
        let order = Order { memory: self.order.memory.or_else(left), ..self.order.clone() };
        tracing::info!(model = %order.model.display(), memory = order.memory, "llm_local is being loaded");
        (self.began, self.looking) = (Instant::now(), None);
        self.process = Some(Process::start(&order)?);
        Ok(())
    }

    fn publish(&self) {
        let state = self.machine.state();
        self.say.send_if_modified(|said| std::mem::replace(said, state) != state);
        let stats = &self.telemetry.stats.local_llm;
        stats.restarts.set(self.machine.restarts());
        stats.set(match state {
            State::Off => local_llm::State::Off,
            State::Starting => local_llm::State::Starting,
            State::Ready => local_llm::State::Ready,
            State::Stopping => local_llm::State::Stopping,
            State::Resting(_) => local_llm::State::Resting,
        });
    }
}
