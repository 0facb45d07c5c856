//! Moving to a span where one more holder is worth more, while serving: the new one is made before the old one is broken.
//!
//! ```text
//! look -> say that another comes -> load it -> look again -> serve it, take no more sessions for the old one -> unload that
//!   ^------------ nothing better ----------------+ not any more: unload the new one
//! ```
//!
//! For as long as it takes both are in memory. Whether to move is [`placement`]'s affair.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quelea_announce::State;
use quelea_engine::StageOptions;
use quelea_wire::SpanRange;
use rand::Rng;
use tokio::sync::watch;

use super::{
    discover,
    models::ModelFile,
    plane::Plane,
    planner::placement::{self, Holder, Standing},
    serve::{self, LayerChoice, ServeEnds, Served},
};
use crate::{node::Life, telemetry::Component};

/// Until the first look, in milliseconds: nodes that were started together have all spoken by then, and do not look at once.
const FIRST_LOOK_MS: std::ops::Range<u64> = 2_000..6_000;

/// Between two looks.
const LOOK_MS: std::ops::Range<u64> = 60_000..120_000;

/// Between a node's word that it moves and its second look: twice as long as anybody's word takes to be heard by all who ask.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// How long sessions of the old span may take. Those that are left then are closed, and go on elsewhere.
const DRAIN_AT_MOST: Duration = Duration::from_secs(600);

/// How often it is looked whether they are over.
const DRAIN_LOOK: Duration = Duration::from_millis(250);

/// A span that is being loaded: announced, not served.
#[derive(Clone)]
pub(crate) struct Coming {
    pub(crate) of: Arc<Served>,
    pub(crate) span: SpanRange,
}

/// Keeps the layers that a node has chosen by itself where they are worth the most.
pub(crate) struct Mover {
    pub(crate) plane: Arc<Plane>,
    pub(crate) file: ModelFile,
    /// Bytes for weights and caches of one span.
    pub(crate) memory: u64,
    /// Whether it computes the model's ends, too.
    pub(crate) ends: ServeEnds,
    pub(crate) compute: StageOptions,
}

impl Mover {
    /// Looks now and then until the node stops.
    pub(crate) async fn run(self, mut life: watch::Receiver<Life>) {
        let mut pause = random(FIRST_LOOK_MS);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = life.wait_for(|life| *life != Life::Running) => return,
            }
            pause = random(LOOK_MS);
            tokio::select! {
                () = self.look() => {}
                _ = life.wait_for(|life| *life != Life::Running) => return,
            }
        }
    }

    async fn look(&self) {
        let Some(old) = self.plane.served().into_iter().find(|served| served.file.id == self.file.id) else { return };
        let others = self.others().await;
        let here = self.plane.handle.local();
        let bytes: Vec<u64> = self.file.manifest.layers.iter().map(|part| part.bytes).collect();
        let budget = serve::for_weights(self.memory);
        let Some(span) = placement::better(&bytes, old.span, here, &others, budget, rand::random()) else { return };
        tracing::info!(model = %self.file.id.short(), from = %old.span, to = %span, "moving to other layers");
        self.plane.set_coming(Some(Coming { of: old.clone(), span }));
        let moved = self.move_to(&old, span).await;
        self.plane.set_coming(None);
        match moved {
            Ok(()) => self.drained(&old).await,
            Err(why) => {
                tracing::info!(model = %self.file.id.short(), layers = %old.span, why, "staying with the layers of before");
            }
        }
    }

    /// Serves `span` in the place of `old`, if it is still better once it is loaded.
    async fn move_to(&self, old: &Arc<Served>, span: SpanRange) -> Result<(), String> {
        let look_again = Instant::now() + SECOND_LOOK;
        let exactly = LayerChoice::Exactly(span);
        let new = serve::load(&self.plane, self.file.clone(), exactly, Some(self.memory), self.ends, &self.compute)
            .await
            .map_err(|error| error.to_string())?;
        tokio::time::sleep_until(look_again.into()).await;
        let (others, here) = (self.others().await, self.plane.handle.local());
        if !placement::still_better(usize::from(self.file.layers()), old.span, span, here, &others) {
            return Err("others have moved meanwhile".into());
        }
        old.leave();
        self.plane.telemetry.ok(Component::Model, format!("layers {span} of {}", self.file.id.short()));
        self.plane.add_served(new);
        Ok(())
    }

    /// Unloads what is not served any more, once its sessions are over.
    async fn drained(&self, old: &Arc<Served>) {
        let deadline = Instant::now() + DRAIN_AT_MOST;
        while old.runner.load().sessions > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        self.plane.remove_served(old);
    }

    /// Who else holds layers of the model, or will.
    async fn others(&self) -> Vec<Holder> {
        let here = self.plane.handle.local();
        let heard = discover::announced(&self.plane.handle, &self.plane.experience, self.file.id).await;
        heard
            .iter()
            .filter(|signed| signed.peer() != here)
            .flat_map(|signed| {
                let offers = || signed.announcement().offers.iter().filter(|offer| offer.model == self.file.id);
                let moves = offers().any(|offer| offer.state == State::Loading);
                offers().filter_map(move |offer| {
                    let standing = match offer.state {
                        State::Ready if moves => Standing::Leaves,
                        State::Ready => Standing::Stays,
                        State::Loading => Standing::Comes,
                        _ => return None,
                    };
                    Some(Holder { peer: signed.peer(), span: offer.span, standing })
                })
            })
            .collect()
    }
}

fn random(ms: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rand::rng().random_range(ms))
}
