//! A band's latent as the sampler, the network, the seed and the wire have it.

use crate::model::Result;
use crate::model::noise::TorchGenerator;
use crate::model::tensor::{Memory, Tensor};
use bytes::Bytes;
use candle_core::Device;
use protocol::plan::{Band, Geometry};

/// What samplers compute with, on the host: [1, rows, columns, channels].
pub(super) type Latent = candle_core::Tensor;

/// A band [1, rows, columns, channels] of the whole image's noise: every rank draws all of it, so
/// that the seed gives the same image on any number of ranks.
pub(super) fn band_noise(
    generator: &mut TorchGenerator,
    geometry: Geometry,
    band: Band,
) -> Result<Latent> {
    let [all, columns, channels] =
        [geometry.rows, geometry.columns, geometry.channels].map(to_usize);
    let (top, rows) = (to_usize(band.top), to_usize(band.rows));
    let noise = generator.randn(channels * all * columns);
    let mut out = Vec::with_capacity(rows * columns * channels);
    for pixel in top * columns..(top + rows) * columns {
        out.extend((0..channels).map(|channel| noise[channel * all * columns + pixel]));
    }
    Ok(Latent::from_vec(out, (1, rows, columns, channels), &Device::Cpu)?)
}

/// The rows `band` of `x` [1, rows, columns, channels], on the host.
pub(super) fn band_of(x: &Tensor, band: Band) -> Result<Latent> {
    let whole = Latent::from_slice(&x.to_host()?, x.dims(), &Device::Cpu)?;
    Ok(whole.narrow(1, to_usize(band.top), to_usize(band.rows))?.contiguous()?)
}

/// What the network reads of a sampler's `x`.
pub(super) fn activation(memory: &Memory, x: &Latent) -> Result<Tensor> {
    let (batch, rows, columns, channels) = x.dims4()?;
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    Tensor::new(memory, &values, [batch, rows, columns, channels])
}

/// What the sampler reads of the network's `x`.
pub(super) fn latent(x: &Tensor) -> Result<Latent> {
    Ok(Latent::from_slice(x.view(), x.dims(), &Device::Cpu)?)
}

/// `x` [1, rows, columns, channels] as little-endian f32 [channels, rows, columns].
pub(super) fn channels_first_bytes(x: &Latent) -> Result<Bytes> {
    let channels_first = x.squeeze(0)?.permute((2, 0, 1))?.flatten_all()?;
    let values = channels_first.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The latent and the `history` tensors after it, each [1, rows, columns, channels], of little-endian f32 [1 +
/// history, channels, band rows, columns].
pub(super) fn latents(
    planes: &Bytes,
    history: u8,
    geometry: Geometry,
    band: Band,
) -> std::result::Result<Vec<Latent>, String> {
    let [rows, columns, channels] = [band.rows, geometry.columns, geometry.channels].map(to_usize);
    let bytes = channels * rows * columns * size_of::<f32>();
    let tensors = 1 + usize::from(history);
    if planes.len() != tensors * bytes {
        let got = planes.len();
        return Err(format!("the checkpoint has {got} bytes instead of {tensors} times {bytes}"));
    }
    let tensor = |planes: &[u8]| {
        let values = planes.chunks_exact(size_of::<f32>());
        let values =
            values.map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]));
        Latent::from_vec(values.collect(), (channels, rows, columns), &Device::Cpu)?
            .permute((1, 2, 0))?
            .contiguous()?
            .unsqueeze(0)
    };
    let tensors: candle_core::Result<Vec<Latent>> =
        planes.chunks_exact(bytes).map(tensor).collect();
    tensors.map_err(|error| error.to_string())
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_what_is_gone_on_with() {
        let geometry = Geometry { rows: 8, columns: 3, channels: 4, row_unit: 1, vae_factor: 8 };
        let band = Band { top: 2, rows: 5 };
        let mut generator = TorchGenerator::new(3);
        let tensors = [1, 2, 3].map(|_| band_noise(&mut generator, geometry, band).unwrap());
        let bytes: Bytes =
            tensors.iter().flat_map(|tensor| channels_first_bytes(tensor).unwrap()).collect();
        let read = latents(&bytes, 2, geometry, band).unwrap();
        for (read, tensor) in read.iter().zip(&tensors) {
            let values = |x: &Latent| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!((read.dims(), values(read)), (tensor.dims(), values(tensor)));
        }
        let fault = latents(&bytes, 1, geometry, band).unwrap_err();
        assert!(fault.contains("720 bytes instead of 2 times 240"), "{fault}");
    }
}
