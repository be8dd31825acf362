//! A whole call of the UNet, and a decode: the built-in model's, and those of the checkpoint that the
//! environment's `TESSERA_BENCH_MODEL` names. `tests/tools/sdxl_sized.py` writes one with SDXL's true shapes.

use criterion::{BenchmarkId, Criterion};
use protocol::job::Dtype;
use std::io::Write;
use worker::model::checkpoint::Checkpoint;
use worker::model::exchange::Dense;
use worker::model::files::ModelFiles;
use worker::model::tensor::{Memory, Tensor};

/// Activations are allocated as the worker allocates them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Which checkpoint to time, beside the built-in one.
const MODEL: &str = "TESSERA_BENCH_MODEL";

fn calls(criterion: &mut Criterion) {
    time(criterion, &ModelFiles::Builtin, 32);
    match std::env::var_os(MODEL) {
        Some(folder) => time(criterion, &ModelFiles::Folder(folder.into()), 64),
        // Nobody need read it.
        None => {
            writeln!(std::io::stderr(), "{MODEL} is not set: only the built-in model").ok();
        }
    }
}

fn time(criterion: &mut Criterion, files: &ModelFiles, side: usize) {
    let mut group = criterion.benchmark_group(files.name());
    group.sample_size(10);
    for dtype in [Dtype::Auto, Dtype::Bf16, Dtype::Int8] {
        let checkpoint = Checkpoint::load(files, dtype).expect("a checkpoint");
        let channels = usize::try_from(checkpoint.card().latent_channels).expect("a few");
        let shape = [1, side, side, channels];
        let memory = Memory::default();
        let latent =
            Tensor::new(&memory, &vec![0.5; side * side * channels], shape).expect("a latent");
        let text = [checkpoint.embed("a lighthouse at dusk", &memory).expect("a prompt")];
        let pixels = u32::try_from(8 * side).expect("a size");
        let conditioning = checkpoint.condition(checkpoint.unet(), &text, pixels, pixels);
        let conditioning = conditioning.expect("conditions");
        let latents = format!("{side}x{side}");
        group.bench_function(BenchmarkId::new(format!("unet/{dtype}"), &latents), |bencher| {
            bencher.iter(|| {
                let call = checkpoint.unet().forward(&latent, 500.0, &conditioning, &mut Dense);
                call.expect("a prediction")
            });
        });
        if dtype == Dtype::Auto {
            group.bench_function(BenchmarkId::new("decode", &latents), |bencher| {
                bencher.iter(|| checkpoint.vae().decode(&latent, &mut Dense).expect("an image"));
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    calls(&mut criterion);
    criterion.final_summary();
}
