//! Whether a session is taken, and what it takes: layers that are held here, a place, pages, and links to the next peer.

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use quelea_engine::runner::{AdmissionError, OnEvent, SessionSpec};
use quelea_shard::{
    commitment::Roots,
    frame::{Open, Refuse, SessionId, StreamKind},
    link::{ControlSender, DataSender, LinkEnd},
    protocol::FAILOVER,
    session::{Event, Session},
};
use quelea_wire::{ErrorCode, Profile};
use tokio::{task::AbortHandle, time::Instant};
use tracing::Instrument as _;

use super::{
    super::{
        links::{Far, LinkError},
        prefix,
        serve::Served,
    },
    Account, Entry, Held, Log, MAX_PER_COORDINATOR, MAX_SESSIONS, Out, Plane, Tables, paid, told,
};
use crate::swarm::ConnectError;

/// The longest that a coordinator may leave a session idle, whatever it asks for: its pages are wanted.
const MAX_IDLE: Duration = Duration::from_secs(120);

/// How long a stage may take to reach the next peer when a session opens.
pub(super) const REACH_NEXT: Duration = Duration::from_secs(5);

/// Between two attempts to dial the next peer while strangers' dials have to wait for each other.
const DIAL_AGAIN: Duration = Duration::from_millis(200);

/// A coordinator opens a session. The name is taken at once; the rest needs the network and happens in a task.
pub(super) fn opened(plane: &Arc<Plane>, coordinator: PeerId, stream: u64, control: &ControlSender, mut open: Open) {
    open.idle_ms = open.idle_ms.min(u32::try_from(MAX_IDLE.as_millis()).unwrap_or(u32::MAX));
    let key = (coordinator, open.session);
    let mut tables = plane.stages.lock();
    let retry_after_ms = tables.retry_after_ms();
    let refuse = |code: ErrorCode, detail: String| {
        let retry_after_ms = if waits(code) { retry_after_ms } else { 0 };
        let _ = control.send(Refuse { session: open.session, epoch: open.epoch, code, detail, retry_after_ms });
    };
    // Opened anew: what the coordinator made of it in an epoch before came to nothing.
    if let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch < open.epoch) {
        let step = entry.machine.on(Instant::now(), Event::Gone);
        tables.done(key, step);
    }
    if tables.entries.contains_key(&key) || tables.routes.contains_key(&(open.prev, open.session)) {
        return refuse(ErrorCode::DuplicateSession, String::new());
    }
    let served = match fits(plane, coordinator, &open) {
        Ok(served) => served,
        Err((code, detail)) => return refuse(code, detail),
    };
    if let Err((code, detail)) = paid::offers(plane, coordinator, &open) {
        return refuse(code, detail);
    }
    if open.pay.is_some_and(|pay| tables.spent.has(&pay.hold)) {
        return refuse(ErrorCode::PaymentRequired, "the hold was worked for before".into());
    }
    let of_this = tables.held.get(&coordinator).copied().unwrap_or_default();
    let full = |tables: &mut Tables| tables.entries.len() >= MAX_SESSIONS && !tables.make_room(coordinator, |_| true);
    if of_this >= MAX_PER_COORDINATOR || full(&mut tables) {
        return refuse(ErrorCode::TooManySessions, format!("{of_this} of yours are open"));
    }
    let now = std::time::Instant::now();
    if !tables.opens.admit(coordinator, now) || !tables.all_opens.admit(now) {
        return refuse(ErrorCode::Overloaded, "sessions are opened too fast".into());
    }
    tables.routes.insert((open.prev, open.session), coordinator);
    *tables.held.entry(coordinator).or_default() += 1;
    // The names are of use once.
    let prefix = std::mem::take(&mut open.prefix);
    let machine = Session::new(open.clone(), Instant::now());
    let machine = if control.features() & FAILOVER == 0 { machine } else { machine.surviving() };
    open.prefix = prefix;
    let mut span = plane.telemetry.session_span(coordinator, plane.handle.local(), open.trace);
    span.set("quelea.layers", open.span.to_string());
    span.set("quelea.model", open.model.short());
    let log = span.for_log();
    tables.entries.insert(
        key,
        Entry {
            machine,
            coordinator,
            control: control.clone(),
            stream,
            held: None,
            since: Instant::now(),
            account: Account::new(plane, coordinator, &open),
            span,
        },
    );
    drop(tables);
    tokio::spawn(admit(plane.clone(), key, open, served).instrument(log));
}

