//! Going on when a stage is lost: others take its layers, and are given the rows that it had.
//!
//! The epoch is raised. Who is left of the chain gets other neighbours and keeps its rows; who comes new is opened with
//! none. When all have said how many rows they have, each is told where the next one stands, and hands on from there what
//! it kept ([`replay`](super::replay)). What is not kept is computed again, by as few stages as possible: they are trimmed back, and get their rows
//! from the one before, at worst from here, where the tokens are.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use libp2p::PeerId;
use quelea_shard::frame::{Cancel, Frame, Prefix, Reroute, StreamKind, Trim};
use quelea_wire::{ErrorCode, SpanRange};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    ChainSession, OPEN_TIMEOUT, Stage, route_hop, unreachable_hop, wait::PROBE_TIMEOUT, wait::Trouble, ways_to,
};
use crate::inference::{
    discover::{self, Found},
    links::FromStage,
    planner::Hop,
    types::{InferError, Recovery},
};

/// How long a session may be without one of its stages, all attempts together, while no rows are handed on again.
pub(super) const RECOVERY: Duration = Duration::from_secs(30);

/// Of the time that a step may take, the part for which others are looked for at most: half.
const LOOK_SHARE: u32 = 2;

/// Where a stage stands: the position of its next row, and the first row that it can hand on again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stand {
    pub(super) pos: u32,
    pub(super) log_from: u32,
}

impl ChainSession {
    /// Puts others in the place of who is lost, as often as somebody is, for [`RECOVERY`] at most.
    pub(super) async fn recover(&mut self, trouble: Trouble) -> Result<(), InferError> {
        let (mut peer, first) = match trouble {
            Trouble::Peer { peer, error } if self.survives && self.spec.replaces => (peer, *error),
            other => return Err(other.into()),
        };
        let started = Instant::now();
        let mut span = self.spec.trace.start("pipeline.failover");
        let mut deadline = started + RECOVERY;
        let (mut lost, mut taken_over_by) = (Vec::new(), Vec::new());
        tracing::warn!(session = %self.id, "a stage is lost: {first}");
        let went_on = loop {
            self.leave_out(peer);
            if let Some(stage) = self.stages.iter_mut().find(|stage| stage.hop.peer == peer) {
                stage.span.fail(first.code.clone(), first.error_code().meaning());
            }
            lost.push(peer);
            // Boxed: this is rare, and what waits for a token is small without it.
            match Box::pin(self.go_on(&mut deadline, &mut taken_over_by)).await {
                Ok(computes_from) => {
                    taken_over_by.retain(|hop: &Hop| !self.dead.contains(&hop.peer));
                    taken_over_by.sort_by_key(|hop| hop.span.start());
                    self.recoveries.push(Recovery {
                        lost: lost.iter().map(PeerId::to_string).collect(),
                        why: first.message.clone(),
                        taken_over_by: taken_over_by.iter().map(route_hop).collect(),
                        computes_from,
                        recovery_s: started.elapsed().as_secs_f64(),
                    });
                    tracing::info!(session = %self.id, epoch = self.epoch, "the session goes on");
                    break Ok(());
                }
                Err(Trouble::Peer { peer: another, error }) if Instant::now() < deadline => {
                    tracing::warn!(session = %self.id, "another stage is lost: {error}");
                    peer = another;
                }
                // Not a loss: somebody lies.
                Err(Trouble::Fatal(error)) if error.code == ErrorCode::RootsDiffer.to_string() => break Err(error),
                Err(trouble) => {
                    let InferError { message, hint, .. } = trouble.into();
                    let message = format!("{}; {message}", first.message);
                    break Err(InferError { message, hint, ..first });
                }
            }
        };
        self.results.plane.telemetry.metrics.recovered(went_on.is_ok());
        span.set_list("quelea.lost", lost.iter().map(PeerId::to_string));
        span.set_list("quelea.taken_over_by", taken_over_by.iter().map(|hop: &Hop| hop.peer.to_string()));
        span.ended(&went_on);
        went_on
    }

    /// From now on the session does without `peer`.
    fn leave_out(&mut self, peer: PeerId) {
        self.dead.insert(peer);
        self.paying.left(&peer);
        if let Some(trust) = &self.trust {
            trust.leave_out(peer);
        }
    }

