//! Linear layers and convolutions against plain loops, and against themselves in parts.

use proptest::prelude::*;

use super::reference::{
    Type, Weight, activate, assert_close, assert_same, finish, product, taps, values, with_threads,
};
use super::{
    Activation, Arithmetic, Band, Conv, Epilogue, Isa, Method, Packed, Stored, conv2d, geglu,
    linear,
};

fn types() -> impl Strategy<Value = Type> {
    prop_oneof![Just(Type::F32), Just(Type::F16), Just(Type::Bf16)]
}

fn activations() -> impl Strategy<Value = Activation> {
    use Activation::{Gelu, None, QuickGelu, Silu};
    prop_oneof![Just(None), Just(Silu), Just(Gelu), Just(QuickGelu)]
}

fn run_linear(isa: Isa, x: &[f32], w: &Packed, epilogue: &Epilogue<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.depth() * w.outputs()];
    linear(isa, &mut out, x, w, epilogue);
    out
}

fn run_conv(isa: Isa, x: &Band<'_>, w: &Conv, epilogue: &Epilogue<'_>) -> Vec<f32> {
    let pixels = x.batch * w.output_length(x.rows) * w.output_length(x.width);
    let mut out = vec![f32::NAN; pixels * w.outputs()];
    conv2d(isa, &mut out, x, w, epilogue);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn linear_is_a_product_and_its_epilogue(
        (rows_each, batch, outputs, depth) in (1..40_usize, 1..4_usize, 1..100_usize, 1..1500_usize),
        (ty, activation) in (types(), activations()),
        (biases, residual) in (0..3_usize, any::<bool>()),
        seed in any::<u64>(),
    ) {
        let rows = rows_each * batch;
        let x = values(seed, rows * depth);
        let weight = Weight::new(ty, &values(seed ^ 1, outputs * depth));
        let bias = values(seed ^ 2, outputs * [0, 1, batch][biases]);
        let added = values(seed ^ 3, rows * outputs);
        let epilogue = Epilogue {
            bias: (biases > 0).then_some(&bias),
            activation,
            residual: residual.then_some(&added),
        };
        let want = finish(&product(&x, &weight.rounded(), depth), outputs, &epilogue);
        let packed = Packed::pack(weight.stored(), outputs, depth, Arithmetic::F32);
        for isa in Isa::available() {
            assert_close(&run_linear(isa, &x, &packed, &epilogue), &want, 2e-6, &isa.to_string());
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others(
        (rows, outputs, depth) in (2..400_usize, 1..200_usize, 1..1500_usize),
        (a, b) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        threads in 1..5_usize,
        seed in any::<u64>(),
    ) {
        let x = values(seed, rows * depth);
        let weight = values(seed ^ 1, outputs * depth);
        let packed = Packed::pack(Stored::F32(&weight), outputs, depth, Arithmetic::F32);
        let (a, b) = (a.index(rows), b.index(rows));
        let part = a.min(b)..a.max(b) + 1;
        for isa in Isa::available() {
            let whole = with_threads(threads, || run_linear(isa, &x, &packed, &Epilogue::default()));
            let few = &x[part.start * depth..part.end * depth];
            let few = run_linear(isa, few, &packed, &Epilogue::default());
            let of_whole = &whole[part.start * outputs..part.end * outputs];
            assert_same(of_whole, &few, &isa.to_string());
        }
    }

    #[test]
    fn rounded_numbers_are_multiplied_exactly(
        (rows, outputs, depth) in (1..40_usize, 1..100_usize, 1..3000_usize),
        (ty, threads, biased) in (types(), 1..4_usize, any::<bool>()),
        seed in any::<u64>(),
    ) {
        let x = values(seed, rows * depth);
        let weight = Weight::new(ty, &values(seed ^ 1, outputs * depth));
        let bias = values(seed ^ 2, outputs);
        let epilogue = Epilogue { bias: biased.then_some(&bias[..]), ..Epilogue::default() };
        // What 8 bits keep of each row of `values`.
        let rounded = |values: &[f32]| -> Vec<f32> {
            let row = |row: &[f32]| {
                let unit = row.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
                row.iter().map(|x| (x / unit).round() * unit).collect::<Vec<_>>()
            };
            values.chunks_exact(depth).flat_map(row).collect()
        };
        let to_bf16 = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
        };
        let weights = weight.rounded();
        for isa in Isa::available() {
            let run = |arithmetic| {
                let packed = Packed::pack(weight.stored(), outputs, depth, arithmetic);
                with_threads(threads, || run_linear(isa, &x, &packed, &epilogue))
            };
            let want = finish(&product(&rounded(&x), &rounded(&weights), depth), outputs, &epilogue);
            // A value halfway between two whole numbers may become either; one in a row does this much.
            let tolerance = 1.1 / 127.0;
            assert_close(&run(Arithmetic::Int8), &want, tolerance, &format!("int8, {isa}"));
            if isa.has_bf16() {
                let sums = product(&to_bf16(&x), &to_bf16(&weights), depth);
                let want = finish(&sums, outputs, &epilogue);
                assert_close(&run(Arithmetic::Bf16), &want, 2e-6, &format!("bf16, {isa}"));
            }
        }
    }

    #[test]
    fn eight_bits_are_the_same_everywhere(
        (rows, outputs, depth) in (1..40_usize, 1..100_usize, 1..3000_usize),
        seed in any::<u64>(),
    ) {
        let x = values(seed, rows * depth);
        let weight = values(seed ^ 1, outputs * depth);
        let packed = Packed::pack(Stored::F32(&weight), outputs, depth, Arithmetic::Int8);
        let plain = run_linear(Isa::Portable, &x, &packed, &Epilogue::default());
        for isa in Isa::available() {
            let got = run_linear(isa, &x, &packed, &Epilogue::default());
            assert_same(&got, &plain, &isa.to_string());
        }
    }

    #[test]
    fn geglu_gates_hidden_columns(
        (rows, inner, depth) in (1..40_usize, 1..100_usize, 1..300_usize),
        (ty, biased, each_row) in (types(), any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let x = values(seed, rows * depth);
        let weight = Weight::new(ty, &values(seed ^ 1, 2 * inner * depth));
        let bias = values(seed ^ 2, 2 * inner * if each_row { rows } else { 1 });
        let bias = biased.then_some(&bias[..]);
        let epilogue = Epilogue { bias, ..Epilogue::default() };
        let both = finish(&product(&x, &weight.rounded(), depth), 2 * inner, &epilogue);
        let gate = |both: &[f64]| -> Vec<f64> {
            let (hidden, gate) = both.split_at(inner);
            hidden.iter().zip(gate).map(|(h, g)| h * activate(Activation::Gelu, *g)).collect()
        };
        let want: Vec<f64> = both.chunks_exact(2 * inner).flat_map(gate).collect();
        let packed = Packed::pack_geglu(weight.stored(), inner, depth, Arithmetic::F32);
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; rows * inner];
            geglu(isa, &mut out, &x, &packed, bias);
            assert_close(&out, &want, 2e-6, &isa.to_string());
        }
    }

    #[test]
    fn conv_is_a_product_with_what_lies_around_each_pixel(
        (batch, rows, width) in (1..3_usize, 1..12_usize, 1..12_usize),
        (inputs, outputs) in (1..40_usize, 1..70_usize),
        (kernel, stride) in (prop_oneof![Just(1_usize), Just(3)], 1..3_usize),
        (ty, activation, residual) in (types(), activations(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let x = values(seed, batch * rows * width * inputs);
        let depth = inputs * kernel * kernel;
        let weight = Weight::new(ty, &values(seed ^ 1, outputs * depth));
        let bias = values(seed ^ 2, batch * outputs);
        let gathered = taps(&x, [batch, rows, width, inputs], kernel, stride);
        let added = values(seed ^ 3, gathered.len() / depth * outputs);
        let epilogue =
            Epilogue { bias: Some(&bias), activation, residual: residual.then_some(&added) };
        let want = finish(&product(&gathered, &weight.rounded(), depth), outputs, &epilogue);
        let conv = Conv::pack(weight.stored(), [outputs, inputs, kernel, kernel], stride);
        let band = Band { batch, rows, width, first_row: 0, channels: inputs, body: &x, above: &[], below: &[] };
        for isa in Isa::available() {
            assert_close(&run_conv(isa, &band, &conv, &epilogue), &want, 2e-6, &isa.to_string());
        }
    }

    #[test]
    fn winograd_is_a_convolution_to_its_rounding(
        (batch, rows, width) in (1..3_usize, 1..23_usize, 1..23_usize),
        (inputs, outputs) in (1..300_usize, 1..70_usize),
        (ty, activation, residual) in (types(), activations(), any::<bool>()),
        threads in 1..4_usize,
        seed in any::<u64>(),
    ) {
        let x = values(seed, batch * rows * width * inputs);
        let weight = Weight::new(ty, &values(seed ^ 1, outputs * inputs * 9));
        let bias = values(seed ^ 2, batch * outputs);
        let gathered = taps(&x, [batch, rows, width, inputs], 3, 1);
        let added = values(seed ^ 3, batch * rows * width * outputs);
        let epilogue =
            Epilogue { bias: Some(&bias), activation, residual: residual.then_some(&added) };
        let want = finish(&product(&gathered, &weight.rounded(), 9 * inputs), outputs, &epilogue);
        let channels = inputs;
        let band =
            Band { batch, rows, width, first_row: 0, channels, body: &x, above: &[], below: &[] };
        for (method, arithmetic, tolerance) in [
            (Method::Winograd2, Arithmetic::F32, 3e-6),
            (Method::Winograd4, Arithmetic::F32, 1.5e-5),
            (Method::WinogradBySize, Arithmetic::F32, 1.5e-5),
            (Method::Winograd2, Arithmetic::Bf16, 2e-2),
        ] {
            let conv = Conv::pack(weight.stored(), [outputs, inputs, 3, 3], 1).by(method);
            let conv = conv.in_numbers(arithmetic);
            let has = |isa: &Isa| arithmetic == Arithmetic::F32 || isa.has_bf16();
            for isa in Isa::available().into_iter().filter(has) {
                let got = with_threads(threads, || run_conv(isa, &band, &conv, &epilogue));
                let what = format!("{method:?}, {arithmetic:?}, {isa}");
                assert_close(&got, &want, tolerance, &what);
            }
        }
    }

    #[test]
    fn a_band_comes_out_as_from_the_whole_image(
        (batch, width, inputs, outputs) in (1..3_usize, 1..20_usize, 1..100_usize, 1..70_usize),
        (above, rows, below) in (0..8_usize, 1..9_usize, 0..8_usize),
        (kernel, stride, method) in prop_oneof![
            (Just(1), 1..3_usize, Just(Method::Direct)),
            (Just(3), 1..3_usize, Just(Method::Direct)),
            (Just(3), Just(1), Just(Method::Winograd2)),
        ],
        threads in 1..4_usize,
        seed in any::<u64>(),
    ) {
        // A stride counts from the band's first row.
        let [above, rows, below] = [above, rows, below].map(|count| count * stride);
        let height = above + rows + below;
        let x = values(seed, batch * height * width * inputs);
        let weight = values(seed ^ 1, outputs * inputs * kernel * kernel);
        let conv = Conv::pack(Stored::F32(&weight), [outputs, inputs, kernel, kernel], stride);
        let conv = conv.by(method);
        let cut = |values: &[f32], height: usize, row: usize, rows: std::ops::Range<usize>| {
            let images = values.chunks_exact(height * row);
            images.flat_map(|x| x[rows.start * row..rows.end * row].to_vec()).collect::<Vec<_>>()
        };
        let pad = kernel / 2;
        let take = |rows| cut(&x, height, width * inputs, rows);
        let body = take(above..above + rows);
        let before = if above > 0 { take(above - pad..above) } else { Vec::new() };
        let end = above + rows;
        let after = if below > 0 { take(end..end + pad) } else { Vec::new() };
        let channels = inputs;
        let whole = Band { batch, rows: height, width, first_row: 0, channels, body: &x, above: &[], below: &[] };
        let band = Band { batch, rows, width, first_row: above, channels, body: &body, above: &before, below: &after };
        for isa in Isa::available() {
            let epilogue = Epilogue::default();
            let whole = with_threads(threads, || run_conv(isa, &whole, &conv, &epilogue));
            let row = conv.output_length(width) * outputs;
            let want = cut(&whole, height / stride, row, above / stride..end / stride);
            assert_same(&run_conv(isa, &band, &conv, &epilogue), &want, &isa.to_string());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn parts_of_a_weight_give_its_columns_and_summands_of_them(
        (rows, outputs, depth) in (1..20_usize, 2..150_usize, 2..200_usize),
        (column, row) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        (ty, int8) in (types(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let arithmetic = if int8 { Arithmetic::Int8 } else { Arithmetic::F32 };
        let x = values(seed, rows * depth);
        let weight = Weight::new(ty, &values(seed ^ 1, outputs * depth));
        let (column, row) = (column.index(outputs - 1) + 1, row.index(depth - 1) + 1);
        let whole = Packed::pack(weight.stored(), outputs, depth, arithmetic);
        // Two stretches of columns with a gap between them, as keys and values of some heads are.
        let stretches = [0..column / 2, column..outputs];
        let (all_rows, all_columns) = (0..depth, 0..outputs);
        let some = whole.part(&stretches, std::slice::from_ref(&all_rows));
        let summands = [0..row, row..depth].map(|part| (part.clone(), whole.part(std::slice::from_ref(&all_columns), &[part])));
        for isa in Isa::available() {
            let all = run_linear(isa, &x, &whole, &Epilogue::default());
            let of_stretches = |line: &[f32]| {
                stretches.iter().flat_map(|range| line[range.clone()].to_vec()).collect::<Vec<_>>()
            };
            let want: Vec<f32> = all.chunks_exact(outputs).flat_map(of_stretches).collect();
            assert_same(&run_linear(isa, &x, &some, &Epilogue::default()), &want, &isa.to_string());
            let mut sum = vec![0.0; rows * outputs];
            for (part, weight) in &summands {
                let x: Vec<f32> =
                    x.chunks_exact(depth).flat_map(|line| line[part.clone()].to_vec()).collect();
                let summand = run_linear(isa, &x, weight, &Epilogue::default());
                sum.iter_mut().zip(summand).for_each(|(sum, summand)| *sum += summand);
            }
            let all: Vec<f64> = all.into_iter().map(f64::from).collect();
            // Parts of a row have a scale each.
            let tolerance = if int8 { 0.05 } else { 1e-5 };
            assert_close(&sum, &all, tolerance, &isa.to_string());
        }
    }

    #[test]
    fn parts_of_gates_and_convolutions_are_the_wholes(
        (pixels, channels, inner) in (1..6_usize, 2..40_usize, 2..90_usize),
        (from, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        seed in any::<u64>(),
    ) {
        let x = values(seed, pixels * pixels * channels);
        let (from, to) = (from.index(inner), to.index(inner));
        let some = from.min(to)..from.max(to) + 1;
        let cut = |all: &[f32]| -> Vec<f32> {
            all.chunks_exact(inner).flat_map(|line| line[some.clone()].to_vec()).collect()
        };
        let weight = values(seed ^ 1, 2 * inner * channels);
        let gates = Packed::pack_geglu(Stored::F32(&weight), inner, channels, Arithmetic::F32);
        let weight = values(seed ^ 2, inner * channels * 9);
        let conv = Conv::pack(Stored::F32(&weight), [inner, channels, 3, 3], 1);
        let (rows, width) = (pixels, pixels);
        let band = Band { batch: 1, rows, width, first_row: 0, channels, body: &x, above: &[], below: &[] };
        for isa in Isa::available() {
            let run = |gates: &Packed| {
                let mut out = vec![f32::NAN; pixels * pixels * gates.outputs()];
                geglu(isa, &mut out, &x, gates, None);
                out
            };
            let (columns, all) = (some.clone(), 0..channels);
            let part = gates.part(&[columns], &[all]);
            assert_same(&run(&part), &cut(&run(&gates)), &isa.to_string());
            let epilogue = Epilogue::default();
            let all = run_conv(isa, &band, &conv, &epilogue);
            let part = conv.part(some.clone(), 0..channels);
            assert_same(&run_conv(isa, &band, &part, &epilogue), &cut(&all), &isa.to_string());
        }
    }
}

#[test]
fn weights_keep_their_stored_type() {
    let weight = Weight::new(Type::F16, &values(1, 64 * 100));
    assert_eq!(Packed::pack(weight.stored(), 64, 100, Arithmetic::F32).bytes(), 2 * 64 * 100);
}

#[test]
fn no_rows_are_no_work() {
    let packed = Packed::pack(Stored::F32(&[1.0; 12]), 3, 4, Arithmetic::F32);
    for isa in Isa::available() {
        assert!(run_linear(isa, &[], &packed, &Epilogue::default()).is_empty());
    }
}
