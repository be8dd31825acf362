//! What simulated workers compute in place of a model: a few operations on a few numbers that depend on each other
//! as those of displaced patch parallelism do.
//!
//! A call draws the latent towards a pattern of its own, through rows above and below the band (halos),
//! through the image's mean (moments), and through what the call before predicted (the sampler's
//! history). Old errors shrink by a tenth with each call, so an image that went through a recovery is
//! close to one that did not; but a call that is skipped or made twice, a lost history or rows of another
//! band are much further from it than what is one call old instead of fresh.

use crate::random::mix;
use protocol::plan::{Band, Branch, Plan};

/// What a prediction is conditioned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// The negative prompt.
    Negative,
    /// The prompt.
    Prompt,
}

/// Which texts a rank of this branch predicts for.
#[must_use]
pub fn texts(branch: Branch, guided: bool) -> &'static [Text] {
    match branch {
        Branch::Whole if guided => &[Text::Negative, Text::Prompt],
        Branch::Negative => &[Text::Negative],
        Branch::Whole | Branch::Prompt => &[Text::Prompt],
    }
}

/// An image's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    seed: u64,
    guidance: f32,
    channels: usize,
    columns: usize,
    rows: usize,
    factor: usize,
}

/// Rows of a latent, [channels, rows, columns], and the rows beside them, [channels, columns]: zeros past the
/// image's border.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Which rows they are.
    pub band: Band,
    /// The rows.
    pub values: &'a [f32],
    /// The row above them.
    pub above: Option<&'a [f32]>,
    /// The row below them.
    pub below: Option<&'a [f32]>,
}

