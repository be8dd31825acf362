//! The latent after every model call, as safetensors.

use super::{WriteError, write_whole};
use bytes::Bytes;
use protocol::plan::Geometry;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;

/// Latents, collected call by call.
#[derive(Clone, Debug, Default)]
pub struct Latents {
    calls: usize,
    values: Vec<u8>,
}

impl Latents {
    /// Adds the latent [channels, rows, columns] after one more call, f32.
    pub fn push(&mut self, latent: &Bytes) {
        self.calls += 1;
        self.values.extend_from_slice(latent);
    }

    /// Writes them to `path` under the key `latents`, f32 [calls, channels, rows, columns].
    ///
    /// # Errors
    /// If the file cannot be written, or a latent was not of the shape of `geometry`.
    pub fn write(&self, path: &Path, geometry: &Geometry) -> Result<(), WriteError> {
        let size = |value| usize::try_from(value).unwrap_or(usize::MAX);
        let [channels, rows, columns] =
            [geometry.channels, geometry.rows, geometry.columns].map(size);
        let shape = vec![self.calls, channels, rows, columns];
        let view = TensorView::new(Dtype::F32, shape, &self.values)
            .map_err(|error| WriteError::new(path, &error))?;
        let bytes = safetensors::serialize([("latents", view)], None)
            .map_err(|error| WriteError::new(path, &error))?;
        write_whole(path, |out| out.write_all(&bytes))
    }
}
