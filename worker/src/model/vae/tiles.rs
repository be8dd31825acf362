//! Decoding an image tile by tile, in memory that does not grow with the image.
//!
//! The first half of the decoder, at the latent's resolution, is computed as ever: it is small, and
//! has the attention. The second half, where one activation may take gigabytes, sees a tile at a time
//! with enough around it that no convolution misses anything; only group norms, whose statistics are
//! of the whole image, need help. They get the statistics of the image in small, decoded first. So
//! tiles fit each other to rounding, and what differs from the exact decode does so evenly.

use super::VaeDecoder;
use super::config::VaeConfig;
use crate::kernels::Arena;
use crate::model::Result;
use crate::model::exchange::{Dense, Exchange, Halo, Moments, Rows};
use crate::model::tensor::{Memory, Tensor};
use crate::profile::Work;
use protocol::Site;
use std::collections::BTreeMap;
use std::ops::Range;

/// Latent rows and columns of a tile, and of the image in small.
pub(super) const TILE: usize = 64;

impl VaeConfig {
    /// How many latent rows beyond its own an image row depends on in the second half of the decoder.
    fn reach(&self) -> usize {
        // In rows of the image: a convolution reaches one row at its resolution.
        let convolutions = 2 * (self.layers_per_block + 1);
        let of_block = |block: usize| {
            let rows = self.factor() >> block;
            let upsampler = if rows > 1 { rows / 2 } else { 0 };
            convolutions * rows + upsampler
        };
        let rows: usize = (0..self.block_channels.len()).map(of_block).sum();
        (rows + 1).div_ceil(self.factor())
    }
}

impl VaeDecoder {
    /// As [`Self::decode`], tile by tile: `latent` is the band whose first row is `top`.
    ///
    /// # Errors
    /// If a peer is lost, or `latent` is not a tensor of a band's shape.
    pub fn decode_in_tiles(
        &self,
        latent: &Tensor,
        top: usize,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor> {
        let middle = self.to_middle(latent, exchange)?;
        let [_, rows, columns, channels] = middle.sizes()?;
        let tokens = middle.reshape([1, rows * columns, channels])?;
        let whole = Rows::joined(&exchange.gather(self.middle, &tokens)?, &tokens)?;
        let whole = whole.reshape([1, whole.dim(1)? / columns, columns, channels])?;
        let mut small = Statistics::default();
        self.to_image(in_small(&whole)?, &mut small)?;
        self.tiles(&whole, top..top + rows, small)
    }

    /// The image of some rows of `whole`, which the first half gave.
    fn tiles(&self, whole: &Tensor, rows: Range<usize>, small: Statistics) -> Result<Tensor> {
        let [_, height, width, _] = whole.sizes()?;
        let (factor, reach) = (self.config.factor(), self.config.reach());
        let mut known = Known(small);
        // Put together in the host's memory, which does not limit it as a device's does.
        let arena = match whole.memory() {
            Memory::Host(arena) => arena,
            Memory::Device(_) => Arena::default(),
        };
        let mut image = arena.take(rows.len() * width * factor * factor * 3);
        for top in rows.clone().step_by(TILE) {
            for left in (0..width).step_by(TILE) {
                let (down, across) = (top..rows.end.min(top + TILE), left..width.min(left + TILE));
                let [around, beside] = [(&down, height), (&across, width)]
                    .map(|(own, all)| own.start.saturating_sub(reach)..all.min(own.end + reach));
                let x = whole.narrow(1, around.start, around.len())?;
                let x = x.narrow(2, beside.start, beside.len())?;
                let tile = self.to_image(x, &mut known)?;
                if tile.is_planned() {
                    continue;
                }
                let (tile, tile_row) = (tile.to_host()?, beside.len() * factor * 3);
                for row in 0..down.len() * factor {
                    let from = ((down.start - around.start) * factor + row) * tile_row
                        + (across.start - beside.start) * factor * 3;
                    let to = ((down.start - rows.start) * factor + row) * width * factor * 3
                        + across.start * factor * 3;
                    let len = across.len() * factor * 3;
                    image[to..to + len].copy_from_slice(&tile[from..from + len]);
                }
            }
        }
        Tensor::of(image, [1, rows.len() * factor, width * factor, 3])
    }
}

/// `x` [1, rows, columns, channels] with no more than a tile's rows and columns: every n-th of either.
fn in_small(x: &Tensor) -> Result<Tensor> {
    let [_, rows, columns, channels] = x.sizes()?;
    let apart = rows.max(columns).div_ceil(TILE);
    let every = |count: usize| (apart / 2..count).step_by(apart);
    let values = x.to_host()?;
    x.make_on_host(
        Work::Copy,
        [1, every(rows).count(), every(columns).count(), channels],
        |small| {
            let pixels =
                every(rows).flat_map(|row| every(columns).map(move |column| (row, column)));
            for ((row, column), small) in pixels.zip(small.chunks_exact_mut(channels)) {
                small.copy_from_slice(&values[(row * columns + column) * channels..][..channels]);
            }
            Ok(())
        },
    )
}

/// Takes down the statistics of a whole, if small, image.
#[derive(Debug, Default)]
struct Statistics(BTreeMap<Site, Moments>);

impl Exchange for Statistics {
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        Dense.halo(site, x, rows)
    }

    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments> {
        self.0.insert(site, own.clone());
        Ok(own.clone())
    }

    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>> {
        Dense.gather(site, own)
    }
}

