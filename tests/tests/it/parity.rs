//! What must be the same on any number of ranks: S-1, S-2, S-5 and S-6 of the algorithm.

use protocol::Call;
use protocol::job::{
    Decode, Dtype, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup, Wire,
};
use protocol::plan::{Band, Branch, Plan};
use std::path::Path;
use std::sync::Arc;
use tests::fixture;
use tests::render::{Rendered, links, plan, plan_of, render};
use tests::tolerance::{largest_difference, relative_l2};
use worker::model::checkpoint::Checkpoint;
use worker::model::exchange::Dense;
use worker::model::files::ModelFiles;
use worker::model::noise::TorchGenerator;
use worker::model::tensor::{Memory, Tensor};
use worker::parallel::{Displaced, Mesh, Synchronous};

/// Relative L2 of what only the order of additions tells apart.
const ROUNDING: f64 = 2e-5;

fn checkpoint(model: &str) -> Arc<Checkpoint> {
    let files = ModelFiles::Folder(fixture::golden("models").join(model));
    Arc::new(Checkpoint::load(&files, Dtype::Auto).unwrap())
}

/// Four steps of 128x128 with torch's variance: tiny-sdxl has 4 row units there, tiny-sd15 has 8.
fn spec(case: &str, mode: Mode, warmup: u32) -> JobSpec {
    let spec = fixture::case("single.json", case).spec();
    let warmup = Warmup::Calls(warmup);
    JobSpec { steps: 4, mode, warmup, gn_variance: GnVariance::Population, ..spec }
}

fn run(checkpoint: &Arc<Checkpoint>, plan: &Plan) -> Rendered {
    render(checkpoint, plan, links(checkpoint, plan, None)).unwrap()
}

fn assert_same(what: &str, got: &Rendered, want: &Rendered) {
    for (call, (got, want)) in got.latents.iter().zip(&want.latents).enumerate() {
        let error = relative_l2(got, want);
        assert!(error < ROUNDING, "{what}: call {call} is off by {error:.2e}");
    }
    let difference = largest_difference(&got.pixels, &want.pixels);
    assert!(difference <= 1, "{what}: pixels differ by {difference}/255");
}

/// The plan with bands of these heights, in row units, one below the other.
fn with_heights(plan: Plan, units: &[u32]) -> Plan {
    let mut top = 0;
    let mut bands = Vec::new();
    for rows in units {
        bands.push((top, *rows));
        top += rows;
    }
    let mut plan = with_bands(plan, &bands);
    plan.members.iter_mut().for_each(|member| member.decodes = member.band);
    plan
}

/// The plan with bands of these first rows and heights, in row units.
fn with_bands(mut plan: Plan, units: &[(u32, u32)]) -> Plan {
    let unit = plan.geometry.row_unit;
    for (member, (top, rows)) in plan.members.iter_mut().zip(units) {
        member.band = Band { top: top * unit, rows: rows * unit };
    }
    plan.check().unwrap();
    plan
}

#[test]
fn s1_synchronous_ranks_equal_the_dense_run() {
    for (model, case, most) in [("tiny-sdxl", "sdxl-ddim", 4), ("tiny-sd15", "sd15-ddim", 8)] {
        let checkpoint = checkpoint(model);
        let spec = spec(case, Mode::FullSync, 0);
        let dense = run(&checkpoint, &plan(&checkpoint, &spec, 1));
        for ranks in [2, 3, 4, 5, 8].into_iter().filter(|ranks| *ranks <= most) {
            let banded = run(&checkpoint, &plan(&checkpoint, &spec, ranks));
            assert_same(&format!("{model} on {ranks} ranks"), &banded, &dense);
        }
    }
}

#[test]
fn s1_holds_for_unequal_bands() {
    let checkpoint = checkpoint("tiny-sd15");
    let spec = spec("sd15-ddim", Mode::FullSync, 0);
    let dense = run(&checkpoint, &plan(&checkpoint, &spec, 1));
    for heights in [&[1, 7][..], &[5, 1, 2], &[2, 1, 1, 4], &[1, 3, 1, 2, 1]] {
        let even = plan(&checkpoint, &spec, heights.len());
        let banded = run(&checkpoint, &with_heights(even, heights));
        assert_same(&format!("bands of {heights:?} units"), &banded, &dense);
    }
}

/// The branches' activations never meet: whether one batch of two or two of one, on as many bands,
/// not a bit of the result changes.
#[test]
fn two_branches_of_four_ranks_are_bit_equal_to_four_ranks() {
    let checkpoint = checkpoint("tiny-sdxl");
    let spec = spec("sdxl-ddim", Mode::Corrected, 1);
    let flat = run(&checkpoint, &plan(&checkpoint, &spec, 4));
    let parts = [(Branch::Negative, 4), (Branch::Prompt, 4)];
    let split = run(&checkpoint, &plan_of(&checkpoint, &spec, &parts));
    assert!(flat.latents == split.latents, "latents differ");
}

