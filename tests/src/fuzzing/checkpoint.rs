//! Files of a checkpoint, which people download.

use candle_core::{Device, Tensor};
use protocol::job::Dtype;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::fs;
use std::path::{Component, Path};
use worker::model::clip::ClipConfig;
use worker::model::config::Config;
use worker::model::files::ModelFiles;
use worker::model::scheduler::{Scheduler, SchedulerConfig, SchedulerKind};
use worker::model::unet::config::UNetConfig;
use worker::model::vae::VaeConfig;
use worker::model::weights::Weights;

/// Weights: a safetensors file, or if it is JSON the index of shards. Every tensor of a file that opens is
/// as long as its shape says, and an index opens nothing outside its folder.
pub fn safetensors(data: &[u8]) {
    let scratch = tempfile::tempdir().expect("there is room for a file");
    if let Ok(index) = serde_json::from_slice::<Value>(data) {
        shards(scratch.path(), data, &index);
        return;
    }
    let stem = "unet/diffusion_pytorch_model";
    write(&scratch.path().join(format!("{stem}.safetensors")), data);
    match open(scratch.path()) {
        Ok(weights) => names(data).iter().for_each(|name| tensor(&weights, name, data.len())),
        Err(error) => assert!(error.contains(stem), "no file is named: {error}"),
    }
}

fn open(folder: &Path) -> Result<Weights, String> {
    let files = ModelFiles::Folder(folder.to_owned());
    let weights = Weights::open(&files, "unet", "diffusion_pytorch_model", (Dtype::Auto, None));
    weights.map_err(|error| error.to_string())
}

fn write(path: &Path, bytes: &[u8]) {
    let written = path.parent().map(fs::create_dir_all).transpose();
    written.and_then(|_| fs::write(path, bytes)).expect("there is room for a file");
}

/// The tensors that a file's header names.
fn names(file: &[u8]) -> Vec<String> {
    let header = serde_json::Deserializer::from_slice(&file[8..]).into_iter::<Value>().next();
    let header = header.and_then(Result::ok).expect("a header that was read is JSON");
    let names = header.as_object().into_iter().flat_map(|tensors| tensors.keys());
    names.filter(|name| *name != "__metadata__").cloned().collect()
}

fn tensor(weights: &Weights, name: &str, file_bytes: usize) {
    let shape = weights.shape(name).expect("a tensor of the header").to_vec();
    assert!(weights.load(name, &[&shape[..], &[1]].concat()).is_err(), "{name} has two shapes");
    match weights.load(name, &shape) {
        Ok(values) => {
            assert!(values.bytes() <= file_bytes, "{name} is longer than its file");
            assert_eq!(values.into_f32().len(), shape.iter().product::<usize>(), "{name}");
        }
        Err(error) => assert!(error.to_string().contains(name), "{name} is not named: {error}"),
    }
}

fn shards(folder: &Path, data: &[u8], index: &Value) {
    let shard = shard();
    for path in ["unet/one.safetensors", "unet/two.safetensors", "outside.safetensors"] {
        write(&folder.join(path), &shard);
    }
    write(&folder.join("unet/diffusion_pytorch_model.safetensors.index.json"), data);
    match open(folder) {
        Err(error) => assert!(error.contains("unet/"), "no file is named: {error}"),
        Ok(_) => {
            let map = index["weight_map"].as_object().expect("an index that was read has a map");
            let plain = |name: &&Value| {
                let mut parts = Path::new(name.as_str()?).components();
                matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
                    .then_some(())
            };
            let outside = map.values().find(|name| plain(name).is_none());
            assert_eq!(outside, None, "a shard outside the folder was read");
        }
    }
}

/// A small file of weights.
pub(super) fn shard() -> Vec<u8> {
    let bytes = [0; 24];
    let views = [
        ("conv_in.bias", FileDtype::F32, vec![2], 8),
        ("conv_in.weight", FileDtype::F16, vec![2, 3, 1, 1], 12),
        ("empty", FileDtype::F32, vec![0, 7], 0),
        ("ids", FileDtype::I64, vec![1, 3], 24),
        ("scale", FileDtype::BF16, vec![], 2),
    ];
    let view = |(name, dtype, shape, len): (&'static str, _, _, usize)| {
        (name, TensorView::new(dtype, shape, &bytes[..len]).expect("the sizes are right"))
    };
    safetensors::serialize(views.map(view), None).expect("a file of five tensors")
}

