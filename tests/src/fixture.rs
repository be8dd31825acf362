//! The golden cases: what stock diffusers and the public DistriFusion code computed.

pub mod given;

use protocol::job::{Decode, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup, Wire};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One case of `single.json`, `emoji.json` or `distri.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Its name, which is its file's.
    pub name: String,
    /// The checkpoint it was made with.
    pub model: String,
    /// The scheduler, by the name the golden cases use.
    pub scheduler: String,
    /// Sampler steps.
    pub steps: u32,
    /// Guidance scale.
    pub guidance: f32,
    /// Image height in pixels.
    pub height: u32,
    /// Image width in pixels.
    pub width: u32,
    /// Seed of torch's CPU generator.
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// The negative prompt.
    pub negative: Option<String>,
    /// Ranks; 1 in `single.json`.
    #[serde(default = "one")]
    pub n: u16,
    /// The reference's name of the mode.
    #[serde(default)]
    pub mode: String,
    /// Synchronous calls after the first.
    #[serde(default)]
    pub warmup: u32,
    /// Whether guidance's branches are on different ranks.
    #[serde(default)]
    pub split_batch: bool,
    /// `patch` unless it says otherwise.
    #[serde(default)]
    pub parallelism: Option<String>,
    /// How the image is cut, if parallelism is `naive_patch`.
    #[serde(default)]
    pub split_scheme: Option<String>,
}

fn one() -> u16 {
    1
}

/// A folder of the golden cases.
#[must_use]
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(path)
}

/// The cases that `list` (`single.json`, ...) describes.
///
/// # Panics
/// If the fixture is damaged.
#[must_use]
pub fn cases(list: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(golden(list)).expect("the fixture is in the repository");
    serde_json::from_str(&text).expect("the fixture lists cases")
}

/// The case called `name` in `list`.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn case(list: &str, name: &str) -> Case {
    let known = cases(list).into_iter().find(|case| case.name == name);
    known.unwrap_or_else(|| panic!("{list} has no case {name}"))
}

/// The cases of `list` that have no test of their own: a fixture that grows is checked whole before
/// anyone names what is new.
///
/// # Panics
/// If the fixture is damaged.
#[must_use]
pub fn cases_beyond(list: &str, named: &[&str]) -> Vec<Case> {
    let beyond = |case: &Case| !named.contains(&case.name.as_str());
    cases(list).into_iter().filter(beyond).collect()
}

impl Case {
    /// The sampler to ask for.
    ///
    /// # Panics
    /// If the case names a sampler that the golden cases do not know.
    #[must_use]
    pub fn sampler(&self) -> Scheduler {
        match self.scheduler.as_str() {
            "ddim" => Scheduler::Ddim,
            "euler" | "euler_trailing" => Scheduler::Euler,
            "euler_a" => Scheduler::EulerA,
            "dpmpp_2m" => Scheduler::Dpmpp2m,
            "dpmpp_2m_karras" => Scheduler::Dpmpp2mKarras,
            "unipc" => Scheduler::Unipc,
            "heun" => Scheduler::Heun,
            "lcm" => Scheduler::Lcm,
            "pndm" => Scheduler::Pndm,
            other => panic!("unknown golden scheduler {other}"),
        }
    }

    /// Our name of its mode; `single.json` has none.
    fn our_mode(&self) -> Mode {
        match self.mode.as_str() {
            "corrected_async_gn" => Mode::Corrected,
            "stale_gn" => Mode::Stale,
            "sync_gn" => Mode::SyncGn,
            "separate_gn" => Mode::Separate,
            "no_sync" => Mode::NoSync,
            "full_sync" | "" => Mode::FullSync,
            other => panic!("unknown golden mode {other}"),
        }
    }

    /// Our name of how its ranks share the work.
    fn our_parallelism(&self) -> Parallelism {
        match (self.parallelism.as_deref(), self.split_scheme.as_deref()) {
            (None | Some("patch"), _) => Parallelism::Patch,
            (Some("tensor"), _) => Parallelism::Tensor,
            (Some("naive_patch"), Some("row")) => Parallelism::NaiveRow,
            (Some("naive_patch"), Some("col")) => Parallelism::NaiveCol,
            (Some("naive_patch"), Some("alternate")) => Parallelism::NaiveAlternate,
            other => panic!("unknown golden parallelism {other:?}"),
        }
    }

    /// What to render.
    #[must_use]
    pub fn spec(&self) -> JobSpec {
        JobSpec {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            scheduler: self.sampler(),
            warmup: Warmup::Calls(self.warmup),
            parallelism: self.our_parallelism(),
            mode: self.our_mode(),
            gn_variance: if self.n > 1 { GnVariance::Reference } else { GnVariance::Population },
            wire: Wire::F32,
            probe: false,
            profile: false,
            loras: Vec::new(),
            init: None,
            decode: Decode::Whole,
        }
    }

    /// The checkpoint's folder, or a copy of it in `scratch` whose scheduler says what the case's
    /// did: trailing timesteps, or where diffusers 0.24, which made the DistriFusion cases, ends
    /// DPM-Solver (later versions end at zero).
    ///
    /// # Panics
    /// If the folder cannot be read or the copy cannot be written.
    #[must_use]
    pub fn model(&self, scratch: &Path) -> PathBuf {
        let original = if self.model == "emoji-xl" {
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/emoji-xl")
        } else {
            golden("models").join(&self.model)
        };
        let (key, value) = match (self.scheduler.as_str(), self.n) {
            ("euler_trailing", _) => ("timestep_spacing", "trailing"),
            ("dpmpp_2m", 2..) => ("final_sigmas_type", "sigma_min"),
            _ => return original,
        };
        let copy = variant(&original, scratch);
        edit_json(&copy.join("scheduler/scheduler_config.json"), |config| {
            config[key] = value.into();
        });
        copy
    }

    /// What the case's file holds, by key.
    ///
    /// # Panics
    /// If the fixture is damaged.
    #[must_use]
    pub fn tensors(&self, folder: &str) -> BTreeMap<String, Values> {
        read_safetensors(&golden(folder).join(format!("{}.safetensors", self.name)))
    }
}

/// A copy of the checkpoint `original` in `scratch` that a test may change.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn variant(original: &Path, scratch: &Path) -> PathBuf {
    let name = original.file_name().expect("checkpoints are folders with names");
    let copy = scratch.join(name);
    copy_folder(original, &copy).expect("the scratch folder takes a copy");
    copy
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::write(&target, std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Changes a JSON file.
///
/// # Panics
/// If it cannot be read or written.
pub fn edit_json(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let text = std::fs::read_to_string(path).expect("the file is there");
    let mut json = serde_json::from_str(&text).expect("the file is JSON");
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("the copy may be written");
}

/// A tensor of a fixture, its values widened to f64 (token ids too).
#[derive(Clone, Debug)]
pub struct Values {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Vec<f64>,
}

impl Values {
    /// The values of the `index`-th part along the first dimension.
    #[must_use]
    pub fn part(&self, index: usize) -> &[f64] {
        let len = self.values.len() / self.shape[0];
        &self.values[index * len..(index + 1) * len]
    }
}

/// Reads a safetensors file of f32 and i64 tensors.
///
/// # Panics
/// If it is damaged.
#[must_use]
pub fn read_safetensors(path: &Path) -> BTreeMap<String, Values> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                safetensors::Dtype::F32 => {
                    let (words, _) = view.data().as_chunks::<4>();
                    words.iter().map(|word| f64::from(f32::from_le_bytes(*word))).collect()
                }
                safetensors::Dtype::I64 => {
                    let (words, _) = view.data().as_chunks::<8>();
                    #[expect(clippy::cast_precision_loss, reason = "token ids are small")]
                    words.iter().map(|word| i64::from_le_bytes(*word) as f64).collect()
                }
                other => panic!("{}: {name} is {other:?}", path.display()),
            };
            (name, Values { shape: view.shape().to_vec(), values })
        })
        .collect()
}
