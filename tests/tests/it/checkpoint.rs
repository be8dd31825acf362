//! Checkpoint folders as users have them: variants, shards, types, and every way to be broken.

use protocol::job::Dtype;
use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileDtype, SafeTensors};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tests::fixture::{self, edit_json};
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

struct Folder {
    _scratch: tempfile::TempDir,
    path: PathBuf,
}

/// A copy of tiny-sdxl to break.
fn folder() -> Folder {
    let scratch = tempfile::tempdir().unwrap();
    let path = fixture::variant(&fixture::golden("models/tiny-sdxl"), scratch.path());
    Folder { _scratch: scratch, path }
}

impl Folder {
    fn load(&self) -> Result<Checkpoint, String> {
        self.load_as(Dtype::Auto)
    }

    fn load_as(&self, dtype: Dtype) -> Result<Checkpoint, String> {
        Checkpoint::load(&ModelFiles::Folder(self.path.clone()), dtype)
            .map_err(|error| error.to_string())
    }

    fn refusal(&self) -> String {
        self.load().expect_err("the checkpoint is refused")
    }

    fn edit(&self, file: &str, key: &str, value: serde_json::Value) {
        edit_json(&self.path.join(file), |config| config[key] = value);
    }
}

type Tensors = BTreeMap<String, (FileDtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn change(folder: &Folder, change: impl FnOnce(&mut Tensors)) {
    let path = folder.path.join(UNET);
    let mut tensors = read(&path);
    change(&mut tensors);
    write(&path, &tensors);
}

fn assert_names(refusal: &str, words: &[&str]) {
    for word in words {
        assert!(refusal.contains(word), "{refusal:?} does not name {word:?}");
    }
}

#[test]
fn the_fp16_variant_and_shards_are_the_same_model() {
    let plain = folder().load().unwrap();
    let variant = folder();
    let fp16 = variant.path.join("unet/diffusion_pytorch_model.fp16.safetensors");
    fs::rename(variant.path.join(UNET), fp16).unwrap();
    assert_eq!(variant.load().unwrap().card(), plain.card());

    let sharded = folder();
    let tensors = read(&sharded.path.join(UNET));
    fs::remove_file(sharded.path.join(UNET)).unwrap();
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", part + 1);
        let half: Tensors = tensors.clone().into_iter().skip(part).step_by(2).collect();
        map.extend(half.keys().map(|tensor| (tensor.clone(), json!(name))));
        write(&sharded.path.join("unet").join(name), &half);
    }
    let index = sharded.path.join(format!("{UNET}.index.json"));
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_eq!(sharded.load().unwrap().card(), plain.card());

    fs::remove_file(sharded.path.join("unet/diffusion_pytorch_model-00002-of-00002.safetensors"))
        .unwrap();
    assert_names(&sharded.refusal(), &["index.json", "-00002-of-00002", "not there"]);
}

#[test]
fn a_shard_that_does_not_lie_beside_its_index_is_refused() {
    let folder = folder();
    let weights = folder.path.join(UNET);
    fs::copy(&weights, folder.path.join("outside.safetensors")).unwrap();
    fs::remove_file(&weights).unwrap();
    let index = folder.path.join(format!("{UNET}.index.json"));
    let outside = folder.path.join("outside.safetensors").display().to_string();
    for name in [json!("../outside.safetensors"), json!(outside), json!(".."), json!(""), json!(5)]
    {
        let map = json!({"weight_map": {"conv_in.bias": name}});
        fs::write(&index, map.to_string()).unwrap();
        assert_names(&folder.refusal(), &["index.json", "`conv_in.bias`", &name.to_string()]);
    }
}

#[test]
fn weights_are_held_in_the_type_asked_for() {
    let folder = folder();
    let [auto, f32, bf16] =
        [Dtype::Auto, Dtype::F32, Dtype::Bf16].map(|dtype| folder.load_as(dtype).unwrap());
    assert_eq!(auto.card().dtype, Dtype::F16);
    assert_eq!(f32.card().dtype, Dtype::F32);
    assert_eq!(bf16.card().dtype, Dtype::Bf16);
    assert!(f32.card().weight_bytes > auto.card().weight_bytes * 3 / 2);
    assert_eq!(bf16.card().weight_bytes, auto.card().weight_bytes);
}

#[test]
fn other_weights_are_another_model() {
    let plain = folder().load().unwrap();
    let other = folder();
    change(&other, |tensors| {
        tensors.get_mut("conv_in.weight").unwrap().2[0] ^= 1;
    });
    assert_ne!(other.load().unwrap().card().digest, plain.card().digest);
}

