//! Classifier-free guidance.

use crate::model::Result;
use crate::model::tensor::Tensor;
use crate::profile::Work;

/// The guided prediction from a batch of two: the negative's, then the prompt's. A batch of one is
/// returned as it is.
///
/// # Errors
/// If the batch has neither one nor two predictions.
pub fn guide(prediction: &Tensor, scale: f32) -> Result<Tensor> {
    if prediction.dim(0)? == 1 {
        return Ok(prediction.clone());
    }
    let (negative, prompt) = (prediction.narrow(0, 0, 1)?, prediction.narrow(0, 1, 1)?);
    negative.make(Work::Pointwise, negative.shape(), |out| {
        for ((out, negative), prompt) in out.iter_mut().zip(negative.view()).zip(prompt.view()) {
            *out = negative + (prompt - negative) * scale;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tensor::Memory;

    #[test]
    fn scale_one_is_the_prompt_and_zero_the_negative() {
        let batch = Tensor::new(&Memory::default(), &[1.0, 2.0, 3.0, 5.0], [2, 2]).unwrap();
        let guided = |scale| guide(&batch, scale).unwrap().view().to_vec();
        assert_eq!(guided(1.0), [3.0, 5.0]);
        assert_eq!(guided(0.0), [1.0, 2.0]);
        assert_eq!(guided(5.0), [11.0, 17.0]);
    }
}
