//! Getting the layers that a node is to serve: from a file, or by the model's id from disk and peers.

use std::{sync::Arc, time::Duration};

use libp2p::identity::Keypair;
use quelea_engine::StageOptions;
use quelea_wire::ModelId;
use tokio::sync::watch;

use super::{
    Life, Node, StartError, bootstrap,
    settings::{ServeSpec, Settings},
};
use crate::{
    inference::{
        Asker, InferError,
        models::ModelFile,
        publish::Publisher,
        rebalance::Mover,
        serve::{self, LayerChoice, ServeEnds, Served},
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
        ends: ServeEnds,
        compute: &StageOptions,
    ) -> Result<Arc<Served>, InferError> {
        let plane = &self.asker.plane;
        let served = serve::load(plane, file, layers, self.spec.memory, ends, compute).await?;
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
            let kept = puller.pull(id, Parts::Layers(layers), STALL, &progress).await?;
            let mut ends = self.spec.ends;
            let beside = ends.beside(layers, kept.manifest.n_layers);
            for (_, part) in
                [(beside.embedding, Parts::Embedding), (beside.head, Parts::Head)].into_iter().filter(|(w, _)| *w)
            {
                // Others may have asked for layers alone: what is not here is fetched for those who insist.
                let mut chunks = kept.outline.needed(&part.of(&kept.manifest)?).into_iter().flatten();
                let have = kept.have();
                if ends == ServeEnds::Always || chunks.all(|chunk| have.has(chunk)) {
                    puller.pull(id, part, STALL, &progress).await?;
                } else {
                    ends = ServeEnds::Never;
                }
            }
            Ok::<_, InferError>((layers, ends))
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
        let (layers, ends) = fetched?;
        let shelf = puller.shelf.clone();
        let file = blocking(move || shelf.model(id))
            .await??
            .ok_or_else(|| InferError::new(quelea_wire::ErrorCode::Internal, "a model vanished while it was loaded"))?;
        self.load(file, LayerChoice::Exactly(layers), ends, compute).await.map(drop)
    }
}

impl Node {
    /// Loads the layers that the node is to serve, and tells others of them.
    pub(super) async fn serve_layers(
        &mut self,
        settings: &Settings,
        keypair: Keypair,
        stopping: watch::Receiver<Life>,
    ) -> Result<(), StartError> {
        let Some(spec) = &settings.serve else {
            self.telemetry.ok(Component::Model, "serves no layers");
            return Ok(());
        };
        self.telemetry.health.set(Component::Model, Status::Starting, format!("loading {}", spec.model));
        let publisher = Publisher {
            plane: self.plane.clone(),
            keypair,
            db: self.db.clone(),
            current: self.asker.own.clone(),
            ttl: settings.announce_ttl,
        };
        let memory = spec.memory.unwrap_or_else(serve::half_of_free_memory);
        let spec = ServeSpec { memory: Some(memory), ..spec.clone() };
        let work = Serving { asker: self.asker.clone(), telemetry: self.telemetry.clone(), spec: spec.clone() };
        if let Ok(id) = spec.model.parse::<ModelId>() {
            // What is missing may take hours to come; meanwhile the node is up, though not ready.
            let (bootstrap, compute) = (settings.bootstrap.clone(), settings.compute);
            let handle = self.handle.clone();
            self.publisher = Some(tokio::spawn(async move {
                if !bootstrap.is_empty() {
                    bootstrap::wait(&handle, &bootstrap).await;
                }
                let mut gone = stopping.clone();
                let pulled = tokio::select! {
                    pulled = work.pulled(id, &compute) => pulled,
                    _ = gone.wait_for(|life| *life != Life::Running) => return,
                };
                match pulled {
                    Ok(()) => publisher.run(stopping).await,
                    Err(error) => {
                        tracing::error!(%error, "the model is not served");
                        work.telemetry.health.set(Component::Model, Status::Failed, error.to_string());
                    }
                }
            }));
            return Ok(());
        }
        let name = spec.model.clone();
        let file = tokio::task::spawn_blocking(move || ModelFile::open(&name))
            .await
            .map_err(|e| StartError::internal(e.to_string()))??;
        if !settings.bootstrap.is_empty() {
            // `--layers auto` asks around, and our announcement wants somebody to hear it.
            bootstrap::wait(&self.handle, &settings.bootstrap).await;
        }
        self.asker.models.puller().shelf.add(&file);
        let served = work.load(file.clone(), spec.layers, spec.ends, &settings.compute).await?;
        if spec.layers == LayerChoice::Auto && !served.is_whole() {
            let mover = Mover { plane: self.plane.clone(), file, memory, compute: settings.compute, ends: spec.ends };
            self.servers.push(tokio::spawn(mover.run(stopping.clone())));
        }
        self.publisher = Some(tokio::spawn(publisher.run(stopping)));
        Ok(())
    }
}
