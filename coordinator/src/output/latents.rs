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
    calls: Vec<Bytes>,
}

impl Latents {
    /// Adds the latent [channels, rows, columns] after `calls` calls, f32. A call that was done again takes the
    /// place of what it gave before.
    pub fn put(&mut self, calls: usize, latent: Bytes) {
        self.calls.resize(self.calls.len().max(calls), Bytes::new());
        if let Some(place) = calls.checked_sub(1).and_then(|call| self.calls.get_mut(call)) {
            *place = latent;
        }
    }

    /// Writes them to `path` under the key `latents`, f32 [calls, channels, rows, columns].
    ///
    /// # Errors
    /// If the file cannot be written, or a latent was not of the shape of `geometry`.
    pub fn write(&self, path: &Path, geometry: &Geometry) -> Result<(), WriteError> {
        let size = |value| usize::try_from(value).unwrap_or(usize::MAX);
        let [channels, rows, columns] =
            [geometry.channels, geometry.rows, geometry.columns].map(size);
        if let Some(missing) = self.calls.iter().position(Bytes::is_empty) {
            let cause = format!(
                "the latent after call {missing} was never heard of, as the coordinator was away"
            );
            return Err(WriteError::new(path, &cause));
        }
        let shape = vec![self.calls.len(), channels, rows, columns];
        let values = self.calls.concat();
        let view = TensorView::new(Dtype::F32, shape, &values)
            .map_err(|error| WriteError::new(path, &error))?;
        let bytes = safetensors::serialize([("latents", view)], None)
            .map_err(|error| WriteError::new(path, &error))?;
        write_whole(path, |out| out.write_all(&bytes))
    }
}