impl Sampler {
    /// Of the image that a plan is for.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let geometry = plan.geometry;
        Self {
            seed: plan.spec.seed,
            guidance: plan.spec.guidance,
            channels: size(geometry.channels),
            columns: size(geometry.columns),
            rows: size(geometry.rows),
            factor: size(geometry.vae_factor),
        }
    }

    /// The noise that a band begins as.
    #[must_use]
    pub fn noise(&self, band: Band) -> Vec<f32> {
        self.map(band, |channel, row, column| self.pattern(0, band, (channel, row, column)))
    }

    /// The first half of a prediction, which reads fresh rows of the latent.
    #[must_use]
    pub fn hidden(&self, text: Text, call: u32, latent: Rows<'_>) -> Vec<f32> {
        let key = 2 * (u64::from(call) + 1) + text as u64;
        self.map(latent.band, |channel, row, column| {
            let [above, own, below] = self.column_of(latent, channel, row, column);
            let sum = 0.8 * own + 0.1 * (above + below);
            let sum = sum + 0.3 * self.pattern(key, latent.band, (channel, row, column));
            sum / (1.0 + sum.abs())
        })
    }

    /// The sum of each channel.
    #[must_use]
    pub fn sums(&self, hidden: &[f32]) -> Vec<f32> {
        hidden.chunks(hidden.len() / self.channels).map(|plane| plane.iter().sum()).collect()
    }

    /// The second half, which reads rows and sums that may be one call old.
    #[must_use]
    pub fn predict(&self, text: Text, call: u32, hidden: Rows<'_>, sums: &[f32]) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "a small image")]
        let pixels = (self.rows * self.columns) as f32;
        let key = 1000 + 2 * u64::from(call) + text as u64;
        self.map(hidden.band, |channel, row, column| {
            let [above, own, below] = self.column_of(hidden, channel, row, column);
            let near = 0.2 * own + 0.05 * (above + below);
            let drawn = self.pattern(key, hidden.band, (channel, row, column));
            near - 0.1 * sums[channel] / pixels + 0.8 * drawn
        })
    }

    /// Guidance's two predictions in one.
    #[must_use]
    pub fn guide(&self, negative: &[f32], prompt: &[f32]) -> Vec<f32> {
        let guided =
            |(negative, prompt): (&f32, &f32)| negative + self.guidance * (prompt - negative);
        negative.iter().zip(prompt).map(guided).collect()
    }

    /// The latent after a call, of which the prediction before it is the history.
    pub fn step(&self, latent: &mut [f32], prediction: &[f32], history: Option<&[f32]>) {
        for (at, (value, new)) in latent.iter_mut().zip(prediction).enumerate() {
            let towards = history.map_or(*new, |history| 1.5 * new - 0.5 * history[at]);
            *value = 0.95 * *value - 0.3 * towards;
        }
    }

    /// The pixels of rows of the latent: RGB bytes [rows, width, 3].
    #[must_use]
    pub fn decode(&self, latent: Rows<'_>) -> Vec<u8> {
        let rows = size(latent.band.rows);
        let mut pixels = Vec::with_capacity(rows * self.columns * self.factor * self.factor * 3);
        for row in 0..rows {
            let line: Vec<u8> = (0..self.columns * self.factor)
                .flat_map(|x| [0, 1, 2].map(|channel| (channel, x / self.factor)))
                .map(|(channel, column)| {
                    let [above, own, below] =
                        self.column_of(latent, channel % self.channels, row, column);
                    to_pixel(own + 0.1 * (above + below))
                })
                .collect();
            (0..self.factor).for_each(|_| pixels.extend_from_slice(&line));
        }
        pixels
    }

    /// One row of some, [channels, columns].
    #[must_use]
    pub fn row(&self, values: &[f32], row: usize) -> Vec<f32> {
        let plane = values.len() / self.channels;
        let of_plane = |plane: &[f32]| plane[row * self.columns..(row + 1) * self.columns].to_vec();
        values.chunks(plane).flat_map(of_plane).collect()
    }

    /// The rows that the `part` of a band is, out of those of the band.
    #[must_use]
    pub fn cut(&self, band: Band, values: &[f32], part: Band) -> Vec<f32> {
        let from = size(part.top - band.top) * self.columns;
        let to = from + size(part.rows) * self.columns;
        let plane = size(band.rows) * self.columns;
        values.chunks(plane).flat_map(|plane| plane[from..to].iter().copied()).collect()
    }

    /// Puts the rows of a `part` where they belong in a band.
    pub fn paste(&self, (band, values): (Band, &mut [f32]), part: Band, rows: &[f32]) {
        let from = size(part.top - band.top) * self.columns;
        let plane = size(band.rows) * self.columns;
        let rows = rows.chunks(size(part.rows) * self.columns);
        for (plane, rows) in values.chunks_mut(plane).zip(rows) {
            plane[from..from + rows.len()].copy_from_slice(rows);
        }
    }

    /// As many zeros as a band has values.
    #[must_use]
    pub fn zeros(&self, band: Band) -> Vec<f32> {
        vec![0.0; self.channels * size(band.rows) * self.columns]
    }

    fn map(&self, band: Band, value: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
        let value = &value;
        let rows = move |channel| (0..size(band.rows)).map(move |row| (channel, row));
        let columns =
            |(channel, row)| (0..self.columns).map(move |column| value(channel, row, column));
        (0..self.channels).flat_map(rows).flat_map(columns).collect()
    }

    /// A value of some rows with the one above and the one below it.
    fn column_of(&self, rows: Rows<'_>, channel: usize, row: usize, column: usize) -> [f32; 3] {
        let count = size(rows.band.rows);
        let at = (channel * count + row) * self.columns + column;
        let beside =
            |edge: Option<&[f32]>| edge.map_or(0.0, |edge| edge[channel * self.columns + column]);
        let above = if row == 0 { beside(rows.above) } else { rows.values[at - self.columns] };
        let below =
            if row + 1 == count { beside(rows.below) } else { rows.values[at + self.columns] };
        [above, rows.values[at], below]
    }

    /// A number of -1..1 for each place of the image, as it is drawn for `key`.
    fn pattern(&self, key: u64, band: Band, (channel, row, column): (usize, usize, usize)) -> f32 {
        let row = size(band.top) + row;
        let place = (key << 32) | ((channel << 24 | row << 12 | column) as u64);
        let drawn = mix(self.seed ^ mix(place)) >> 40;
        #[expect(clippy::cast_precision_loss, reason = "24 bits")]
        let unit = drawn as f32 / (1_u32 << 24) as f32;
        2.0 * unit - 1.0
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn to_pixel(value: f32) -> u8 {
    ((value / 3.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// A count as an index.
#[must_use]
pub fn size(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}
