//! Kernels at SDXL's shapes, on every instruction set that this machine has.

use criterion::{BenchmarkId, Criterion, Throughput};
use worker::kernels::{
    Arithmetic, Band, Conv, Epilogue, Heads, Isa, Keys, Method, Packed, Stored, attention, conv2d,
    group_moments, group_norm, linear,
};

/// Activations are allocated as the worker allocates them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Channels and side of a 3x3 convolution.
const CONVOLUTIONS: [[usize; 2]; 3] = [[320, 128], [640, 64], [1280, 32]];
/// Rows, depth and outputs of a linear layer.
const PRODUCTS: [[usize; 3]; 3] = [[4096, 640, 640], [1024, 1280, 10240], [1024, 5120, 1280]];
/// Tokens and heads, of 64 values, of an attention.
const ATTENTIONS: [[usize; 2]; 2] = [[4096, 10], [1024, 20]];

fn convolutions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv3x3");
    group.sample_size(10);
    for [channels, side] in CONVOLUTIONS {
        let weight = values(channels * channels * 9);
        let (x, mut out) = (values(side * side * channels), vec![0.0; side * side * channels]);
        let (above, below) = (&[][..], &[][..]);
        let (rows, width, first_row) = (side, side, 0);
        let band = Band { batch: 1, rows, width, first_row, channels, body: &x, above, below };
        // Multiplications and additions of the plain sum, for Winograd's ways, too.
        group.throughput(Throughput::Elements((18 * channels * channels * side * side) as u64));
        for isa in fast() {
            for method in [Method::Direct, Method::Winograd2, Method::Winograd4] {
                let conv = Conv::pack(Stored::F32(&weight), [channels, channels, 3, 3], 1);
                let conv = conv.by(method);
                let id =
                    BenchmarkId::new(format!("{method:?}/{isa}"), format!("{channels}x{side}"));
                group.bench_function(id, |bencher| {
                    bencher.iter(|| conv2d(isa, &mut out, &band, &conv, &Epilogue::default()));
                });
            }
        }
    }
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    group.sample_size(10);
    for [rows, depth, outputs] in PRODUCTS {
        let weight = values(outputs * depth);
        let (x, mut out) = (values(rows * depth), vec![0.0; rows * outputs]);
        group.throughput(Throughput::Elements((2 * rows * depth * outputs) as u64));
        for isa in fast() {
            for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
                if arithmetic == Arithmetic::Bf16 && !isa.has_bf16() {
                    continue;
                }
                let packed = Packed::pack(Stored::F32(&weight), outputs, depth, arithmetic);
                let id = BenchmarkId::new(
                    format!("{arithmetic:?}/{isa}"),
                    format!("{rows}x{depth}x{outputs}"),
                );
                group.bench_function(id, |bencher| {
                    bencher.iter(|| linear(isa, &mut out, &x, &packed, &Epilogue::default()));
                });
            }
        }
    }
}

fn attentions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for [tokens, heads] in ATTENTIONS {
        let inner = heads * 64;
        let [q, k, v] = [0; 3].map(|_| values(tokens * inner));
        let mut out = vec![0.0; tokens * inner];
        let shape = Heads {
            batch: 1,
            heads,
            head_dim: 64,
            queries: tokens,
            causal: false,
            arithmetic: Arithmetic::F32,
        };
        group.throughput(Throughput::Elements((4 * tokens * tokens * inner) as u64));
        for isa in fast() {
            let id = BenchmarkId::new(isa.to_string(), format!("{tokens}x{heads}x64"));
            group.bench_function(id, |bencher| {
                let [keys, values] = [&k, &v].map(|values| Stored::F32(values));
                let parts = [Keys { keys, values, rows: tokens, row_stride: inner }];
                bencher.iter(|| attention(isa, &mut out, &q, &parts, &shape));
            });
        }
    }
}

fn norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("group norm and SiLU");
    let [channels, side] = [320, 128];
    let (x, mut out) = (values(side * side * channels), vec![0.0; side * side * channels]);
    let (scale, shift) = (vec![1.0; channels], vec![0.0; channels]);
    for isa in fast() {
        group.bench_function(BenchmarkId::new(isa.to_string(), "320x128"), |bencher| {
            bencher.iter(|| {
                let moments = group_moments(isa, &x, 1, 32, channels);
                group_norm(isa, &mut out, &x, 1, &scale, &shift, true);
                moments
            });
        });
    }
}

/// The instruction sets worth timing.
fn fast() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::Portable)
}

/// Values from -1 to 1.
#[expect(clippy::cast_precision_loss, reason = "24 bits")]
fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    convolutions(&mut criterion);
    products(&mut criterion);
    attentions(&mut criterion);
    norms(&mut criterion);
    criterion.final_summary();
}
