//! AdamW and the learning rate.

use candle_core::{Result, Var, backprop::GradStore};

use crate::net::Param;

const PEAK_RATE: f32 = 2e-3;
/// The share of the rate that the second stage works with: it is to widen what was learnt, not to learn it anew.
pub const SECOND_STAGE: f32 = 0.5;
const FINAL_RATE: f32 = 2e-5;
const WARM_UP_STEPS: usize = 100;
/// The share of a run before the rate begins to fall. Until then a run does not depend on its length, which is what
/// lets `--minutes` decide the length late, by the speed it has seen, and `--steps` repeat the same run.
pub const PLATEAU: f32 = 0.6;
const BETA_MEAN: f32 = 0.9;
const BETA_SQUARE: f32 = 0.98;
const EPS: f32 = 1e-8;
const WEIGHT_DECAY: f32 = 0.05;
/// Gradients longer than this are shortened to it.
const CLIP: f32 = 1.0;

/// The rate at `step` of `steps`: a straight warm-up, a plateau, half a cosine down.
pub fn rate(step: usize, steps: usize) -> f32 {
    let warm = ((step + 1) as f32 / WARM_UP_STEPS as f32).min(1.0);
    let start = steps as f32 * PLATEAU;
    let fall = ((step as f32 - start) / (steps as f32 - start).max(1.0)).clamp(0.0, 1.0);
    let cosine = 0.5 * (1.0 + (std::f32::consts::PI * fall).cos());
    warm * (FINAL_RATE + (PEAK_RATE - FINAL_RATE) * cosine)
}

/// The gradients of half a batch, and the variables they were taken for, in the order of the parameters.
pub type Half = (Vec<Var>, GradStore);

/// One step from the gradients of the halves of a batch, each with the variables it was taken for; they are added in
/// the order given. Returns the length of the gradient before clipping.
pub fn step(params: &mut [Param], halves: &[Half], rate: f32, step: usize) -> Result<f32> {
    let mut grads: Vec<Vec<f32>> = Vec::with_capacity(params.len());
    let mut length = 0f64;
    for (i, param) in params.iter().enumerate() {
        let mut sum = vec![0f32; param.value.len()];
        for (vars, store) in halves {
            if let Some(grad) = vars.get(i).and_then(|var| store.get(var.as_tensor())) {
                let grad: Vec<f32> = grad.flatten_all()?.to_vec1()?;
                sum.iter_mut().zip(&grad).for_each(|(s, g)| *s += g);
            }
        }
        length += sum.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        grads.push(sum);
    }
    let length = length.sqrt() as f32;
    let clip = if length > CLIP { CLIP / length } else { 1.0 };
    let power = i32::try_from(step + 1).unwrap_or(i32::MAX);
    let (mean_fix, square_fix) = (1.0 - BETA_MEAN.powi(power), 1.0 - BETA_SQUARE.powi(power));
    for (param, grad) in params.iter_mut().zip(&grads) {
        let decay = if param.shape.len() > 1 { 1.0 - rate * WEIGHT_DECAY } else { 1.0 };
        let moments = param.mean.iter_mut().zip(&mut param.square);
        for ((value, grad), (mean, square)) in param.value.iter_mut().zip(grad).zip(moments) {
            let g = grad * clip;
            *mean = BETA_MEAN * *mean + (1.0 - BETA_MEAN) * g;
            *square = BETA_SQUARE * *square + (1.0 - BETA_SQUARE) * g * g;
            *value = *value * decay - rate * (*mean / mean_fix) / ((*square / square_fix).sqrt() + EPS);
        }
    }
    Ok(length)
}