/// Answers with statistics taken down before; beyond a tile's edges lies what its caller cuts off.
#[derive(Debug)]
struct Known(Statistics);

impl Exchange for Known {
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        Dense.halo(site, x, rows)
    }

    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments> {
        Ok(self.0.0.get(&site).unwrap_or(own).clone())
    }

    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>> {
        Dense.gather(site, own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::Checkpoint;
    use crate::model::files::ModelFiles;
    use protocol::job::Dtype;

    fn checkpoint() -> Checkpoint {
        Checkpoint::load(&ModelFiles::Builtin, Dtype::Auto).unwrap()
    }

    /// Values that vary smoothly over the image, and differ between channels.
    #[expect(clippy::cast_precision_loss, reason = "coordinates are small")]
    fn waves(rows: usize, columns: usize, channels: usize) -> Tensor {
        let values = (0..rows * columns * channels).map(|at| {
            let (pixel, channel) = (at / channels, (at % channels) as f32);
            let (row, column) = ((pixel / columns) as f32, (pixel % columns) as f32);
            (row * 0.11 + channel).sin() + (column * 0.07 - channel * 0.5).cos()
        });
        let values: Vec<f32> = values.collect();
        Tensor::new(&Memory::default(), &values, [1, rows, columns, channels]).unwrap()
    }

    #[test]
    fn an_image_no_larger_than_a_tile_is_exact() {
        let checkpoint = checkpoint();
        let vae = checkpoint.vae();
        let latent = waves(TILE, 40, vae.config().latent_channels);
        let whole = vae.decode(&latent, &mut Dense).unwrap();
        let tiled = vae.decode_in_tiles(&latent, 0, &mut Dense).unwrap();
        assert_eq!(whole.view(), tiled.view());
    }

    /// With the same statistics, what is decoded in tiles is what is decoded at once: the tiles reach
    /// as far around them as convolutions do, and leave no seam.
    #[test]
    fn tiles_fit_each_other() {
        let checkpoint = checkpoint();
        let vae = checkpoint.vae();
        let middle = vae.to_middle(&waves(70, 90, vae.config().latent_channels), &mut Dense);
        let middle = middle.unwrap();
        let statistics = || {
            let mut small = Statistics::default();
            vae.to_image(in_small(&middle).unwrap(), &mut small).unwrap();
            small
        };
        let at_once = vae.to_image(middle.clone(), &mut Known(statistics())).unwrap();
        let tiled = vae.tiles(&middle, 0..70, statistics()).unwrap();
        let apart = at_once.view().iter().zip(tiled.view()).map(|(one, other)| (one - other).abs());
        let largest = apart.fold(0.0, f32::max);
        assert!(largest < 1e-4, "the tiles differ by {largest}");
    }

    #[test]
    fn the_image_in_small_is_every_nth_pixel() {
        let small = in_small(&waves(130, 65, 2)).unwrap();
        assert_eq!(small.dims(), [1, 43, 22, 2]);
        let small = in_small(&waves(20, TILE, 3)).unwrap();
        assert_eq!(small.view(), waves(20, TILE, 3).view());
    }
}