#[test]
fn s1_holds_for_branches_of_any_size() {
    let checkpoint = checkpoint("tiny-sd15");
    let spec = spec("sd15-ddim", Mode::FullSync, 0);
    let dense = run(&checkpoint, &plan(&checkpoint, &spec, 1));
    for (negative, prompt) in [(1, 1), (1, 2), (3, 2), (1, 8)] {
        let parts = [(Branch::Negative, negative), (Branch::Prompt, prompt)];
        let split = run(&checkpoint, &plan_of(&checkpoint, &spec, &parts));
        assert_same(&format!("branches of {negative} and {prompt} ranks"), &split, &dense);
    }
}

/// Layers in shards, with branches and without, on one rank up to as many as there are heads.
#[test]
fn s1_holds_for_tensor_parallelism() {
    let checkpoint = checkpoint("tiny-sdxl");
    let spec = spec("sdxl-ddim", Mode::Corrected, 1);
    let dense = run(&checkpoint, &plan(&checkpoint, &spec, 1));
    let spec = JobSpec { parallelism: Parallelism::Tensor, ..spec };
    let (whole, most) = (Branch::Whole, checkpoint.card().shards_max as usize);
    let split = |negative, prompt| vec![(Branch::Negative, negative), (Branch::Prompt, prompt)];
    for parts in [vec![(whole, 1)], vec![(whole, 2)], vec![(whole, most)], split(2, 1), split(1, 2)]
    {
        let sharded = run(&checkpoint, &plan_of(&checkpoint, &spec, &parts));
        assert_same(&format!("shards on {parts:?}"), &sharded, &dense);
    }
}

/// Tiles of one rank reach into the rows of others: however many there are, they fit.
#[test]
fn s1_holds_for_a_decode_in_tiles() {
    let checkpoint = checkpoint("tiny-sd15");
    let spec = spec("sd15-ddim", Mode::FullSync, 0);
    let spec = JobSpec { steps: 1, height: 320, width: 288, decode: Decode::Tiled, ..spec };
    let alone = run(&checkpoint, &plan(&checkpoint, &spec, 1));
    for heights in [&[7, 13][..], &[1, 3, 16]] {
        let even = plan(&checkpoint, &spec, heights.len());
        let tiled = run(&checkpoint, &with_heights(even, heights));
        assert_same(&format!("tiles of bands of {heights:?} units"), &tiled, &alone);
    }
    let whole = run(&checkpoint, &plan(&checkpoint, &JobSpec { decode: Decode::Whole, ..spec }, 1));
    assert_ne!(whole.pixels, alone.pixels, "tiles were not used");
}

/// One synchronous call, then the same input displaced, equals the dense model.
#[test]
fn s2_the_same_input_displaced_equals_the_dense_output() {
    let checkpoint = checkpoint("tiny-sdxl");
    let spec = spec("sdxl-ddim", Mode::Corrected, 0);
    let plan = with_heights(plan(&checkpoint, &spec, 3), &[1, 2, 1]);
    let memory = Memory::default();
    let prompt = || checkpoint.embed(&spec.prompt, &memory).unwrap();
    let conditioning = || {
        checkpoint
            .condition(checkpoint.unet(), &[prompt(), prompt()], spec.width, spec.height)
            .unwrap()
    };
    let (rows, columns) = (plan.geometry.rows as usize, plan.geometry.columns as usize);
    let channels = plan.geometry.channels as usize;
    let row = columns * channels;
    let whole = TorchGenerator::new(3).randn(2 * rows * row);
    // Images of a batch one after the other; a band's rows of each.
    let band_of = |top: usize, count: usize| {
        let images = whole.chunks(rows * row);
        let values = images.flat_map(|image| image[top * row..(top + count) * row].to_vec());
        let values: Vec<f32> = values.collect();
        Tensor::new(&memory, &values, [2, count, columns, channels]).unwrap()
    };
    let dense =
        checkpoint.unet().forward(&band_of(0, rows), 500.0, &conditioning(), &mut Dense).unwrap();
    let dense = dense.view().to_vec();
    let links = links(&checkpoint, &plan, None);
    std::thread::scope(|scope| {
        for (rank, links) in plan.ranks().zip(links) {
            let band = plan.member(rank).unwrap().band;
            let (top, count) = (band.top as usize, band.rows as usize);
            let (plan, checkpoint, dense) = (&plan, &checkpoint, &dense);
            let (x, conditioning) = (band_of(top, count), conditioning());
            scope.spawn(move || {
                let (_held, cancel) = tokio::sync::oneshot::channel();
                let mut mesh = Mesh::new(plan, checkpoint.sites(), rank, links, cancel).unwrap();
                let unet = checkpoint.unet();
                let mut first = Synchronous::new(&mut mesh, Call(0));
                unet.forward(&x, 500.0, &conditioning, &mut first).unwrap();
                let mut second = Displaced::new(&mut mesh, Mode::Corrected, Call(1), Call(0), true);
                let got = unet.forward(&x, 500.0, &conditioning, &mut second).unwrap();
                let want = dense.chunks(rows * row).flat_map(|image| {
                    image[top * row..(top + count) * row].iter().map(|value| f64::from(*value))
                });
                let got = got.view().iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
                let error = relative_l2(&got, &want.collect::<Vec<_>>());
                assert!(error < ROUNDING, "{rank} is off by {error:.2e}");
            });
        }
    });
}

