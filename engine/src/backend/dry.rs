//! A backend that looks at weights and computes nothing: for checking a file as loading it does, without its memory.

use super::{Activation, AttentionShape, Backend, Rotation, Sequence, cpu};
use crate::{BackendError, LoadError, gguf::TensorView};

/// Takes every weight of a supported type and keeps none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dry;

/// Nobody runs a model that was only looked at.
fn nothing<T>() -> Result<T, BackendError> {
    Err(BackendError("this backend only looks at weights".to_owned()))
}

impl Backend for Dry {
    type Rows = ();
    type Matrix = ();
    type Vector = ();
    type Page = ();

    fn profile(&self) -> &'static str {
        "dry"
    }

    fn is_exact(&self) -> bool {
        false
    }

    fn kv_row_bytes(&self, _: &AttentionShape) -> u64 {
        0
    }

    fn load_matrix(&self, tensor: &TensorView<'_>) -> Result<(), LoadError> {
        cpu::supported(tensor).map(drop)
    }

    fn load_vector(&self, tensor: &TensorView<'_>) -> Result<(), LoadError> {
        cpu::supported(tensor).map(drop)
    }

    fn upload(&self, _: &[f32], _: usize) -> Result<(), BackendError> {
        nothing()
    }

    fn download(&self, (): ()) -> Result<Vec<f32>, BackendError> {
        nothing()
    }

    fn lookup(&self, (): &(), _: &[u32]) -> Result<(), BackendError> {
        nothing()
    }

    fn matmul<const N: usize>(&self, (): &(), _: [&(); N]) -> Result<[(); N], BackendError> {
        nothing()
    }

    fn add_bias(&self, (): (), (): &()) -> Result<(), BackendError> {
        nothing()
    }

    fn add(&self, (): (), (): &()) -> Result<(), BackendError> {
        nothing()
    }

    fn scale(&self, (): (), _: f32) -> Result<(), BackendError> {
        nothing()
    }

    fn soft_cap(&self, (): (), _: f32) -> Result<(), BackendError> {
        nothing()
    }

    fn rms_norm(&self, (): &(), (): &(), _: f32) -> Result<(), BackendError> {
        nothing()
    }

    fn rotate(&self, (): (), _: &Rotation) -> Result<(), BackendError> {
        nothing()
    }

    fn gate(&self, (): (), (): &(), _: Activation) -> Result<(), BackendError> {
        nothing()
    }

    fn round_bf16(&self, (): ()) -> Result<(), BackendError> {
        nothing()
    }

    fn gather(&self, (): &(), _: &[u32]) -> Result<(), BackendError> {
        nothing()
    }

    fn add_rows(&self, (): (), (): &(), _: &[u32], _: &[f32]) -> Result<(), BackendError> {
        nothing()
    }

    fn attend(
        &self,
        (): (),
        (): (),
        (): (),
        _: usize,
        _: &mut [Sequence<'_, ()>],
        _: &AttentionShape,
    ) -> Result<(), BackendError> {
        nothing()
    }
}
