//! The shape of a UNet, and the count of its work.

use super::ModelWork;

/// Tokens of the prompt that attention reads: what CLIP's encoders give.
const TEXT_TOKENS: u64 = 77;
/// Width of a transformer's feed-forward part over that of its tokens; its gate doubles the first layer.
const FEED_FORWARD: u64 = 4;

/// What a configuration says of a UNet, as far as its work follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UNetShape<'a> {
    /// Channels of the latent.
    pub latent_channels: u32,
    /// Channels of each resolution, from the latent's down.
    pub block_channels: &'a [u32],
    /// Which blocks on the way down have attention.
    pub down_attention: &'a [bool],
    /// Which blocks on the way up have attention, from the lowest resolution.
    pub up_attention: &'a [bool],
    /// Transformer blocks per attention, for each resolution.
    pub transformer_layers: &'a [u32],
    /// Residual blocks per resolution.
    pub layers_per_block: u32,
    /// Channels of the text embeddings.
    pub text_channels: u32,
    /// Normalisation groups of a layer.
    pub norm_groups: u32,
    /// Channels of the timestep's sinusoid.
    pub time_channels: u32,
    /// Width of SDXL's embedding of sizes and pooled text.
    pub added_channels: Option<u32>,
}

impl UNetShape<'_> {
    /// The work of one prediction, block by block as a call runs them.
    #[must_use]
    pub fn work(&self) -> ModelWork {
        let Some(first) = self.block_channels.first().copied().map(u64::from) else {
            return ModelWork::default();
        };
        let lowest = self.block_channels.len() - 1;
        let work = ModelWork { cell: 1 << lowest, ..ModelWork::default() };
        let mut count = Count { shape: self, work, x: first, skips: Vec::new(), held: 0 };
        count.embeddings(first);
        count.products(first * 9 * u64::from(self.latent_channels), 0);
        count.keep(0);
        for level in 0..=lowest {
            count.down(level);
        }
        count.residual(count.x, self.channels(lowest), lowest);
        count.transformer(lowest);
        count.residual(count.x, self.channels(lowest), lowest);
        for level in (0..=lowest).rev() {
            count.up(level);
        }
        count.norm();
        count.convolution([first, u64::from(self.latent_channels)], 0, 0);
        count.work
    }

    fn channels(&self, level: usize) -> u64 {
        self.block_channels.get(level).copied().map_or(0, u64::from)
    }
}

/// The count so far, and where in the network it stands.
struct Count<'a> {
    shape: &'a UNetShape<'a>,
    work: ModelWork,
    /// Channels of what the next layer reads.
    x: u64,
    /// Channels and level of what was kept for the way up.
    skips: Vec<(u64, usize)>,
    /// Values per cell of what is kept.
    held: u64,
}

