//! Who decodes which rows, and whether they fit its memory.

use super::Candidate;
use super::bands::split_by_speed;
use super::branches::Share;
use protocol::job::Decode;
use protocol::plan::{Band, BandError, Geometry};

/// Parts in a hundred of a machine's free memory that a decode may take: the rest is for what the
/// estimate, good to a tenth, leaves out.
const FREE_PERCENT: u64 = 85;

/// What each rank decodes: its band, or where bands cover the image more than once a share as tall as
/// its worker is fast.
pub(super) fn bands(
    shares: &[Share],
    geometry: Geometry,
    speeds: &[u64],
) -> Result<Vec<Band>, BandError> {
    let bands: Vec<Band> = shares.iter().map(|share| share.band).collect();
    if bands.iter().map(|band| band.rows).sum::<u32>() == geometry.rows {
        return Ok(bands);
    }
    let speeds: Vec<u64> = shares.iter().map(|share| speeds[share.worker]).collect();
    split_by_speed(geometry.rows, 1, &speeds)
}

/// How ranks decode their `bands`, and why if nobody said how: as a whole only if what all ranks of
/// each machine need at once is there. `pixel_bytes` is what one pixel of a band takes.
pub(super) fn fit(
    wish: Decode,
    bands: &[Band],
    workers: &[&Candidate],
    (geometry, pixel_bytes): (Geometry, u32),
) -> (Decode, String) {
    if wish != Decode::Auto {
        return (wish, String::new());
    }
    let row = u64::from(geometry.columns) * u64::from(geometry.vae_factor).pow(2);
    let need = |band: &Band| row * u64::from(band.rows) * u64::from(pixel_bytes);
    for worker in workers {
        // Ranks on one machine share what it has left.
        let host = worker.address.ip();
        let beside = workers.iter().zip(bands).filter(|(other, _)| other.address.ip() == host);
        let needed: u64 = beside.map(|(_, band)| need(band)).sum();
        if needed > worker.free_bytes / 100 * FREE_PERCENT {
            let (name, needed, free) = (&worker.name, mib(needed), mib(worker.free_bytes));
            let why = format!(
                "; decoded in tiles: as a whole it would take {needed} MiB, and the machine of {name} \
                 has {free} MiB left (--decode whole tries all the same)"
            );
            return (Decode::Tiled, why);
        }
    }
    (Decode::Whole, String::new())
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::candidates;
    use protocol::plan::Branch;
    use std::net::{Ipv4Addr, SocketAddr};

    const GEOMETRY: Geometry =
        Geometry { rows: 128, columns: 128, channels: 4, row_unit: 4, vae_factor: 8 };

    fn decode(wish: Decode, free_mib: u64, hosts: [u8; 2]) -> (Decode, String) {
        let mut workers = candidates(2);
        for (worker, host) in workers.iter_mut().zip(hosts) {
            worker.free_bytes = free_mib << 20;
            worker.address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), 1));
        }
        let bands = [Band { top: 0, rows: 64 }, Band { top: 64, rows: 64 }];
        // 1024x1024 pixels of 1024 bytes: a GiB, half of it for each.
        fit(wish, &bands, &workers.iter().collect::<Vec<_>>(), (GEOMETRY, 1024))
    }

    #[test]
    fn what_does_not_fit_is_decoded_in_tiles_and_says_so() {
        assert_eq!(decode(Decode::Auto, 700, [1, 2]), (Decode::Whole, String::new()));
        let (tiled, why) = decode(Decode::Auto, 600, [1, 2]);
        assert_eq!(tiled, Decode::Tiled);
        assert!(why.contains("512 MiB, and the machine of w1 has 600 MiB left"), "{why}");
        // Two workers on one machine need twice as much of it.
        assert_eq!(decode(Decode::Auto, 1100, [1, 1]).0, Decode::Tiled);
        assert_eq!(decode(Decode::Auto, 1300, [1, 1]).0, Decode::Whole);
    }

    #[test]
    fn ranks_of_two_branches_decode_as_much_as_they_are_fast() {
        let whole = Band { top: 0, rows: 128 };
        let share = |worker, branch| Share { worker, branch, band: whole };
        let shares = [share(1, Branch::Negative), share(0, Branch::Prompt)];
        let rows = |speeds: &[u64]| {
            let bands = bands(&shares, GEOMETRY, speeds).unwrap();
            bands.iter().map(|band| band.rows).collect::<Vec<_>>()
        };
        assert_eq!(rows(&[100, 100]), [64, 64]);
        assert_eq!(rows(&[100, 300]), [96, 32]);
    }

    #[test]
    fn what_is_asked_for_is_done() {
        assert_eq!(decode(Decode::Whole, 1, [1, 1]), (Decode::Whole, String::new()));
        assert_eq!(decode(Decode::Tiled, 9999, [1, 2]), (Decode::Tiled, String::new()));
    }
}
