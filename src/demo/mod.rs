//! The embedded model, and three nodes in one process that answer with it.

use quelea_engine::Gguf;
use quelea_wire::ErrorCode;

use crate::{
    address::parse_peer_address,
    inference::{InferError, InferEvent, InferRequest, Route, Summary},
    node::{
        Node, StartError,
        settings::{Keep, ServeSpec, Settings},
    },
};
use crate::{
    home::Home,
    inference::models::DEMO,
    inference::serve::{LayerChoice, ServeEnds},
};

/// The embedded model: made by `engine/examples/train_demo.rs`; its page is `engine/demo/README.md`.
pub(crate) static DEMO_GGUF: &[u8] = include_bytes!("../../engine/demo/quelea-demo-q8_0.gguf");

/// The network of the demo, apart from every real one.
const NETWORK: &str = "demo";

/// Nodes that hold the model between them.
const NODES: usize = 3;

/// How long the demo's nodes may take to stop: nothing of theirs is worth waiting for.
const GRACE: std::time::Duration = std::time::Duration::from_millis(500);

/// What came of a question.
pub(crate) struct DemoReport {
    /// The answer of the three, and who did what.
    pub(crate) summary: Summary,
    /// The answer of the unsplit model.
    pub(crate) unsplit: String,
    /// Whether both are the same, token for token.
    pub(crate) same: bool,
}

/// Three nodes on loopback and the peer that asks them.
pub(crate) struct Demo {
    nodes: Vec<Node>,
    asker: Node,
    /// Holds the data directories; removed at the end.
    _dir: tempfile::TempDir,
}

impl Demo {
    /// Starts the nodes. Only the first is told to the others; the rest they find through the DHT.
    pub(crate) async fn start() -> Result<Self, StartError> {
        let dir = tempfile::Builder::new()
            .prefix("quelea-demo-")
            .tempdir()
            .map_err(|e| StartError::new(ErrorCode::StorageFailed, format!("no temporary directory: {e}")))?;
        let layers = layers_of_demo()?;
        let mut nodes: Vec<Node> = Vec::with_capacity(NODES);
        let mut first: Vec<crate::address::PeerAddress> = Vec::new();
        for (i, span) in thirds(layers).into_iter().enumerate() {
            let home = Home::new(Some(dir.path().join(format!("node-{}", i + 1)))).map_err(StartError::home)?;
            let mut settings = Settings::passing(NETWORK, first.clone());
            settings.keep = Keep::in_home(home);
            settings.listen = vec![loopback()?];
            settings.kad_mode = quelea_behaviours::KadMode::Server;
            settings.serve = Some(ServeSpec {
                model: DEMO.into(),
                layers: LayerChoice::Exactly(span),
                memory: None,
                ends: ServeEnds::default(),
            });
            let node = Node::start(settings).await?;
            if first.is_empty() {
                let addresses = node.addresses().await;
                first = addresses.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
            }
            nodes.push(node);
        }
        let asker = Node::start(Settings::passing(NETWORK, first.clone())).await?;
        asker.wait_for_bootstrap(&first).await?;
        Ok(Self { nodes, asker, _dir: dir })
    }

    /// Peer id and layers of each node.
    pub(crate) fn nodes(&self) -> Vec<(String, String)> {
        self.nodes
            .iter()
            .map(|node| {
                let layers = node.serves().into_iter().map(|served| served.layers).collect::<Vec<_>>().join(", ");
                (String::from(node.peer_id()), layers)
            })
            .collect()
    }

    /// Asks the three, then the unsplit model, and compares.
    pub(crate) async fn ask(
        &self,
        question: &str,
        max_tokens: u32,
        mut see: impl FnMut(&InferEvent),
    ) -> Result<DemoReport, InferError> {
        let mut request = InferRequest::new(DEMO, question);
        request.max_tokens = max_tokens;
        let summary = self.asker.answer(request.clone(), &mut see).await?;
        request.route = Route::Local;
        let unsplit = self.asker.answer(request, |_| {}).await?;
        Ok(DemoReport {
            same: unsplit.ids == summary.ids && unsplit.text == summary.text,
            unsplit: unsplit.text,
            summary,
        })
    }

    /// Stops all nodes.
    pub(crate) async fn stop(self) {
        let all = self.nodes.into_iter().chain([self.asker]).map(|node| node.shutdown(GRACE));
        futures::future::join_all(all).await;
    }
}

fn layers_of_demo() -> Result<u16, StartError> {
    let broken = |e: &dyn std::fmt::Display| StartError::new(ErrorCode::ModelFile, format!("the embedded model: {e}"));
    let gguf = Gguf::from_static(DEMO_GGUF).map_err(|e| broken(&e))?;
    let hparams = quelea_engine::Hparams::from_gguf(&gguf).map_err(|e| broken(&e))?;
    u16::try_from(hparams.n_layers).map_err(|e| broken(&e))
}

/// The layers in three spans of nearly equal length.
fn thirds(layers: u16) -> Vec<quelea_wire::SpanRange> {
    let cut = |i: u32| u16::try_from(u32::from(layers) * i / 3).unwrap_or(layers);
    (0..3).filter_map(|i| quelea_wire::SpanRange::new(cut(i), cut(i + 1)).ok()).collect()
}

fn loopback() -> Result<libp2p::Multiaddr, StartError> {
    crate::address::parse_multiaddr("/ip4/127.0.0.1/tcp/0").map_err(|e| StartError::listen(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_cover_everything() {
        for layers in [3, 4, 6, 8, 29] {
            let spans = thirds(layers);
            assert_eq!(spans.len(), 3);
            assert_eq!(spans.iter().map(quelea_wire::SpanRange::count).sum::<u16>(), layers);
        }
    }
}
