//! Getting the layers that a node is to serve: from a file, or by the model's id from disk and peers.

use std::{sync::Arc, time::Duration};

use quelea_engine::StageOptions;
use quelea_wire::ModelId;
use tokio::sync::watch;

use super::settings::ServeSpec;
use crate::{
    inference::{
        Asker, InferError,
        models::ModelFile,
        serve::{self, LayerChoice, Served},
    },
    telemetry::{Component, Status, Telemetry},
    weights::{
        Parts,
        fetch::{Progress, STALL, blocking},
    },
};

/// Between two pulls of layers that nobody gave.
const AGAIN: Duration = Duration::from_secs(5);

/// Layers that are on their way.
pub(super) struct Serving {
    pub(super) asker: Arc<Asker>,
    pub(super) telemetry: Telemetry,
    pub(super) spec: ServeSpec,
}

impl Serving {
    /// Loads layers of a file and serves them.
    pub(super) async fn load(
        &self,
        file: ModelFile,
        layers: LayerChoice,
        compute: &StageOptions,
    ) -> Result<Arc<Served>, InferError> {
        let plane = &self.asker.plane;
        let served = serve::load(plane, file, layers, self.spec.memory, compute).await?;
        self.telemetry.ok(Component::Model, format!("layers {} of {}", served.span, served.file.id.short()));
        self.asker.models.add_served(&served);
        plane.add_served(served.clone());
        Ok(served)
    }

    /// Fetches what is missing of a model's layers, then serves them. Chunks that are here are given to others meanwhile.
    pub(super) async fn pulled(&self, id: ModelId, compute: &StageOptions) -> Result<(), InferError> {
        let puller = self.asker.models.puller();
        let (progress, mut seen) = watch::channel(Progress::default());
        let telemetry = self.telemetry.clone();
        let short = id.short();
        let watching = tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                let now = *seen.borrow_and_update();
                let said =
                    format!("pulling {short}: {} of {} MiB from {} peers", now.bytes >> 20, now.total >> 20, now.peers);
                telemetry.health.set(Component::Model, Status::Starting, said);
            }
        });
        let fetched = async || {
            let layers = match self.spec.layers {
                LayerChoice::Exactly(span) => span,
                choice => {
                    let kept = puller.outlined(id, STALL).await?;
                    serve::choose(&self.asker.plane, &kept.manifest, id, choice, self.spec.memory).await?
                }
            };
            puller.pull(id, Parts::Layers(layers), STALL, &progress).await.map(|_| layers)
        };
        // A worker may be up long before those who have its layers.
        let fetched = loop {
            match fetched().await {
                Err(error) if error.retryable => {
                    tracing::warn!(%error, "the model's layers are not here yet; trying again");
                    tokio::time::sleep(AGAIN).await;
                }
                ended => break ended,
            }
        };
        drop(progress);
        // What it says of the model's state comes before what is said next.
        let _ = watching.await;
        let layers = fetched?;
        let shelf = puller.shelf.clone();
        let file = blocking(move || shelf.model(id))
            .await??
            .ok_or_else(|| InferError::new(quelea_wire::ErrorCode::Internal, "a model vanished while it was loaded"))?;
        self.load(file, LayerChoice::Exactly(layers), compute).await.map(drop)
    }
}
