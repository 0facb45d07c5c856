//! Under which Kademlia keys a worker is found, and on which gossip topic it speaks.

use quelea_wire::{ModelId, SpanRange};

/// Layers that share one provider key. Eight: a model of 80 layers has ten keys, and the commonest spans cover whole
/// buckets.
pub const LAYERS_PER_BUCKET: u16 = 8;

/// Gossip topics for announcements. Sixteen: a node that serves one model hears a sixteenth of the swarm.
pub const TOPICS: u8 = 16;

const MODEL_PREFIX: &[u8] = b"/quelea/model/";
const LAYERS_PREFIX: &[u8] = b"/quelea/layers/";

/// The provider key of everyone who serves any layer of `model`: `/quelea/model/` and the 32 bytes of the id.
#[must_use]
pub fn model_key(model: &ModelId) -> Vec<u8> {
    [MODEL_PREFIX, &model.0].concat()
}

/// The provider key of those who serve a layer of `model` in `bucket` (see [`buckets`]): `/quelea/layers/`, the 32 bytes
/// of the id, the bucket's number as u16 LE.
#[must_use]
pub fn bucket_key(model: &ModelId, bucket: u16) -> Vec<u8> {
    [LAYERS_PREFIX, &model.0, &bucket.to_le_bytes()].concat()
}

/// The buckets that `span` touches, in order: bucket `n` is layers `8n..8n+8`.
pub fn buckets(span: &SpanRange) -> impl Iterator<Item = u16> + use<> {
    // A span is never empty, so its last layer exists.
    (span.start() / LAYERS_PER_BUCKET)..=(span.end().saturating_sub(1) / LAYERS_PER_BUCKET)
}

/// Which of the [`TOPICS`] announcements for `model` travel on. The id is a hash already: its first byte is as good as
/// any.
#[must_use]
pub fn topic_index(model: &ModelId) -> u8 {
    model.0.first().map_or(0, |byte| byte % TOPICS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_span_is_covered_by_its_buckets_and_no_others(start in 0_u16..200, count in 1_u16..100) {
            let span = SpanRange::new(start, start + count).unwrap();
            let touched: Vec<u16> = buckets(&span).collect();
            for bucket in 0..50_u16 {
                let holds = (bucket * 8..bucket * 8 + 8).any(|layer| span.contains(layer));
                prop_assert_eq!(holds, touched.contains(&bucket));
            }
        }
    }

    #[test]
    fn keys_are_frozen_and_distinct() {
        let model = ModelId([0x21; 32]);
        assert_eq!(model_key(&model), [b"/quelea/model/".as_slice(), &[0x21; 32]].concat());
        assert_eq!(bucket_key(&model, 0x0102), [b"/quelea/layers/".as_slice(), &[0x21; 32], &[2, 1]].concat());
        assert_eq!(topic_index(&model), 1);
        assert_ne!(bucket_key(&model, 0), bucket_key(&model, 1));
    }
}