/// Whether what stands in the way goes when sessions end.
fn waits(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::TooManySessions | ErrorCode::NoKvPages | ErrorCode::Overloaded)
}

/// Whether this node serves what the coordinator wants.
fn fits(plane: &Plane, coordinator: PeerId, open: &Open) -> Result<Arc<Served>, (ErrorCode, String)> {
    if plane.is_draining() {
        return Err((ErrorCode::ShuttingDown, String::new()));
    }
    let local = plane.handle.local();
    let through_us_twice = coordinator != local && (open.prev == local || open.next == local);
    if through_us_twice || (open.prev == open.next && open.next != coordinator) {
        return Err((ErrorCode::Usage, "a chain passes a peer once".into()));
    }
    let served = plane.served();
    let of_model: Vec<_> = served.iter().filter(|s| s.file.id == open.model && !s.leaves()).collect();
    let Some(first) = of_model.first() else {
        return Err((ErrorCode::ModelUnknown, format!("{} is not served here", open.model.short())));
    };
    if first.width != open.width {
        return Err((ErrorCode::BadShape, format!("rows of this model have {} values", first.width)));
    }
    let rounds = open.profile == Profile::ExactBf16 && first.profile == Profile::Exact;
    if first.profile != open.profile && !rounds {
        return Err((ErrorCode::ProfileMismatch, format!("the profile here is {}", first.profile)));
    }
    let (embeds, gives_logits) = (open.ends.takes_tokens, open.ends.gives_logits > 0);
    if (embeds && open.span.start() > 0) || (gives_logits && open.span.end() != first.file.layers()) {
        return Err((ErrorCode::Usage, "the model's ends are computed with the layers next to them".into()));
    }
    let held: Vec<String> = of_model.iter().map(|s| s.span.to_string()).collect();
    let has_layers = |s: &&&Arc<Served>| s.span.covers(&open.span);
    let has_ends = |s: &&&Arc<Served>| (!embeds || s.ends.embedding) && (!gives_logits || s.ends.head);
    if let Some(served) = of_model.iter().filter(has_layers).find(has_ends) {
        return Ok(Arc::clone(served));
    }
    let detail = if of_model.iter().any(|s| s.span.covers(&open.span)) {
        "embedding or head are not computed here for others".into()
    } else {
        format!("held here: {}", held.join(", "))
    };
    Err((ErrorCode::LayersNotHeld, detail))
}

/// Reserves the cache, reaches the next peer, and answers.
async fn admit(plane: Arc<Plane>, key: (PeerId, SessionId), open: Open, served: Arc<Served>) {
    let reserved = async {
        let deadline = Instant::now() + REACH_NEXT;
        let (paid, reserved) =
            tokio::join!(paid::reserved(&plane, key.0, &open, deadline), reserve(&plane, key.0, &open, &served));
        paid.and(reserved)
    };
    let event = match reserved.await {
        Ok((mut held, kept_rows)) => {
            let kv_pages_free = served.runner.load().kv_pages_free;
            held.watch = Some(watch_next(&plane, key, &open, &held));
            let mut tables = plane.stages.lock();
            match tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == open.epoch) {
                Some(entry) => {
                    entry.held = Some(held);
                    entry.span.event("accepted");
                }
                // Cancelled meanwhile; `held` gives its pages back.
                None => return,
            }
            Event::Admitted { kv_pages_free, kept_rows }
        }
        Err((code, detail)) => {
            let mut tables = plane.stages.lock();
            if let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == open.epoch) {
                entry.span.fail(code.to_string(), code.meaning());
            }
            let retry_after_ms = if waits(code) { tables.retry_after_ms() } else { 0 };
            drop(tables);
            Event::NotAdmitted { code, detail, retry_after_ms }
        }
    };
    told(&plane, key, event);
}

