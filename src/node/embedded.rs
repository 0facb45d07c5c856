//! What a node does for the program that it is part of: the library's face.

use super::{Node, NodeBuilder, full_addresses};
use crate::{
    address::parse_peer_address,
    events::Offered,
    inference::{CoverageReport, InferError, InferRequest, PlanReport, PlanRequest},
    library::{Address, Answer, Events, PeerId},
};

/// Why no connection to a peer came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(String);

impl Node {
    /// A builder for a node inside another program.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    /// This node's peer id.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        PeerId::of(&self.handle.local())
    }

    /// Full addresses at which other nodes can dial this one, ending in its peer id; those on loopback are for this machine.
    pub async fn addresses(&self) -> Vec<Address> {
        full_addresses(&self.handle).await.into_iter().map(Address::made).collect()
    }

    /// The peers that it is connected to.
    pub async fn peers(&self) -> Vec<PeerId> {
        let snapshot = self.handle.snapshot().await;
        snapshot.iter().flat_map(|s| &s.peers).map(|view| PeerId::of(&view.peer)).collect()
    }

    /// Connects to a peer, and returns its id; at once where there is a connection.
    ///
    /// # Errors
    /// When the address does not end in a peer id, nobody answers there in time, or it is somebody else.
    pub async fn connect(&self, to: &Address) -> Result<PeerId, ConnectError> {
        let to = parse_peer_address(to).map_err(|e| ConnectError(e.to_string()))?;
        let connected = self.handle.connect(to.peer, vec![to.addr.clone()]).await;
        connected.map(|()| PeerId::of(&to.peer)).map_err(|e| ConnectError(e.to_string()))
    }

    /// The layers that this node serves, by model id.
    #[must_use]
    pub fn serves(&self) -> Vec<Offered> {
        let served = self.plane.served();
        served.iter().map(|s| Offered { model: s.file.id.to_string(), layers: s.span.to_string() }).collect()
    }

    /// Who holds which layers of a model: `demo`, a file, or a model id.
    ///
    /// # Errors
    /// When the model is not known here.
    pub async fn coverage(&self, model: &str) -> Result<CoverageReport, InferError> {
        self.asker.coverage(model).await
    }

    /// What a request would be answered by, and why.
    ///
    /// # Errors
    /// When the model is not known here. That there is no plan is part of the report.
    pub async fn plan(&self, request: &PlanRequest) -> Result<PlanReport, InferError> {
        self.asker.plan(request).await
    }

    /// Asks. The answer comes as it is made, and ends with exactly one `Done` or `Error`; dropping it cancels the request at
    /// every peer. Has to be called within a Tokio runtime.
    pub fn infer(&self, request: InferRequest) -> Answer {
        Answer::new(self.ask(request))
    }

    /// Asks who holds a model's layers, and listens to what is announced of it from now on, so that [events](Self::events) tell of
    /// both. A node that serves a model listens anyway.
    ///
    /// # Errors
    /// When the model is not known here.
    pub async fn follow(&self, model: &str) -> Result<CoverageReport, InferError> {
        let id = self.asker.models.ends(model).await?.file.id;
        self.handle.listen_for(id).await;
        self.coverage(model).await
    }

    /// What has happened since the node started, as far as it is remembered, and happens from now on: peers that come and go,
    /// models that are announced, requests that end.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.telemetry.events.clone())
    }
}
