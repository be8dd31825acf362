//! Pictures to begin with.

use coordinator::picture::{self, Picture};
use std::io::Cursor;
use worker::model::picture::Picture as Pixels;

/// The most pixels of one here: a server takes more, and is no quicker with them.
const PIXELS_MAX: u64 = 1 << 16;
/// What workers make each as large as.
const SIDES: (usize, usize) = (24, 40);

/// Bytes as a picture: one that the coordinator takes is one that workers read, of the size that it says.
pub fn picture(data: &[u8]) {
    let Ok(taken) = Picture::read_within(data, PIXELS_MAX) else { return };
    let Picture { png, width, height } = &taken;
    let pixels = u64::from(*width) * u64::from(*height);
    assert!((1..=PIXELS_MAX).contains(&pixels), "{taken:?}");
    assert!(picture::is_picture(data) && picture::is_picture(png));
    assert_eq!(picture::size(Cursor::new(png)), Some((*width, *height)));
    let again = Picture::read(png).expect("what was written is read");
    assert_eq!(again, taken, "it is another picture the second time");
    let read = Pixels::read(Cursor::new(png)).expect("workers read what the coordinator takes");
    assert_eq!(read.values().len() as u64, 3 * pixels);
    let resized = read.resized(SIDES.0, SIDES.1).values();
    assert_eq!(resized.len(), SIDES.0 * SIDES.1 * 3);
    assert!(resized.iter().all(|value| (-1.0..=1.0).contains(value)));
}
