//! Who holds which layers of a model, and which nobody does.

use std::sync::PoisonError;

use quelea_announce::State;
use quelea_wire::SpanRange;
use serde::{Deserialize, Serialize};

use super::{
    Asker, discover,
    planner::{
        placement::{self, Holding},
        uncovered,
    },
    types::InferError,
};

/// Somebody holds layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CoverageHolder {
    /// The peer.
    pub peer: String,
    /// The layers, half-open.
    pub layers: String,
    /// `ready`, `loading` or `draining`.
    pub state: String,
    /// Whether it is the node that was asked.
    pub here: bool,
    /// Free pages of keys and values.
    pub kv_pages_free: u32,
    /// Layer-rows of answers per second, by its own word; 0 until it has computed something.
    pub decode_rows_per_s: u32,
    /// What it asks for 1,000 layer-rows of answers, in micro-credits.
    #[serde(default)]
    pub price_decode: u64,
    /// What it asks for 1,000 layer-rows of prompts, in micro-credits.
    #[serde(default)]
    pub price_prefill: u64,
}

/// Who holds which layers of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CoverageReport {
    /// The model's id.
    pub model: String,
    /// Its name.
    pub name: String,
    /// How many layers it has.
    pub layers: u16,
    /// Bytes of their weights.
    pub weight_bytes: u64,
    /// How many are ready to run each layer.
    pub replicas: Vec<u64>,
    /// The layers that nobody is ready to run.
    pub missing: Vec<String>,
    /// Bytes of their weights.
    pub missing_bytes: u64,
    /// Who holds what, in the order of the layers.
    pub holders: Vec<CoverageHolder>,
}

impl Asker {
    /// Who holds which layers of the model that `reference` names, as far as they answer in time.
    ///
    /// # Errors
    /// When the model is not known here.
    pub(crate) async fn coverage(&self, reference: &str) -> Result<CoverageReport, InferError> {
        let ends = self.models.ends(reference).await?;
        let (model, layers, here) = (ends.file.id, ends.file.layers(), self.plane.handle.local());
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = discover::announced(&self.plane.handle, &self.plane.experience, model).await;
        all.retain(|signed| signed.peer() != here);
        all.extend(own);
        let mut found = Vec::new();
        for signed in &all {
            let offers = signed.announcement().offers.iter();
            found.extend(offers.filter(|o| o.model == model && o.layers_total == layers).map(|o| (signed.peer(), o)));
        }
        found.sort_by_key(|(peer, offer)| (offer.span, *peer));
        let ready: Vec<SpanRange> =
            found.iter().filter(|(_, offer)| offer.state == State::Ready).map(|(_, offer)| offer.span).collect();
        let holdings: Vec<Holding> = ready.iter().map(|span| Holding { span: *span, weight: 1 }).collect();
        let sizes: Vec<u64> = ends.file.manifest.layers.iter().map(|part| part.bytes).collect();
        let missing = SpanRange::new(0, layers).map(|whole| uncovered(whole, &ready)).unwrap_or_default();
        let bytes = |span: &SpanRange| sizes.get(span.as_usize()).unwrap_or_default().iter().sum::<u64>();
        let holders = found.iter().map(|(peer, offer)| CoverageHolder {
            peer: peer.to_string(),
            layers: offer.span.to_string(),
            state: format!("{:?}", offer.state).to_lowercase(),
            here: *peer == here,
            kv_pages_free: offer.kv_pages_free,
            decode_rows_per_s: offer.decode_rows_per_s,
            price_decode: offer.price_decode,
            price_prefill: offer.price_prefill,
        });
        Ok(CoverageReport {
            model: model.to_string(),
            name: ends.file.manifest.name.clone(),
            layers,
            weight_bytes: sizes.iter().sum(),
            replicas: placement::replicas(usize::from(layers), &holdings),
            missing_bytes: missing.iter().map(bytes).sum(),
            missing: missing.iter().map(ToString::to_string).collect(),
            holders: holders.collect(),
        })
    }
}