    /// One attempt: from where on each stage computes. Who comes in is added to `new`.
    async fn go_on(&mut self, deadline: &mut Instant, new: &mut Vec<Hop>) -> Result<Vec<u32>, Trouble> {
        new.extend(self.replace().await?);
        self.connect_again(self.results.plane.handle.local()).await?;
        let mut stands = self.standing((*deadline).min(Instant::now() + OPEN_TIMEOUT)).await?;
        for (stage, stand) in self.stages.iter().zip(&stands) {
            self.paying.stands(&stage.hop.peer, stand.pos, self.sent);
        }
        self.trim_back(&mut stands).await?;
        self.replay(&stands, deadline).await?;
        self.vouched().await?;
        Ok(stands.iter().map(|stand| stand.pos).collect())
    }

    /// Finds others for the layers of the dead, and takes them into the chain.
    async fn replace(&mut self) -> Result<Vec<Hop>, Trouble> {
        let mut without: Vec<PeerId> = self.stages.iter().map(|stage| stage.hop.peer).collect();
        without.extend(&self.dead);
        for peer in &self.dead {
            self.results.plane.experience.failed(*peer, "it died in a session");
        }
        let mut spans: Vec<SpanRange> = Vec::new();
        for stage in self.stages.iter().filter(|stage| self.dead.contains(&stage.hop.peer)) {
            let span = stage.hop.span;
            match spans.last_mut().filter(|before| before.end() == span.start()) {
                Some(before) => *before = SpanRange::new(before.start(), span.end()).unwrap_or(span),
                None => spans.push(span),
            }
        }
        let mut found: HashMap<u16, Vec<Hop>> = HashMap::new();
        for span in spans {
            let plane = self.results.plane.clone();
            let mut query = self.spec.query.clone();
            let alive = || self.stages.iter().map(|stage| &stage.hop).filter(|hop| !self.dead.contains(&hop.peer));
            let before = alive().find(|hop| hop.span.end() == span.start()).map_or(query.here, |hop| hop.peer);
            let after = alive().find(|hop| hop.span.start() == span.end()).map_or(query.here, |hop| hop.peer);
            query.ends.embedding &= span.start() == query.span.start();
            query.ends.head &= span.end() == query.span.end();
            (query.span, query.from, query.to) = (span, before, after);
            query.exclude.extend(&without);
            let wanted = discover::Wanted {
                model: self.spec.model,
                layers: self.spec.layers,
                profile: self.spec.profile,
                patience: self.spec.step_timeout / LOOK_SHARE,
                own: Some(&self.spec.own),
                experience: &plane.experience,
                query: &query,
                local: None,
                why: false,
            };
            let planned = discover::find(&plane.handle, wanted, &mut Found::default()).await;
            let hops = planned.map(|planned| planned.chosen.chain()).map_err(|no| {
                tracing::warn!(session = %self.id, "nobody takes over: {no}");
                let ends = if no.lacks_only_ends() { " with the model's end next to them" } else { "" };
                let message = format!("no other peer takes layers {span}{ends}");
                InferError::new(ErrorCode::NoRoute, message).hint(format!(
                    "start another worker for them: quelea daemon --model FILE --layers {span} --bootstrap …"
                ))
            })?;
            without.extend(hops.iter().map(|hop| hop.peer));
            found.insert(span.start(), hops);
        }
        let mut hops = Vec::new();
        for new in found.values().flatten() {
            hops.push(self.reach(new).await?);
        }
        let mut added = Vec::new();
        let mut chain = Vec::with_capacity(self.stages.len());
        let (dead, alive): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.stages).into_iter().partition(|stage| self.dead.contains(&stage.hop.peer));
        for stage in dead {
            // It may be alive, and only lost to its neighbour.
            let cancel = Cancel { session: self.id, epoch: self.epoch, code: ErrorCode::Cancelled };
            let _ = stage.control.sender.send(cancel);
        }
        for stage in hops {
            added.push(stage.hop.clone());
            self.saw.push((stage.hop.peer, stage.hop.span));
            chain.push(stage);
        }
        chain.extend(alive);
        chain.sort_by_key(|stage| stage.hop.span.start());
        self.stages = chain;
        Ok(added)
    }

    /// Opens control to a peer that comes into the chain.
    async fn reach(&self, hop: &Hop) -> Result<Stage, Trouble> {
        let lost = |why: &str| Trouble::Peer { peer: hop.peer, error: Box::new(unreachable_hop(hop, why)) };
        let plane = &self.results.plane;
        let deadline = Instant::now() + PROBE_TIMEOUT;
        let control = timeout_at(deadline, plane.links.control(plane, hop.peer, &hop.addrs))
            .await
            .map_err(|_| lost("it does not answer"))?
            .map_err(|e| lost(&e.to_string()))?;
        if control.sender.features() & self.features != self.features {
            return Err(lost("it is of a version that cannot take a session over"));
        }
        let paid = self.paying.add_later(hop, &control.sender, Instant::now() + OPEN_TIMEOUT).await;
        paid.map_err(|error| Trouble::Peer { peer: hop.peer, error: Box::new(error) })?;
        control.subscribe(self.id, self.listener.clone());
        let span = self.spec.trace.stage(&hop.peer, &hop.span.to_string());
        let mut stage = Stage { hop: hop.clone(), control, session: self.id, totals: None, joined: false, span };
        stage.goes(&ways_to(plane, &self.spec.trace).await);
        Ok(stage)
    }

    /// In a new epoch: opens the session at those who have not accepted it, gives all others their neighbours, and reaches
    /// the first.
    async fn connect_again(&mut self, local: PeerId) -> Result<(), Trouble> {
        // Results that came in time are results.
        while let Ok(batch) = self.results.batches.try_recv() {
            self.take(Some(batch))?;
        }
        self.epoch += 1;
        self.paying.epoch(self.epoch);
        if let Some(trust) = &self.trust {
            trust.arrange(self.epoch, &self.arrangement());
        }
        self.spec.prefix = Prefix::default();
        let (Some(first), Some(last)) = (self.stages.first(), self.stages.last()) else {
            return Err(InferError::new(ErrorCode::NoRoute, "the chain is empty").into());
        };
        let (first, last) = (first.hop.clone(), last.hop.peer);
        self.results.move_to(last, self.epoch, self.spec.back());
        for (i, stage) in self.stages.iter().enumerate() {
            let sent = if !stage.joined {
                stage.control.sender.send(self.open_for(i, stage.hop.span, local))
            } else {
                let (prev, next, next_addrs) = self.neighbours(i, local);
                stage.control.sender.send(Reroute { session: self.id, epoch: self.epoch, prev, next, next_addrs })
            };
            sent.map_err(|e| self.lost(stage.hop.peer, ErrorCode::HopLost, &e.to_string()))?;
        }
        let plane = self.results.plane.clone();
        let links = async {
            let decode = plane.links.data(&plane, first.peer, StreamKind::Decode, &first.addrs).await?;
            let bulk = plane.links.data(&plane, first.peer, StreamKind::Bulk, &first.addrs).await?;
            Ok::<_, crate::inference::links::LinkError>((decode, bulk))
        };
        let lost = |why: &str| Trouble::Peer { peer: first.peer, error: Box::new(unreachable_hop(&first, why)) };
        let links = timeout_at(Instant::now() + PROBE_TIMEOUT, links).await.map_err(|_| lost("it does not answer"))?;
        (self.decode, self.bulk) = links.map_err(|e| lost(&e.to_string()))?;
        Ok(())
    }

    /// Waits until all stages have said where they stand. Who says nothing at all is lost.
    async fn standing(&mut self, deadline: Instant) -> Result<Vec<Stand>, Trouble> {
        let mut stands: HashMap<PeerId, Stand> = HashMap::new();
        let mut heard = HashSet::new();
        let silent_at = Instant::now() + PROBE_TIMEOUT;
        self.probe();
        loop {
            let all: Option<Vec<Stand>> =
                self.stages.iter().map(|stage| stands.get(&stage.hop.peer).copied()).collect();
            if let Some(all) = all {
                return Ok(all);
            }
            let silent = self.stages.iter().map(|stage| stage.hop.peer).find(|peer| !heard.contains(peer));
            let missing = self.stages.iter().map(|stage| stage.hop.peer).find(|peer| !stands.contains_key(peer));
            tokio::select! {
                event = self.events.recv() => match event {
                    Some((peer, FromStage::Frame(frame))) => {
                        heard.insert(peer);
                        match *frame {
                            Frame::Rerouted(f) if f.epoch == self.epoch => {
                                stands.insert(peer, Stand { pos: f.pos, log_from: f.log_from });
                            }
                            Frame::Accept(f) if f.epoch == self.epoch => {
                                let accepted = self.stages.iter_mut().filter(|stage| stage.hop.peer == peer);
                                accepted.for_each(|stage| stage.joined = true);
                                stands.insert(peer, Stand { pos: f.kept_rows, log_from: f.kept_rows });
                            }
                            Frame::Refuse(f) if f.code == ErrorCode::NextUnreachable => {
                                return Err(self.unreachable_next(peer, &heard));
                            }
                            frame => self.event(peer, FromStage::Frame(Box::new(frame)))?,
                        }
                    }
                    Some((peer, lost)) => self.event(peer, lost)?,
                    None => return Err(InferError::new(ErrorCode::Internal, "the session's events have ended").into()),
                },
                () = sleep_until(silent_at), if silent.is_some() => {
                    let peer = silent.unwrap_or(self.results.from);
                    return Err(self.lost(peer, ErrorCode::HopSilent, "does not answer"));
                }
                () = sleep_until(deadline) => {
                    let peer = missing.unwrap_or(self.results.from);
                    return Err(self.lost(peer, ErrorCode::HopSilent, "does not go on in time"));
                }
            }
        }
    }

    /// `peer` says that it cannot reach the next one: that is lost, unless it has spoken to us meanwhile. The second one who
    /// says so of the same peer is believed in any case.
    fn unreachable_next(&mut self, peer: PeerId, heard: &HashSet<PeerId>) -> Trouble {
        let at = self.stages.iter().position(|stage| stage.hop.peer == peer);
        let next = at.and_then(|at| self.stages.get(at + 1)).map(|stage| stage.hop.peer);
        match next.filter(|next| !heard.contains(next) || !self.accused.insert(*next)) {
            Some(next) => {
                let from = format!("cannot be reached by peer {peer}");
                self.lost(next, ErrorCode::NextUnreachable, &from)
            }
            None => self.lost(peer, ErrorCode::NextUnreachable, "cannot reach the next peer"),
        }
    }

    /// What is still to come back begins here.
    pub(super) fn wanted_from(&self) -> u32 {
        let first = self.expected.front().map(|e| e.pos.saturating_add(rows_of(&e.data, self.spec.back().width)));
        first.unwrap_or(self.sent)
    }

    /// Has stages compute again what the next one lacks and they have forgotten.
    async fn trim_back(&mut self, stands: &mut [Stand]) -> Result<(), Trouble> {
        let mut lacks = self.wanted_from();
        let mut waiting = HashMap::new();
        // Behind that, a stage may hold rows that were guessed and taken back.
        let sure = if self.rewound { lacks } else { u32::MAX };
        for (stage, stand) in self.stages.iter().zip(stands.iter_mut()).rev() {
            let keep_rows = if stand.log_from > lacks { lacks } else { stand.pos.min(sure) };
            if keep_rows < stand.pos {
                self.paying.again(&stage.hop.peer, stand.pos - keep_rows);
                *stand = Stand { pos: keep_rows, log_from: stand.log_from.min(keep_rows) };
                let trim = Trim { session: self.id, epoch: self.epoch, keep_rows };
                let peer = stage.hop.peer;
                stage.control.sender.send(trim).map_err(|e| self.lost(peer, ErrorCode::HopLost, &e.to_string()))?;
                waiting.insert(peer, keep_rows);
            }
            lacks = stand.pos;
        }
        let deadline = Instant::now() + OPEN_TIMEOUT;
        while let Some(peer) = waiting.keys().next().copied() {
            match timeout_at(deadline, self.events.recv()).await {
                Ok(Some((from, FromStage::Frame(frame)))) => match *frame {
                    Frame::State(f) if f.epoch == self.epoch && waiting.get(&from) == Some(&f.pos) => {
                        waiting.remove(&from);
                    }
                    frame => self.event(from, FromStage::Frame(Box::new(frame)))?,
                },
                Ok(Some((from, lost))) => self.event(from, lost)?,
                Ok(None) => return Err(InferError::new(ErrorCode::Internal, "the session's events have ended").into()),
                Err(_) => return Err(self.lost(peer, ErrorCode::HopSilent, "does not go back to the rows it has")),
            }
        }
        Ok(())
    }
}

/// Rows of `width` values.
fn rows_of(data: &[f32], width: u32) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX) / width.max(1)
}
