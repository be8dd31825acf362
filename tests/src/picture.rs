//! PNG files as they were written.

use std::collections::BTreeMap;
use std::path::Path;

/// A decoded PNG.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// RGB bytes [height, width, 3].
    pub pixels: Vec<u8>,
    /// Its text chunks, by keyword.
    pub texts: BTreeMap<String, String>,
}

/// Reads the PNG at `path`.
///
/// # Panics
/// If it is no such file.
#[must_use]
pub fn read(path: &Path) -> Picture {
    let file =
        std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("an image that fits memory")];
    let frame = reader.next_frame(&mut pixels).expect("a whole image");
    assert_eq!(frame.color_type, png::ColorType::Rgb);
    pixels.truncate(frame.buffer_size());
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter();
    let mut texts: BTreeMap<_, _> =
        latin.map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    for chunk in &info.utf8_text {
        texts.insert(chunk.keyword.clone(), chunk.get_text().expect("readable text"));
    }
    Picture { size: (frame.width, frame.height), pixels, texts }
}