/// What the session holds from now on, and the rows that it has from before.
async fn reserve(
    plane: &Arc<Plane>,
    coordinator: PeerId,
    open: &Open,
    served: &Arc<Served>,
) -> Result<(Held, u32), (ErrorCode, String)> {
    let next = open.next;
    let (decode, bulk) = match tokio::time::timeout(REACH_NEXT, reach(plane, coordinator, open)).await {
        Ok(Ok(links)) => links,
        Ok(Err(error)) => {
            // What exactly a dial met is ours to know: a stage is not there to look at ports for others.
            tracing::debug!(%coordinator, %next, %error, "the next peer is not reached");
            return Err((ErrorCode::NextUnreachable, format!("{next} cannot be reached")));
        }
        Err(_) => return Err((ErrorCode::NextUnreachable, format!("{next} does not answer"))),
    };
    let group = plane.stages.group(&coordinator);
    let opened = loop {
        let spec = SessionSpec {
            group,
            layers: served.local_layers(&open.span),
            max_rows: open.max_rows,
            bf16: open.profile == Profile::ExactBf16,
            prefix: prefix::from_wire(&open.prefix),
            on_event: Some(on_event(plane, (coordinator, open.session), open.epoch)),
        };
        match served.runner.open_with(spec) {
            Ok(opened) => break opened,
            Err(error) => {
                let full = matches!(error, AdmissionError::Pages { .. } | AdmissionError::Sessions { .. });
                let here = |held: &Held| Arc::ptr_eq(&held.served, served);
                if !full || !plane.stages.make_room(coordinator, here) {
                    return Err((ErrorCode::NoKvPages, error.to_string()));
                }
            }
        }
    };
    let log = Log::new(open.ends.logits_width().unwrap_or(open.width), opened.reused_rows, plane.stages.logs.clone());
    let (served, cache, out) = (served.clone(), opened.session, Out::opened(open.epoch));
    let roots = Roots::new(opened.reused_rows, open.epoch);
    let held = Held { served, cache, decode, bulk, next_seq: 0, log, out, roots, watch: None };
    Ok((held, opened.reused_rows))
}

/// Tells the coordinator when its session has to give way.
fn on_event(plane: &Arc<Plane>, key: (PeerId, SessionId), epoch: u32) -> OnEvent {
    let (plane, runtime) = (Arc::downgrade(plane), tokio::runtime::Handle::current());
    Box::new(move |_| {
        // Not on this thread: it may hold the table.
        runtime.spawn(async move {
            if let Some(plane) = plane.upgrade() {
                let detail = "it was idle, and others wait for its pages".into();
                plane.stages.fail(key, epoch, ErrorCode::Evicted, None, detail);
            }
        });
    })
}

/// The links to the next peer.
pub(super) async fn reach(
    plane: &Arc<Plane>,
    asker: PeerId,
    open: &Open,
) -> Result<(DataSender, DataSender), LinkError> {
    let far = Far { peer: open.next, addrs: &open.next_addrs, asker };
    let mut broke = false;
    loop {
        match plane.links.data_for(plane, far, StreamKind::Decode).await {
            Ok(decode) => return Ok((decode, plane.links.data_for(plane, far, StreamKind::Bulk).await?)),
            Err(LinkError::Connect(ConnectError::Busy)) => tokio::time::sleep(DIAL_AGAIN).await,
            // Over a connection to the process that the peer was before it was started again: it is dialled once more.
            Err(LinkError::Stream(_) | LinkError::Handshake(_)) if !broke => {
                broke = true;
                tokio::time::sleep(DIAL_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tells the session when one of its links to the next peer ends.
pub(super) fn watch_next(plane: &Arc<Plane>, key: (PeerId, SessionId), open: &Open, held: &Held) -> AbortHandle {
    let (decode, bulk) = (held.decode.ended(), held.bulk.ended());
    let plane = Arc::downgrade(plane);
    let epoch = open.epoch;
    let watch = tokio::spawn(async move {
        let end = tokio::select! { end = decode => end, end = bulk => end };
        if let Some(plane) = plane.upgrade() {
            let code = match end {
                LinkEnd::Silent => ErrorCode::NextSilent,
                _ => ErrorCode::HopLost,
            };
            plane.stages.next_lost(key, epoch, code, end.to_string());
        }
    });
    watch.abort_handle()
}
