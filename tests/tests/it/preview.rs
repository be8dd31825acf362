//! What is shown of a latent, beside what becomes of it.

use coordinator::output::preview;
use protocol::job::{Dtype, PreviewMap};
use protocol::plan::Geometry;
use tests::fixture::{self, Case};
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;
use worker::model::tensor::Memory;

/// Least PSNR, in dB, of a preview of emoji-xl: the best linear map there is, fitted to such images themselves, has 35.
const TRAINED: f64 = 24.0;
/// A case's latent after its last step, and its image in small: stock diffusers'.
struct Known {
    latent: Vec<u8>,
    geometry: Geometry,
    /// [rows, columns, 3], 0 to 255.
    small: Vec<f64>,
}

#[expect(clippy::cast_possible_truncation, reason = "the latent was of f32")]
fn known(case: &Case, checkpoint: &Checkpoint) -> Known {
    let tensors = case.tensors("single");
    let (latents, image) = (&tensors["latents"], &tensors["image"].values);
    let latent = latents.part(latents.shape[0] - 1);
    let latent = latent.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
    let card = checkpoint.card();
    let [rows, columns] = [2, 3].map(|dim| latents.shape[dim]);
    let factor = card.vae_factor as usize;
    let (width, area) = (columns * factor, factor * factor);
    let mut small = vec![0.0; rows * columns * 3];
    for (index, value) in image.iter().enumerate() {
        let (channel, pixel) = (index / (rows * columns * area), index % (rows * columns * area));
        let (row, column) = (pixel / width / factor, pixel % width / factor);
        small[(row * columns + column) * 3 + channel] += value * 255.0 / area as f64;
    }
    let geometry = Geometry {
        rows: rows as u32,
        columns: columns as u32,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    Known { latent, geometry, small }
}

impl Known {
    fn shown(&self, map: &PreviewMap) -> Vec<f64> {
        let shown = preview(&self.latent, self.geometry, map).unwrap();
        shown.into_iter().map(f64::from).collect()
    }

    /// Of a preview, in dB.
    fn psnr(&self, map: &PreviewMap) -> f64 {
        let shown = self.shown(map);
        let squares = shown.iter().zip(&self.small).map(|(got, want)| (got - want).powi(2));
        10.0 * (255.0_f64.powi(2) * shown.len() as f64 / squares.sum::<f64>()).log10()
    }
}

fn learnt(files: &ModelFiles) -> (Checkpoint, PreviewMap) {
    let checkpoint = Checkpoint::load(files, Dtype::Auto).unwrap();
    let map = checkpoint.vae().preview(&Memory::default()).unwrap().unwrap();
    (checkpoint, map)
}

#[test]
fn a_preview_is_the_image_in_small() {
    let (checkpoint, map) = learnt(&ModelFiles::Builtin);
    for case in fixture::cases("emoji.json") {
        let known = known(&case, &checkpoint);
        let got = known.psnr(&map);
        println!("{}: {got:.1} dB", case.name);
        assert!(got > TRAINED, "{}: {got:.1} dB", case.name);
        // Channels in another order, colours in another order, or a sign the wrong way round, and it is none.
        let mut channels = map.clone();
        channels.weights.rotate_left(1);
        let mut colours = map.clone();
        colours.weights.iter_mut().for_each(|colour| colour.reverse());
        let mut negative = map.clone();
        negative.weights.iter_mut().for_each(|colour| *colour = colour.map(|value| -value));
        for (what, wrong) in [("channels", channels), ("colours", colours), ("negative", negative)]
        {
            let got = known.psnr(&wrong);
            assert!(got < TRAINED - 3.0, "{} passes with {what} wrong: {got:.1} dB", case.name);
        }
    }
}

/// Four channels, and a decoder of random weights, whose images are noise: as much is learnt as there is.
#[test]
fn a_map_is_learnt_of_any_decoder() {
    for model in ["tiny-sdxl", "tiny-sd15"] {
        let (checkpoint, map) = learnt(&ModelFiles::Folder(fixture::golden("models").join(model)));
        map.check(checkpoint.card().latent_channels).unwrap();
        assert!(map.weights.iter().flatten().any(|weight| weight.abs() > 1e-3), "{map:?}");
        assert!(map.offset.iter().all(|value| (0.0..1.0).contains(value)), "{map:?}");
    }
}

/// Workers of a cluster may learn it at any time, of any number of threads.
#[test]
fn what_is_learnt_is_the_same_each_time() {
    let (checkpoint, map) = learnt(&ModelFiles::Builtin);
    let again = checkpoint.vae().preview(&Memory::default()).unwrap().unwrap();
    assert_eq!(map, again);
}
