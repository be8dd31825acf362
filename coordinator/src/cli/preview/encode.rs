//! A picture as terminals take it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use png::{BitDepth, ColorType, Encoder};
use std::fmt::Write;

/// The most rows of a terminal that a picture takes.
const ROWS_MAX: u16 = 16;
/// The fewest in which anything can be seen.
const ROWS_MIN: u16 = 3;
/// Rows of a terminal that are left to the bar and to the line that is printed next.
const ROWS_LEFT: u16 = 4;
/// The longer side, in pixels, of what is sent to a terminal: more than the rows it takes can show is of no use.
const SIDE_MAX: usize = 256;
/// The most base64 in one of kitty's commands, as its protocol has it.
const CHUNK: usize = 4096;

/// RGB bytes [height, width, 3].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// The part of a terminal that a picture takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cells {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

impl Picture {
    /// A picture of these pixels; None if they are not as many as its size says, or none.
    pub(in crate::cli) fn new(width: u32, height: u32, pixels: &[u8]) -> Option<Self> {
        let (width, height) = (usize::try_from(width).ok()?, usize::try_from(height).ok()?);
        let wanted = width.checked_mul(height)?.checked_mul(3)?;
        let whole = wanted > 0 && pixels.len() == wanted;
        whole.then(|| {
            let whole = Self { width, height, pixels: pixels.to_vec() };
            let longer = width.max(height);
            if longer <= SIDE_MAX {
                return whole;
            }
            let side = |side: usize| (side * SIDE_MAX / longer).max(1);
            whole.resized(side(width), side(height))
        })
    }

    /// What it takes of a terminal of so many rows and columns, whose cells are twice as high as wide; None if that
    /// is too small.
    pub(super) fn fit(&self, terminal: (u16, u16)) -> Option<Cells> {
        let (width, height) = (self.width as u64, self.height as u64);
        let room = terminal.0.checked_sub(ROWS_LEFT)?.min(ROWS_MAX);
        // The last column is left: what is written there may move the cursor to the next row.
        let across = terminal.1.checked_sub(1)?;
        let columns = (2 * u64::from(room) * width).div_ceil(height).min(across.into());
        let rows = (columns * height).div_ceil(2 * width).min(room.into());
        let cells =
            Cells { rows: u16::try_from(rows).ok()?, columns: u16::try_from(columns).ok()? };
        (cells.rows >= ROWS_MIN && cells.columns > 0).then_some(cells)
    }

    /// Kitty's graphics protocol: shown in `cells` from the cursor on, which stays. A picture of the same number
    /// before it is gone.
    pub(super) fn kitty(&self, cells: Cells, number: u32) -> String {
        let encoded = STANDARD.encode(&self.pixels);
        let mut out = String::with_capacity(encoded.len() + 256);
        let mut rest = &*encoded;
        let Self { width, height, .. } = self;
        let Cells { rows, columns } = cells;
        // Writing to a string succeeds.
        write!(
            out,
            "\x1b_Ga=T,q=2,f=24,s={width},v={height},i={number},p=1,c={columns},r={rows},C=1,"
        )
        .ok();
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK));
            write!(out, "m={};{chunk}\x1b\\", u8::from(!after.is_empty())).ok();
            if after.is_empty() {
                return out;
            }
            rest = after;
            out.push_str("\x1b_G");
        }
    }

    /// iTerm2's inline images: a PNG, shown in `cells` from the cursor on.
    pub(super) fn iterm(&self, cells: Cells) -> String {
        let file = self.png();
        let Cells { rows, columns } = cells;
        format!(
            "\x1b]1337;File=inline=1;size={};width={columns};height={rows};preserveAspectRatio=0:{}\x07",
            file.len(),
            STANDARD.encode(file)
        )
    }

    /// Upper half blocks, whose two colours are two pixels, one above the other.
    pub(super) fn blocks(&self, cells: Cells) -> String {
        let (rows, columns) = (usize::from(cells.rows), usize::from(cells.columns));
        let small = self.resized(columns, 2 * rows);
        let mut out = String::new();
        for row in 0..rows {
            let mut colours = None;
            for column in 0..columns {
                let [upper, lower] = [2 * row, 2 * row + 1].map(|row| small.pixel(row, column));
                if colours.replace((upper, lower)) != Some((upper, lower)) {
                    let ([r, g, b], [red, green, blue]) = (upper, lower);
                    write!(out, "\x1b[38;2;{r};{g};{b};48;2;{red};{green};{blue}m").ok();
                }
                out.push('\u{2580}');
            }
            out.push_str("\x1b[0m\r\n");
        }
        out
    }

    fn pixel(&self, row: usize, column: usize) -> [u8; 3] {
        let from = (row * self.width + column) * 3;
        [self.pixels[from], self.pixels[from + 1], self.pixels[from + 2]]
    }

    /// In another size, each pixel the mean of those that it covers.
    fn resized(&self, width: usize, height: usize) -> Self {
        let covered = |index: usize, of: usize, all: usize| {
            let first = index * all / of;
            first..((index + 1) * all).div_ceil(of).max(first + 1)
        };
        let mut pixels = Vec::with_capacity(width * height * 3);
        for row in 0..height {
            for column in 0..width {
                let mut sum = [0_u64; 3];
                let (down, across) =
                    (covered(row, height, self.height), covered(column, width, self.width));
                let count = (down.len() * across.len()) as u64;
                for (row, column) in down.flat_map(|row| across.clone().map(move |at| (row, at))) {
                    let pixel = self.pixel(row, column);
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u64::from(value));
                }
                let mean = |sum| u8::try_from((sum + count / 2) / count).unwrap_or(u8::MAX);
                pixels.extend(sum.map(mean));
            }
        }
        Self { width, height, pixels }
    }

    fn png(&self) -> Vec<u8> {
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, side(self.width), side(self.height));
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut writer| {
            writer.write_image_data(&self.pixels)?;
            writer.finish()
        });
        written.expect("memory takes a picture whose pixels are as many as its size says");
        file
    }
}

/// What removes kitty's picture of this number.
pub(super) fn kitty_gone(number: u32) -> String {
    format!("\x1b_Ga=d,d=I,i={number},q=2\x1b\\")
}
