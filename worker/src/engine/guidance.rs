//! Classifier-free guidance.

use crate::model::Result;
use candle_core::Tensor;

/// The guided prediction from a batch of two: the negative's, then the prompt's. A batch of one is
/// returned as it is.
///
/// # Errors
/// If the batch has neither one nor two predictions.
pub fn guide(prediction: &Tensor, scale: f32) -> Result<Tensor> {
    if prediction.dim(0)? == 1 {
        return Ok(prediction.clone());
    }
    let negative = prediction.narrow(0, 0, 1)?;
    let towards = (prediction.narrow(0, 1, 1)? - &negative)?;
    Ok((negative + (towards * f64::from(scale))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn scale_one_is_the_prompt_and_zero_the_negative() {
        let batch = Tensor::new(&[[1.0_f32, 2.0], [3.0, 5.0]], &Device::Cpu).unwrap();
        let guided = |scale| guide(&batch, scale).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(guided(1.0), [[3.0, 5.0]]);
        assert_eq!(guided(0.0), [[1.0, 2.0]]);
        assert_eq!(guided(5.0), [[11.0, 17.0]]);
    }
}