/// Two branches of two ranks with unequal bands, on links that delay and reorder.
#[test]
fn s5_fifty_orders_of_arrival_give_one_hash() {
    let checkpoint = checkpoint("tiny-sdxl");
    let spec = spec("sdxl-ddim", Mode::Corrected, 0);
    let even = plan_of(&checkpoint, &spec, &[(Branch::Negative, 2), (Branch::Prompt, 2)]);
    let plan = with_bands(even, &[(0, 1), (1, 3), (0, 3), (3, 1)]);
    let prompt = hash(&run(&checkpoint, &plan));
    for seed in 1..=50 {
        let late = render(&checkpoint, &plan, links(&checkpoint, &plan, Some(seed))).unwrap();
        assert_eq!(hash(&late), prompt, "seed {seed}");
    }
}

fn hash(rendered: &Rendered) -> blake3::Hash {
    let latents = rendered.latents.iter().flatten();
    let bytes: Vec<u8> = latents.flat_map(|value| value.to_le_bytes()).collect();
    blake3::hash(&[&bytes[..], &rendered.pixels].concat())
}

/// Heun's second call of a step is closer to its first than to the next step's: with an automatic
/// warm-up calls are synchronous, displaced, synchronous again, on all ranks alike, whatever comes late.
#[test]
fn s5_an_automatic_warm_up_does_not_depend_on_timing() {
    let checkpoint = checkpoint("tiny-sdxl");
    let case = spec("sdxl-ddim", Mode::Corrected, 0);
    let spec = JobSpec { scheduler: Scheduler::Heun, steps: 8, warmup: Warmup::Auto, ..case };
    let even = plan_of(&checkpoint, &spec, &[(Branch::Negative, 1), (Branch::Prompt, 3)]);
    let plan = with_bands(even, &[(0, 4), (0, 1), (1, 2), (3, 1)]);
    let prompt = run(&checkpoint, &plan);
    let [alone, others @ ..] = &prompt.displaced[..] else { panic!("four ranks") };
    assert!(!alone.contains(&true), "a rank that asks nobody is never displaced");
    assert!(others.windows(2).all(|two| two[0] == two[1]), "ranks disagree: {others:?}");
    assert!(others[0].windows(2).any(|two| two == [true, false]), "never back: {others:?}");
    for seed in 1..=10 {
        let late = render(&checkpoint, &plan, links(&checkpoint, &plan, Some(seed))).unwrap();
        assert_eq!(late.displaced, prompt.displaced, "seed {seed}");
        assert_eq!(hash(&late), hash(&prompt), "seed {seed}");
    }
}

/// Keys and values alone are rounded: half the bytes, and an error of their precision, not of a call's
/// staleness.
#[test]
fn keys_and_values_in_half_precision_are_close() {
    let checkpoint = checkpoint("tiny-sdxl");
    let latent = |wire| {
        let spec = JobSpec { wire, ..spec("sdxl-ddim", Mode::Corrected, 0) };
        run(&checkpoint, &plan(&checkpoint, &spec, 4)).latents.swap_remove(0)
    };
    let exact = latent(Wire::F32);
    for (wire, least, most) in [(Wire::F16, 1e-9, 1e-4), (Wire::Bf16, 1e-8, 1e-3)] {
        let error = relative_l2(&latent(wire), &exact);
        println!("{wire}: {error:.2e}");
        assert!((least..most).contains(&error), "{wire} is off by {error:.2e}");
    }
}

#[test]
fn s6_a_warm_up_of_all_calls_is_full_sync() {
    let checkpoint = checkpoint("tiny-sdxl");
    let warm = run(&checkpoint, &plan(&checkpoint, &spec("sdxl-ddim", Mode::Corrected, 3), 2));
    let sync = run(&checkpoint, &plan(&checkpoint, &spec("sdxl-ddim", Mode::FullSync, 0), 2));
    assert_eq!(warm.latents, sync.latents);
    assert_eq!(warm.pixels, sync.pixels);
}

#[test]
fn a_displaced_run_differs_from_a_synchronous_one() {
    let checkpoint = checkpoint("tiny-sdxl");
    let displaced = run(&checkpoint, &plan(&checkpoint, &spec("sdxl-ddim", Mode::Corrected, 0), 2));
    let sync = run(&checkpoint, &plan(&checkpoint, &spec("sdxl-ddim", Mode::FullSync, 0), 2));
    let error = relative_l2(&displaced.latents[3], &sync.latents[3]);
    assert!(error > 1e-3, "displaced and synchronous differ by {error:.2e} only");
}

#[test]
fn the_built_in_model_is_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/emoji-xl");
    let folder = Checkpoint::load(&ModelFiles::Folder(folder), Dtype::Auto).unwrap();
    let builtin = Checkpoint::load(&ModelFiles::Builtin, Dtype::Auto).unwrap();
    assert_eq!(folder.card(), builtin.card());
}
