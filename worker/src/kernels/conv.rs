//! Convolution of a band of an image, as a product whose rows are gathered tap by tap.

use std::ops::Range;

use super::isa::Isa;
use super::linear::{Epilogue, Output};
use super::packed::{Arithmetic, Packed, Stored};
use super::product::{Rows, product};
use super::winograd;

/// A band of each of a batch of images, with the rows next to it.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    /// Images.
    pub batch: usize,
    /// Rows of each image in the band.
    pub rows: usize,
    /// The image's row that the band begins with. Winograd's tiles are counted from the image's
    /// first row, so that a band has the whole image's tiles.
    pub first_row: usize,
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
    method: Method,
    arithmetic: Arithmetic,
    weight: Packed,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// As the sum it is.
    #[default]
    Direct,
    /// By Winograd's filtering, F(2x2, 3x3): 4/9 of the multiplications, and as exact.
    Winograd2,
    /// By F(4x4, 3x3): 1/4 of the multiplications, and about ten times the rounding error.
    Winograd4,
    /// By F(4x4) where a band has tiles enough to pay for its larger weights, by F(2x2) elsewhere.
    WinogradBySize,
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
        Self { kernel, stride, method: Method::Direct, arithmetic: Arithmetic::F32, weight }
    }

    /// The same, computed another way.
    ///
    /// # Panics
    /// When it cannot be: Winograd's ways are for 3x3 kernels with stride 1.
    #[must_use]
    pub fn by(self, method: Method) -> Self {
        assert!(method == Method::Direct || (self.kernel, self.stride) == (3, 1), "3x3, stride 1");
        Self { method, ..self }
    }

    /// The same, in other numbers where there are such kernels: F(2x2) of an even number of channels, in
    /// bfloat16.
    #[must_use]
    pub fn in_numbers(self, arithmetic: Arithmetic) -> Self {
        let pairs = self.method == Method::Winograd2 && self.inputs().is_multiple_of(2);
        let has = arithmetic == Arithmetic::Bf16 && pairs;
        Self { arithmetic: if has { arithmetic } else { Arithmetic::F32 }, ..self }
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
        let part = Self { weight: self.weight.part(&[outputs], &depth), ..*self };
        part.in_numbers(self.arithmetic)
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
    let pixels = Pixels { band: x, padding: w.padding(), zeros: &zeros };
    let taps = Taps { pixels, kernel: w.kernel, stride: w.stride };
    let out = Output::new(out, taps.count(), &w.weight, epilogue);
    match w.method {
        Method::Direct => product(isa, &taps, &w.weight, &out),
        Method::Winograd2 => winograd::by_two(isa, &pixels, &w.weight, w.arithmetic, &out),
        Method::Winograd4 => winograd::by_four(isa, &pixels, &w.weight, &out),
        Method::WinogradBySize if winograd::is_large(x) => {
            winograd::by_four(isa, &pixels, &w.weight, &out);
        }
        Method::WinogradBySize => winograd::by_two(isa, &pixels, &w.weight, Arithmetic::F32, &out),
    }
}

/// A band's pixels with its padding, by place.
#[derive(Clone, Copy)]
pub(super) struct Pixels<'a> {
    pub(super) band: &'a Band<'a>,
    padding: usize,
    zeros: &'a [f32],
}

impl<'a> Pixels<'a> {
    /// The values at a place, counted from the first row and column of the padding; zeros where
    /// there is no pixel.
    #[inline(always)]
    pub(super) fn at(&self, image: usize, row: usize, column: usize) -> &'a [f32] {
        let Band { rows, width, channels, above, body, below, .. } = *self.band;
        let padding = self.padding;
        let (part, height, row) = if row < padding {
            (above, padding, row)
        } else if row < padding + rows {
            (body, rows, row - padding)
        } else {
            (below, padding, row - padding - rows)
        };
        if part.is_empty() || row >= height || column < padding || column >= padding + width {
            return self.zeros;
        }
        &part[((image * height + row) * width + column - padding) * channels..][..channels]
    }
}

/// The rows of the product: one for each output pixel, a stretch of it for each tap.
struct Taps<'a> {
    pixels: Pixels<'a>,
    kernel: usize,
    stride: usize,
}

impl Taps<'_> {
    fn output(&self) -> [usize; 2] {
        let Band { rows, width, .. } = *self.pixels.band;
        [rows.div_ceil(self.stride), width.div_ceil(self.stride)]
    }
}

impl Rows for Taps<'_> {
    fn count(&self) -> usize {
        let [rows, width] = self.output();
        self.pixels.band.batch * rows * width
    }

    fn stretch(&self) -> usize {
        self.pixels.band.channels
    }

    #[inline(always)]
    fn part(&self, row: usize, tap: usize) -> &[f32] {
        let [rows, width] = self.output();
        let (image, row, column) = (row / width / rows, row / width % rows, row % width);
        let [row, column] = [row, column].map(|place| place * self.stride);
        self.pixels.at(image, row + tap / self.kernel, column + tap % self.kernel)
    }
}
