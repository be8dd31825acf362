//! Files of the checkpoints that tests have, and identities.

use super::Seed;
use crate::fixture::golden;
use crate::fuzzing::checkpoint::shard;
use crate::fuzzing::tokenizer::BETWEEN;
use protocol::identity::{Authority, Request, Role, Subject, Terms, Tokens};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn all() -> Vec<Seed> {
    let models = [
        ("sdxl", golden("models/tiny-sdxl")),
        ("sd15", golden("models/tiny-sd15")),
        ("emoji", Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/emoji-xl")),
    ];
    let mut seeds = weights();
    for (model, folder) in &models {
        for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            if let Ok(config) = fs::read(folder.join(part).join("config.json")) {
                seeds.push(Seed::new("config", format!("{model}-{part}"), config));
            }
        }
        let file = folder.join("scheduler/scheduler_config.json");
        seeds.push(Seed::new("scheduler", *model, read(&file)));
    }
    seeds.extend(schedulers(&models[0].1));
    seeds.extend(["tokenizer", "tokenizer_2"].map(|folder| tokenizer(&models[0].1, folder)));
    seeds
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).expect("the fixture is in the repository")
}

fn read_json(file: &Path) -> Map<String, Value> {
    serde_json::from_slice(&read(file)).expect("the fixture is JSON")
}

/// Diffusers' other classes, with what each of them alone may say.
fn schedulers(model: &Path) -> Vec<Seed> {
    let original = read_json(&model.join("scheduler/scheduler_config.json"));
    let classes = [
        (
            "ddim",
            json!({"_class_name": "DDIMScheduler", "clip_sample": true, "set_alpha_to_one": false,
            "rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}),
        ),
        ("euler-a", json!({"_class_name": "EulerAncestralDiscreteScheduler"})),
        (
            "dpmpp",
            json!({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true,
            "final_sigmas_type": "sigma_min", "lambda_min_clipped": "-Infinity"}),
        ),
        (
            "unipc",
            json!({"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "linspace"}),
        ),
        ("heun", json!({"_class_name": "HeunDiscreteScheduler", "beta_schedule": "linear"})),
        (
            "lcm",
            json!({"_class_name": "LCMScheduler", "original_inference_steps": 50,
            "timestep_scaling": 10.0}),
        ),
        (
            "pndm",
            json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true,
            "timestep_spacing": "trailing"}),
        ),
    ];
    let seed = |(name, keys): (&str, Value)| {
        let mut config = original.clone();
        config.extend(keys.as_object().cloned().unwrap_or_default());
        // Tables of a thousand timesteps say no more than short ones, and take longer.
        config.insert("num_train_timesteps".to_owned(), json!(100));
        Seed::new("scheduler", name, Value::Object(config).to_string())
    };
    classes.into_iter().map(seed).collect()
}

/// The first merges of a real tokenizer, and the tokens that they need.
fn tokenizer(model: &Path, folder: &str) -> Seed {
    const MERGES: usize = 24;
    let file = |name: &str| -> PathBuf { model.join(folder).join(name) };
    let merges = String::from_utf8(read(&file("merges.txt"))).expect("merges are text");
    let merges: Vec<&str> = merges.lines().take(1 + MERGES).collect();
    let merged: Vec<String> = merges.iter().skip(1).map(|merge| merge.replace(' ', "")).collect();
    let mut vocab = read_json(&file("vocab.json"));
    vocab.retain(|token, _| {
        let letter = token.strip_suffix("</w>").unwrap_or(token);
        letter.len() == 1 || token.starts_with("<|") || merged.contains(token)
    });
    let text = [
        Value::Object(vocab).to_string().into_bytes(),
        merges.join("\n").into_bytes(),
        read(&file("tokenizer_config.json")),
        read(&file("special_tokens_map.json")),
        "a red Apple's 12 leaves".into(),
    ];
    Seed::new("tokenizer", folder, text.join(&BETWEEN))
}

/// Weights files, whole and damaged, and indices.
fn weights() -> Vec<Seed> {
    let whole = shard();
    let index = |map: Value| json!({"metadata": {"total_size": 46}, "weight_map": map}).to_string();
    let files = [
        ("whole", whole.clone()),
        ("truncated", whole[..whole.len() - 3].to_vec()),
        ("header-only", whole[..64].to_vec()),
        ("metadata", with_header(&json!({"__metadata__": {"format": "pt"}}).to_string())),
        (
            "index",
            index(json!({"conv_in.bias": "one.safetensors", "ids": "two.safetensors"})).into(),
        ),
        ("index-missing", index(json!({"conv_in.bias": "three.safetensors"})).into()),
    ];
    files.map(|(name, bytes)| Seed::new("safetensors", name, bytes)).into()
}

fn with_header(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

/// An authority, a member, a request, a token, and the record of it.
pub(super) fn identities() -> Vec<Seed> {
    const NOW: u64 = 1_800_000_000;
    let random = "the system gives random numbers";
    let authority = Authority::new(NOW).expect(random);
    let worker = authority.credentials(&Subject::new(Role::Worker, "host-7", NOW)).expect(random);
    let request = Request::new().expect(random);
    let mut tokens = Tokens::default();
    let terms = Terms { role: Role::Worker, expires: NOW + 600, uses: 8 };
    let token = tokens.make(terms, authority.fingerprint(), NOW).expect(random);
    let pem = worker.certificates();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it was made just now");
    vec![
        Seed::new("identity", "authority", authority.certificate().to_owned() + &authority.key()),
        Seed::new("identity", "worker", pem.to_owned() + worker.key()),
        Seed::new("identity", "certificate", &*der),
        Seed::new("identity", "request", request.text()),
        Seed::new("identity", "token", token.to_string()),
        Seed::new("identity", "tokens", serde_json::to_string(&tokens).expect("records are JSON")),
    ]
}
