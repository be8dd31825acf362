//! Convolution of a band of an image, as a product whose rows are gathered tap by tap.

use std::ops::Range;

use super::isa::Isa;
use super::linear::{Epilogue, Output};
use super::packed::{Packed, Stored};
use super::product::{Rows, product};

/// A band of each of a batch of images, with the rows next to it.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    /// Images.
    pub batch: usize,
    /// Rows of each image in the band.
    pub rows: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// The band, `[batch, rows, width, channels]`.
    pub body: &'a [f32],
    /// The rows above it, `[batch, kernel / 2, width, channels]`; empty where the image ends.
    pub above: &'a [f32],
    /// The rows below it, likewise.
    pub below: &'a [f32],
}

/// The weight of a convolution whose padding is half its kernel.
#[derive(Debug)]
pub struct Conv {
    kernel: usize,
    stride: usize,
    weight: Packed,
}

impl Conv {
    /// Packs a weight `[outputs, inputs, kernel, kernel]` of an odd kernel.
    ///
    /// # Panics
    /// When the weight has another size, or the kernel is even or not square.
    #[must_use]
    pub fn pack(weight: Stored<'_>, shape: [usize; 4], stride: usize) -> Self {
        let [outputs, inputs, kernel, across] = shape;
        assert!(kernel == across && kernel % 2 == 1 && stride > 0, "an odd square kernel");
        let weight = Packed::pack_taps(weight, [outputs, inputs, kernel * kernel]);
        Self { kernel, stride, weight }
    }

    /// The part of it that gives `outputs` from `inputs`; what all inputs give is the sum over them.
    ///
    /// # Panics
    /// When it has no such channels.
    #[must_use]
    pub fn part(&self, outputs: Range<usize>, inputs: Range<usize>) -> Self {
        let taps = 0..self.kernel * self.kernel;
        let all = self.inputs();
        let depth: Vec<_> =
            taps.map(|tap| tap * all + inputs.start..tap * all + inputs.end).collect();
        Self { weight: self.weight.part(&[outputs], &depth), ..*self }
    }

    /// Channels of the result.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.outputs()
    }

    /// Channels of the image.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.weight.depth() / (self.kernel * self.kernel)
    }

    /// Rows needed from above and from below.
    #[must_use]
    pub fn padding(&self) -> usize {
        self.kernel / 2
    }

    /// Output rows (or columns) of an image of `length` of them.
    #[must_use]
    pub fn output_length(&self, length: usize) -> usize {
        length.div_ceil(self.stride)
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }
}

/// Convolves a band: `out` is `[batch, rows / stride, width / stride, outputs]`, rounded up.
/// Beyond the sides of the image are zeros, above and below it the rows that the band brings.
///
/// With a stride, output row `i` is centred on the band's row `i * stride`.
///
/// # Panics
/// When a slice is not as long as the weight and the band make it.
pub fn conv2d(isa: Isa, out: &mut [f32], x: &Band<'_>, w: &Conv, epilogue: &Epilogue<'_>) {
    let pixels = x.batch * x.width * x.channels;
    assert_eq!(x.channels, w.inputs(), "the channels of the weight");
    assert_eq!(x.body.len(), x.rows * pixels, "a band of {} rows", x.rows);
    for halo in [x.above, x.below] {
        let rows = w.padding();
        assert!(halo.is_empty() || halo.len() == rows * pixels, "{rows} rows, or none, beside it");
    }
    let zeros = vec![0.0; x.channels];
    let taps = Taps { band: x, kernel: w.kernel, stride: w.stride, zeros: &zeros };
    product(isa, &taps, &w.weight, &Output::new(out, taps.count(), &w.weight, epilogue));
}

/// The rows of the product: one for each output pixel, a stretch of it for each tap.
struct Taps<'a> {
    band: &'a Band<'a>,
    kernel: usize,
    stride: usize,
    zeros: &'a [f32],
}

impl Taps<'_> {
    fn output(&self) -> [usize; 2] {
        [self.band.rows.div_ceil(self.stride), self.band.width.div_ceil(self.stride)]
    }

    /// A pixel of the band or next to it; `row` counts from the first row above the band.
    fn pixel(&self, image: usize, row: usize, column: usize) -> &[f32] {
        let Band { rows, width, channels, .. } = *self.band;
        let padding = self.kernel / 2;
        let (part, height, row) = if row < padding {
            (self.band.above, padding, row)
        } else if row < padding + rows {
            (self.band.body, rows, row - padding)
        } else {
            (self.band.below, padding, row - padding - rows)
        };
        let at = ((image * height + row) * width + column) * channels;
        if part.is_empty() { self.zeros } else { &part[at..][..channels] }
    }
}

impl Rows for Taps<'_> {
    fn count(&self) -> usize {
        let [rows, width] = self.output();
        self.band.batch * rows * width
    }

    fn stretch(&self) -> usize {
        self.band.channels
    }

    fn part(&self, row: usize, tap: usize) -> &[f32] {
        let [rows, width] = self.output();
        let (image, row, column) = (row / width / rows, row / width % rows, row % width);
        // The column counts from the first one of the padding.
        let column = column * self.stride + tap % self.kernel;
        let padding = self.kernel / 2;
        if column < padding || column >= padding + self.band.width {
            return self.zeros;
        }
        self.pixel(image, row * self.stride + tap / self.kernel, column - padding)
    }
}