/// A key that no configuration has.
const STRANGE: &str = "frobnicate";

/// A configuration of any part: what is read has numbers that can be computed with, and a key more is
/// refused by name.
pub fn config(data: &[u8]) {
    let Ok(Value::Object(mut keys)) = serde_json::from_slice(data) else { return };
    let accepts = |bytes: &[u8]| [unet(bytes), vae(bytes), clip(bytes)];
    let accepted = accepts(data).map(|refusal| refusal.is_none());
    keys.insert(STRANGE.to_owned(), json!(3));
    let refusals = accepts(Value::Object(keys).to_string().as_bytes());
    for (accepted, refusal) in accepted.into_iter().zip(refusals) {
        let refusal = refusal.expect("every configuration refuses a strange key");
        assert!(!accepted || refusal.contains(STRANGE), "{refusal}");
    }
}

fn parse(bytes: &[u8]) -> Config {
    Config::parse("config.json", bytes).expect("it is an object")
}

fn refusal(error: &worker::model::Error) -> Option<String> {
    let text = error.to_string();
    assert!(text.starts_with("config.json: `"), "neither file nor key are named: {text}");
    Some(text)
}

fn unet(bytes: &[u8]) -> Option<String> {
    let read = match UNetConfig::read(&parse(bytes)) {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    let work = read.work();
    assert_eq!(work.cell, 1 << read.halvings());
    assert!(work.sites > 0 && work.cell_flop > 0 && work.held_values > 0, "{work:?}");
    assert!((1..=read.norm_groups).contains(&read.shards_max()), "{read:?}");
    assert!(read.norm_eps.is_finite() && read.time.freq_shift.is_finite(), "{read:?}");
    None
}

fn vae(bytes: &[u8]) -> Option<String> {
    let read = match VaeConfig::read(&parse(bytes)) {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    assert_eq!(read.factor().ilog2() as usize + 1, read.block_channels.len(), "{read:?}");
    assert!(read.bytes_per_pixel() > 0 && read.lowest_channels() > 0, "{read:?}");
    assert!(read.scaling_factor.is_normal(), "{read:?}");
    None
}

fn clip(bytes: &[u8]) -> Option<String> {
    let read = match ClipConfig::read(&parse(bytes)) {
        Ok(read) => read,
        Err(error) => return refusal(&error),
    };
    let tables = [read.vocabulary, read.tokens, read.inner, read.channels];
    let fit = tables.iter().all(|rows| rows.checked_mul(4 * read.channels).is_some());
    assert!(fit && read.channels.is_multiple_of(read.heads), "{read:?}");
    None
}

/// A scheduler's configuration: whatever sampler it and a number of steps make visits timesteps that the
/// model was trained at, and turns finite values into finite ones.
pub fn scheduler(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = SchedulerConfig::from_json(text) else { return };
    for kind in SchedulerKind::ALL {
        for steps in [1, 2, 7] {
            if let Ok(mut sampler) = config.build(*kind, steps) {
                let context = format!("{kind}, {steps} steps");
                sample(sampler.as_mut(), steps, &context).expect(&context);
            }
        }
    }
}

fn sample(sampler: &mut dyn Scheduler, steps: usize, context: &str) -> candle_core::Result<()> {
    let timesteps = sampler.timesteps().to_vec();
    assert!((steps..=2 * steps).contains(&timesteps.len()), "{context}: {timesteps:?}");
    let trained = |t: &f32| (0.0..100_000.0).contains(t);
    assert!(timesteps.iter().all(trained), "{context}: {timesteps:?}");
    let noise = || Tensor::new(&[0.5_f32, -1.5], &Device::Cpu);
    let mut latent = (noise()? * sampler.init_noise_sigma())?;
    for call in 0..timesteps.len() {
        let input = sampler.scale_model_input(call, &latent)?;
        latent = sampler.step(call, &noise()?, &latent, &mut || noise())?;
        for values in [input, latent.clone()] {
            let values = values.to_vec1::<f32>()?;
            assert!(values.iter().all(|value| value.is_finite()), "{context}, {call}: {values:?}");
        }
    }
    Ok(())
}
