//! Where a job can go on after it broke off.

use bytes::{Bytes, BytesMut};
use protocol::message::Resume;
use protocol::plan::{Band, Geometry};

/// Bytes of one value of a latent: f32.
pub const VALUE_BYTES: usize = 4;

/// The whole latent after some model calls, and what the sampler remembers of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Model calls done.
    pub calls: u32,
    /// Model calls in all.
    pub of: u32,
    /// How many tensors the sampler remembers.
    pub history: u8,
    /// The latent and those tensors: little-endian f32 [1 + history, channels, rows, columns].
    pub planes: Bytes,
}

impl Checkpoint {
    /// What the ranks of a run that begins here are told.
    #[must_use]
    pub fn resume(&self) -> Resume {
        Resume { calls: self.calls, history: self.history }
    }

    /// Whether it is one of a latent of this shape.
    #[must_use]
    pub fn fits(&self, geometry: Geometry) -> bool {
        let row = size(geometry.columns) * VALUE_BYTES;
        self.planes.len() == planes(geometry, self.history) * size(geometry.rows) * row
    }

    /// The latent alone, f32 [channels, rows, columns].
    #[must_use]
    pub fn latent(&self) -> Bytes {
        self.planes.slice(..self.planes.len() / (1 + usize::from(self.history)))
    }

    /// The rows of `band`, f32 [1 + history, channels, band rows, columns].
    #[must_use]
    pub fn band(&self, geometry: Geometry, band: Band) -> Bytes {
        let row = size(geometry.columns) * VALUE_BYTES;
        let plane = size(geometry.rows) * row;
        let (from, to) = (size(band.top) * row, size(band.end()) * row);
        let mut rows = BytesMut::with_capacity(planes(geometry, self.history) * (to - from));
        self.planes.chunks_exact(plane).for_each(|plane| rows.extend_from_slice(&plane[from..to]));
        rows.freeze()
    }

    /// The planes that these bands, from top to bottom, are the rows of.
    #[must_use]
    pub fn planes_of(geometry: Geometry, history: u8, bands: &[(Band, &Bytes)]) -> Bytes {
        let row = size(geometry.columns) * VALUE_BYTES;
        let mut whole = BytesMut::new();
        for plane in 0..planes(geometry, history) {
            for (band, rows) in bands {
                let bytes = size(band.rows) * row;
                whole.extend_from_slice(&rows[plane * bytes..(plane + 1) * bytes]);
            }
        }
        whole.freeze()
    }
}

/// How many planes of [rows, columns] a latent and so many tensors of its shape have.
fn planes(geometry: Geometry, history: u8) -> usize {
    size(geometry.channels) * (1 + usize::from(history))
}

fn size(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_cut_out_of_each_plane_and_put_together_again() {
        let geometry = Geometry { rows: 6, columns: 2, channels: 3, row_unit: 1, vae_factor: 8 };
        let values = 0..2 * 3 * 6 * 2_u16;
        let planes: Bytes = values.flat_map(|value| f32::from(value).to_le_bytes()).collect();
        let checkpoint = Checkpoint { calls: 4, of: 9, history: 1, planes };
        assert!(checkpoint.fits(geometry));
        let bands = [(0, 1), (1, 3), (4, 2)].map(|(top, rows)| Band { top, rows });
        let cut = bands.map(|band| checkpoint.band(geometry, band));
        // The second plane's first row of the second band: past a plane of 12 values and one row of 2.
        let value = |bytes: &Bytes, at: usize| {
            f32::from_le_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap())
        };
        assert!((value(&cut[1], 3 * 2) - 14.0).abs() < f32::EPSILON);
        let placed: Vec<(Band, &Bytes)> = bands.into_iter().zip(&cut).collect();
        assert_eq!(Checkpoint::planes_of(geometry, 1, &placed), checkpoint.planes);
        assert_eq!(checkpoint.latent(), checkpoint.planes.slice(..3 * 6 * 2 * 4));
        assert!(!checkpoint.fits(Geometry { rows: 5, ..geometry }));
    }
}