#[test]
fn a_missing_file_is_named() {
    for file in ["model_index.json", "unet/config.json", "tokenizer/merges.txt", UNET] {
        let folder = folder();
        fs::remove_file(folder.path.join(file)).unwrap();
        let name = Path::new(file).file_stem().unwrap().to_str().unwrap();
        assert_names(&folder.refusal(), &[name, "missing"]);
    }
}

#[test]
fn a_truncated_weights_file_names_the_tensor() {
    let folder = folder();
    let path = folder.path.join(UNET);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    assert_names(&folder.refusal(), &[UNET, "tensor `", "truncated"]);
    fs::write(&path, &bytes[..4]).unwrap();
    assert_names(&folder.refusal(), &[UNET, "corrupt"]);
    fs::write(&path, [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()).unwrap();
    assert_names(&folder.refusal(), &[UNET, "corrupt", "header"]);
    let mut garbage = bytes.clone();
    garbage[8..64].fill(b'x');
    fs::write(&path, garbage).unwrap();
    assert_names(&folder.refusal(), &[UNET, "corrupt"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let missing = folder();
    change(&missing, |tensors| drop(tensors.remove("mid_block.resnets.0.conv1.weight")));
    assert_names(&missing.refusal(), &["`mid_block.resnets.0.conv1.weight`", "missing"]);

    let reshaped = folder();
    change(&reshaped, |tensors| {
        tensors.get_mut("conv_in.weight").unwrap().1 = vec![4, 32, 3, 3];
    });
    assert_names(&reshaped.refusal(), &["`conv_in.weight`", "[4, 32, 3, 3]", "[32, 4, 3, 3]"]);

    let retyped = folder();
    change(&retyped, |tensors| tensors.get_mut("conv_in.weight").unwrap().0 = FileDtype::I16);
    assert_names(&retyped.refusal(), &["`conv_in.weight`", "I16", "F32, F16, BF16"]);

    let added = folder();
    change(&added, |tensors| {
        let spare = tensors["conv_in.bias"].clone();
        tensors.insert("down_blocks.0.adapter.bias".to_owned(), spare);
    });
    assert_names(&added.refusal(), &["`down_blocks.0.adapter.bias`", "not supported"]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("model_index.json", "_class_name", json!("FluxPipeline"), "StableDiffusionXLPipeline"),
        ("model_index.json", "requires_aesthetics_score", json!(true), "false"),
        ("unet/config.json", "act_fn", json!("mish"), "silu"),
        ("unet/config.json", "time_cond_proj_dim", json!(256), "null"),
        ("unet/config.json", "conv_in_kernel", json!(5), "3"),
        (
            "unet/config.json",
            "down_block_types",
            json!(["SimpleCrossAttnDownBlock2D"]),
            "DownBlock2D",
        ),
        ("unet/config.json", "layers_per_block", json!([1, 2]), "a positive integer"),
        ("unet/config.json", "layers_per_block", json!(17), "up to 16"),
        ("unet/config.json", "transformer_layers_per_block", json!(33), "up to 32"),
        ("unet/config.json", "cross_attention_dim", json!(65537), "up to 65536"),
        ("unet/config.json", "future_feature", json!(1), "unknown"),
        ("vae/config.json", "block_out_channels", json!(vec![32; 9]), "up to 8"),
        ("vae/config.json", "latents_mean", json!([0.1]), "null"),
        ("vae/config.json", "up_block_types", json!(["Odd"]), "UpDecoderBlock2D"),
        ("text_encoder/config.json", "hidden_act", json!("relu"), "quick_gelu"),
        ("scheduler/scheduler_config.json", "prediction_type", json!("sample"), "epsilon"),
        ("scheduler/scheduler_config.json", "_class_name", json!("KarrasVeScheduler"), "Euler"),
    ];
    for (file, key, value, supported) in cases {
        let folder = folder();
        folder.edit(file, key, value.clone());
        let refusal = folder.refusal();
        assert_names(&refusal, &[file, key, supported]);
    }
}

#[test]
fn keys_that_are_switched_off_pass() {
    let folder = folder();
    folder.edit("unet/config.json", "future_feature", json!(null));
    folder.edit("unet/config.json", "other_feature", json!(false));
    folder.edit("vae/config.json", "_note", json!("to self"));
    folder.load().unwrap();
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let files = ModelFiles::Folder(PathBuf::from("/nowhere/sdxl"));
    let refusal = Checkpoint::load(&files, Dtype::Auto).unwrap_err().to_string();
    assert_names(&refusal, &["/nowhere/sdxl", "model_index.json", "missing"]);
}