impl Count<'_> {
    /// Pixels of a cell at a level.
    fn area(&self, level: usize) -> u64 {
        let side = u64::from(self.work.cell) >> level;
        side * side
    }

    /// `each` multiplications with their additions for every pixel of a level.
    fn products(&mut self, each: u64, level: usize) {
        self.work.cell_flop += 2 * each * self.area(level);
    }

    /// The time embedding's two linear layers; SDXL's sizes and pooled text pass two more.
    fn embeddings(&mut self, first: u64) {
        let width = 4 * first;
        let inputs = [Some(self.shape.time_channels), self.shape.added_channels];
        let each = inputs.into_iter().flatten().map(|inputs| width * (u64::from(inputs) + width));
        self.work.fixed_flop += 2 * each.sum::<u64>();
    }

    /// A 3x3 convolution whose input is at one level and whose output is at another.
    fn convolution(&mut self, [inputs, outputs]: [u64; 2], from: usize, to: usize) {
        self.products(9 * inputs * outputs, to);
        self.work.edge_values += inputs * (u64::from(self.work.cell) >> from);
        self.work.sites += 1;
    }

    fn norm(&mut self) {
        self.work.groups += u64::from(self.shape.norm_groups);
        self.work.sites += 1;
    }

    fn residual(&mut self, inputs: u64, outputs: u64, level: usize) {
        self.norm();
        self.convolution([inputs, outputs], level, level);
        self.work.fixed_flop += 2 * 4 * self.shape.channels(0) * outputs;
        self.norm();
        self.convolution([outputs, outputs], level, level);
        if inputs != outputs {
            self.products(inputs * outputs, level);
        }
        // The input, that normalised, and the first convolution's output are there at once.
        let widest = self.held + (2 * inputs + outputs) * self.area(level);
        self.work.held_values = self.work.held_values.max(widest);
        self.x = outputs;
    }

    fn transformer(&mut self, level: usize) {
        let (channels, area) = (self.x, self.area(level));
        let layers = self.shape.transformer_layers.get(level).copied().map_or(0, u64::from);
        let square = channels * channels;
        self.norm();
        self.products(2 * square, level);
        // Four projections over the image, two over the prompt, and the gated feed-forward part.
        self.products(layers * (4 + 2 + 3 * FEED_FORWARD) * square, level);
        let text = 2 * u64::from(self.shape.text_channels) * channels * TEXT_TOKENS;
        self.work.text_flop += 2 * layers * text;
        self.work.cross_flop += 4 * layers * channels * TEXT_TOKENS * area;
        self.work.pair_flop += 4 * layers * channels * area * area;
        self.work.cell_values += 2 * layers * channels * area;
        self.work.sites += u32::try_from(layers).unwrap_or(u32::MAX);
    }

    /// Keeps what the last layer gave for the way up.
    fn keep(&mut self, level: usize) {
        self.skips.push((self.x, level));
        self.held += self.x * self.area(level);
    }

    fn down(&mut self, level: usize) {
        let shape = self.shape;
        for _ in 0..shape.layers_per_block {
            self.residual(self.x, shape.channels(level), level);
            if shape.down_attention.get(level) == Some(&true) {
                self.transformer(level);
            }
            self.keep(level);
        }
        if level + 1 < shape.block_channels.len() {
            self.convolution([self.x; 2], level, level + 1);
            self.keep(level + 1);
        }
    }

    fn up(&mut self, level: usize) {
        let shape = self.shape;
        for _ in 0..=shape.layers_per_block {
            let (skip, at) = self.skips.pop().unwrap_or((0, level));
            self.held -= skip * self.area(at);
            self.residual(self.x + skip, shape.channels(level), level);
            if shape.up_attention.iter().rev().nth(level) == Some(&true) {
                self.transformer(level);
            }
        }
        if level > 0 {
            self.convolution([self.x; 2], level - 1, level - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SDXL: UNetShape<'_> = UNetShape {
        latent_channels: 4,
        block_channels: &[320, 640, 1280],
        down_attention: &[false, true, true],
        up_attention: &[true, true, false],
        transformer_layers: &[1, 2, 10],
        layers_per_block: 2,
        text_channels: 2048,
        norm_groups: 32,
        time_channels: 320,
        added_channels: Some(2816),
    };

    #[test]
    fn sdxl_has_the_exchange_points_and_the_work_that_it_is_known_for() {
        let work = SDXL.work();
        // 39 convolutions, 46 norms, 70 attentions.
        assert_eq!((work.cell, work.sites, work.groups), (4, 155, 46 * 32));
        for (side, tera, of_attention) in
            [(1024, 13.52, 1.57), (2048, 71.81, 24.3), (3840, 464.9, 298.0)]
        {
            let cells = work.cells(side / 8, side / 8);
            // The first call of an image, of two predictions.
            let text = f64::from(u32::try_from(work.text_flop / 1000).unwrap()) * 1e3;
            let all = 2e-12 * (work.flop(cells, cells) + text);
            let attention = 2e-12 * work.attention_flop(cells, cells);
            assert!((all / tera - 1.0).abs() < 0.001, "{side}: {all}");
            assert!((attention / of_attention - 1.0).abs() < 0.002, "{side}: {attention}");
        }
    }

    #[test]
    fn bands_share_the_work_of_the_image() {
        let work = SDXL.work();
        let fixed = work.flop(0.0, 1024.0);
        let bands: f64 = [256.0, 512.0, 256.0].iter().map(|own| work.flop(*own, 1024.0)).sum();
        let whole = work.flop(1024.0, 1024.0) + 2.0 * fixed;
        assert!((bands / whole - 1.0).abs() < 1e-12, "{bands} of {whole}");
    }

    #[test]
    fn a_shape_without_blocks_has_no_work() {
        let none = UNetShape { block_channels: &[], ..SDXL };
        assert_eq!(none.work(), ModelWork::default());
    }
}
