//! How a latent is shown before it is decoded.

use serde::{Deserialize, Serialize};

/// The linear map from a latent pixel to a colour that comes closest to a model's decoder: a picture of the
/// latent's size costs a few multiplications a pixel, and no worker's time.
///
/// Colours are red, green and blue, as in an image, from 0 to 1; what the map gives may lie beyond.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreviewMap {
    /// What one unit of each latent channel adds.
    pub weights: Vec<[f32; 3]>,
    /// The colour of a latent that is zero.
    pub offset: [f32; 3],
}

/// Why a map is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreviewError {
    /// It is of another number of channels than the latent.
    #[error("its preview map has {got} channels, its latent {wanted}")]
    Channels {
        /// Those of the map.
        got: usize,
        /// Those of the latent.
        wanted: u32,
    },
    /// A number of it is infinite, or none.
    #[error("its preview map has `{value}` {place}: all must be finite numbers")]
    NotFinite {
        /// The number.
        value: String,
        /// Where.
        place: String,
    },
}

impl PreviewMap {
    /// Checks that it is a map of latents of so many channels, and of finite numbers.
    ///
    /// # Errors
    /// What is wrong, with the numbers.
    pub fn check(&self, channels: u32) -> Result<(), PreviewError> {
        if u32::try_from(self.weights.len()) != Ok(channels) {
            return Err(PreviewError::Channels { got: self.weights.len(), wanted: channels });
        }
        let finite = |colour: &[f32; 3], place: &dyn Fn() -> String| {
            colour.iter().find(|value| !value.is_finite()).map_or(Ok(()), |value| {
                Err(PreviewError::NotFinite { value: value.to_string(), place: place() })
            })
        };
        finite(&self.offset, &|| "in its offset".to_owned())?;
        self.weights
            .iter()
            .enumerate()
            .try_for_each(|(index, colour)| finite(colour, &|| format!("at channel {index}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_map_of_the_latent_is_said() {
        let map = PreviewMap { weights: vec![[0.1, 0.2, 0.3]; 4], offset: [0.5; 3] };
        assert_eq!(map.check(4), Ok(()));
        for channels in [0, 3, 5, u32::MAX] {
            let error = map.check(channels).expect_err("another number of channels");
            assert!(error.to_string().contains(&format!("4 channels, its latent {channels}")));
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut wrong = map.clone();
            wrong.weights[2][1] = value;
            let error = wrong.check(4).expect_err("not a number to compute with").to_string();
            assert!(
                error.contains("at channel 2") && error.contains(&value.to_string()),
                "{error}"
            );
            let wrong = PreviewMap { offset: [0.0, value, 0.0], ..map.clone() };
            let error = wrong.check(4).expect_err("not a number to compute with").to_string();
            assert!(error.contains("in its offset"), "{error}");
        }
    }
}
