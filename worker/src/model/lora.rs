//! LoRA: low-rank changes of weights, of one or several files, as they are added to a model's layers.
//!
//! A layer's weight stays as it is packed, and the product of its input by the two factors is added to its own
//! ([`Addend`](super::nn::low_rank::Addend)): the base model is neither copied nor changed, whatever type it is held in.

mod names;

use super::files::Blob;
use super::weights::Weights;
use super::{Error, Result};
use names::Role;
pub use names::{Part, aliases};
use std::collections::{BTreeMap, BTreeSet};

/// Where diffusers writes what PEFT says of the changes, as JSON.
const NOTES: &str = "lora_adapter_metadata";

/// A LoRA file and how much of it is wanted.
#[derive(Debug)]
pub struct Source {
    /// What people call it.
    pub name: String,
    /// What its changes are multiplied by.
    pub scale: f32,
    /// It.
    pub blob: Blob,
}

/// The change of one layer's weight by one file: `scale * up * down`.
#[derive(Debug)]
pub struct Delta {
    /// How many rows `down` has.
    pub rank: usize,
    /// [rank, inputs], of a convolution [rank, inputs, kernel, kernel].
    pub down: Vec<f32>,
    /// [outputs, rank], the scale multiplied in.
    pub up: Vec<f32>,
}

/// What a layer's weight is: [outputs, inputs, kernel, kernel], a linear layer's kernel being 1.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Channels of its result.
    pub outputs: usize,
    /// Channels of its input.
    pub inputs: usize,
    /// Its kernel's side.
    pub kernel: usize,
}

/// All changes that a job asks for, by the layer that takes them.
#[derive(Debug)]
pub struct Deltas {
    files: Vec<LoraFile>,
    part: Part,
    layers_per_block: usize,
}

#[derive(Debug)]
struct LoraFile {
    name: String,
    scale: f32,
    weights: Weights,
    /// What PEFT says of the changes beside their tensors: null, or by part and name.
    notes: serde_json::Value,
    modules: BTreeMap<Module, Keys>,
    taken: BTreeSet<Module>,
}

/// A layer, as a file names it.
type Module = (Part, String);

/// The tensors of a layer.
#[derive(Clone, Debug, Default)]
struct Keys {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

impl Deltas {
    /// The changes in `sources`, for a UNet of so many layers in each block.
    ///
    /// # Errors
    /// Names the file and its tensor that is corrupt or of a kind that is not supported.
    pub fn read(sources: Vec<Source>, layers_per_block: usize) -> Result<Self> {
        let files = sources.into_iter().map(LoraFile::read).collect::<Result<_>>()?;
        Ok(Self { files, part: Part::UNet, layers_per_block })
    }

    /// From now on layers of `part` are asked for.
    pub fn enter(&mut self, part: Part) {
        self.part = part;
    }

    /// What the layer at `path` takes.
    ///
    /// # Errors
    /// If the file's tensors are not of the layer's shape, or cannot be read.
    pub fn take(&mut self, path: &str, shape: Shape) -> Result<Vec<Delta>> {
        let aliases = aliases(self.part, path, self.layers_per_block);
        let mut deltas = Vec::new();
        for file in &mut self.files {
            for alias in &aliases {
                deltas.extend(file.take(&(self.part, alias.clone()), shape)?);
            }
        }
        Ok(deltas)
    }

    /// Checks that every change was taken.
    ///
    /// # Errors
    /// Names the first that no layer of the model takes.
    pub fn finish(&self) -> Result<()> {
        for file in &self.files {
            let left = file.modules.iter().find(|(module, _)| !file.taken.contains(*module));
            if let Some((_, keys)) = left {
                let keys = [&keys.down, &keys.up, &keys.alpha];
                let key = keys.into_iter().flatten().next().map_or("?", String::as_str);
                let cause =
                    format!("`{key}` belongs to no layer of this model: it was made for another");
                return Err(file.refuse(&cause));
            }
        }
        Ok(())
    }
}

impl LoraFile {
    fn read(source: Source) -> Result<Self> {
        let Source { name, scale, blob } = source;
        let weights = Weights::of_file(&format!("the LoRA file {name}"), blob).map_err(refused)?;
        let (notes, modules) = (serde_json::Value::Null, BTreeMap::new());
        let mut file = Self { name, scale, weights, notes, modules, taken: BTreeSet::new() };
        if let Some(text) = file.weights.note(NOTES) {
            let read = serde_json::from_str(text);
            file.notes = read.map_err(|error| file.refuse(&format!("its `{NOTES}`: {error}")))?;
        }
        file.find_modules()?;
        file.check_notes()?;
        Ok(file)
    }

    fn find_modules(&mut self) -> Result<()> {
        let mut modules: BTreeMap<Module, Keys> = BTreeMap::new();
        for key in self.weights.names() {
            let (module, role) = names::read(key).map_err(|cause| self.refuse(&cause))?;
            let keys = modules.entry(module).or_default();
            let place = match role {
                Role::Down => &mut keys.down,
                Role::Up => &mut keys.up,
                Role::Alpha => &mut keys.alpha,
            };
            if let Some(other) = place.replace(key.to_owned()) {
                return Err(self.refuse(&format!("`{other}` and `{key}` are of the same layer")));
            }
        }
        if modules.is_empty() {
            return Err(self.refuse("it holds no LoRA tensors"));
        }
        self.modules = modules;
        Ok(())
    }

    /// What PEFT says of the changes beside their tensors.
    fn check_notes(&self) -> Result<()> {
        for part in Part::ALL {
            for kind in ["use_dora", "use_rslora"] {
                if self.note(part, kind).is_some_and(|value| value != false) {
                    return Err(
                        self.refuse(&format!("its `{kind}` is set, which is not supported"))
                    );
                }
            }
        }
        Ok(())
    }

    /// What PEFT says of a part under `key`.
    fn note(&self, part: Part, key: &str) -> Option<serde_json::Value> {
        self.notes.get(format!("{}.{key}", part.name())).cloned()
    }

    fn take(&mut self, module: &Module, shape: Shape) -> Result<Option<Delta>> {
        let Some(keys) = self.modules.get(module) else { return Ok(None) };
        let (Some(down), Some(up)) = (&keys.down, &keys.up) else {
            let keys = [&keys.down, &keys.up, &keys.alpha];
            let key = keys.into_iter().flatten().next().map_or("?", String::as_str);
            return Err(self.refuse(&format!("`{key}` lacks the other tensors of its layer")));
        };
        let rank = self.weights.shape(down).and_then(|dims| dims.first()).copied().unwrap_or(0);
        if rank == 0 {
            return Err(self.refuse(&format!("`{down}` is of rank {rank}")));
        }
        let Shape { outputs, inputs, kernel } = shape;
        let down = self.load(down, &[rank, inputs, kernel, kernel])?;
        let mut values = self.load(up, &[outputs, rank, 1, 1])?;
        #[expect(clippy::cast_precision_loss, reason = "ranks are far below 2^24")]
        let rows = rank as f32;
        let scale = self.scale * self.alpha(module, keys)?.map_or(1.0, |alpha| alpha / rows);
        values.iter_mut().for_each(|value| *value *= scale);
        self.taken.insert(module.clone());
        Ok(Some(Delta { rank, down, up: values }))
    }

    /// What the rank is divided into: in a tensor of the layer's, or in PEFT's notes.
    fn alpha(&self, (part, name): &Module, keys: &Keys) -> Result<Option<f32>> {
        if let Some(key) = &keys.alpha {
            let shape: &[usize] = if self.weights.shape(key) == Some(&[1]) { &[1] } else { &[] };
            let values = self.weights.load_f32(key, shape).map_err(refused)?;
            return Ok(values.first().copied());
        }
        let number = |value: &serde_json::Value| value.as_f64();
        if let Some(serde_json::Value::Object(pattern)) = self.note(*part, "alpha_pattern") {
            let fits = |key: &String| {
                let key = key.replace('.', "_");
                *name == key || name.ends_with(&format!("_{key}"))
            };
            if let Some(alpha) =
                pattern.iter().find(|(key, _)| fits(key)).and_then(|(_, v)| number(v))
            {
                return Ok(Some(narrowed(alpha)));
            }
        }
        let alpha = self.note(*part, "lora_alpha");
        Ok(alpha.as_ref().and_then(number).map(narrowed))
    }

    /// A factor of `shape`, or without the ones at its end.
    fn load(&self, key: &str, shape: &[usize; 4]) -> Result<Vec<f32>> {
        let flat = shape[2..] == [1, 1] && self.weights.shape(key).map(<[usize]>::len) == Some(2);
        let shape = if flat { &shape[..2] } else { &shape[..] };
        let found = self.weights.shape(key).unwrap_or_default();
        if found != shape {
            let cause = format!("`{key}` has the shape {found:?}, but the layer needs {shape:?}");
            return Err(self.refuse(&cause));
        }
        self.weights.load_f32(key, shape).map_err(refused)
    }

    fn refuse(&self, cause: &str) -> Error {
        Error::Refused(format!("the LoRA file {} cannot be used: {cause}", self.name))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "scales are f32 in the reference")]
fn narrowed(value: f64) -> f32 {
    value as f32
}

/// A file that cannot be read is the asker's, not the checkpoint's.
fn refused(error: Error) -> Error {
    match error {
        Error::Checkpoint(cause) => Error::Refused(cause),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::checkpoint::Checkpoint;
    use crate::model::files::ModelFiles;
    use protocol::job::Dtype;
    use safetensors::tensor::{Dtype as FileDtype, TensorView};
    use std::collections::HashMap;

    /// A file of these tensors, all zeros.
    fn blob(tensors: &[(&str, &[usize])], notes: Option<&str>) -> Blob {
        let views: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, shape)| {
                let values: usize = shape.iter().product();
                ((*name).to_owned(), shape.to_vec(), vec![0; 4 * values])
            })
            .collect();
        let views = views.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(FileDtype::F32, shape.clone(), bytes).unwrap())
        });
        let notes = notes
            .map(|notes| HashMap::from([("lora_adapter_metadata".to_owned(), notes.to_owned())]));
        let bytes = safetensors::serialize(views, notes).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        Blob::of(file).unwrap()
    }

    fn cause_of(tensors: &[(&str, &[usize])], notes: Option<&str>) -> String {
        let source = Source { name: "x".to_owned(), scale: 1.0, blob: blob(tensors, notes) };
        let checkpoint = Checkpoint::load(&ModelFiles::Builtin, Dtype::Auto).unwrap();
        checkpoint.with_loras(vec![source]).unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
        let [a, b] = ["lora_A", "lora_B"].map(|factor| format!("{q}.{factor}.weight"));
        let nowhere = "unet.mid_block.attentions.7.proj_in.lora_A.weight";
        let cause = cause_of(&[(nowhere, &[2, 8])], None);
        assert!(cause.contains(nowhere) && cause.contains("no layer"), "{cause}");
        let cause = cause_of(&[(&a, &[2, 7]), (&b, &[192, 2])], None);
        assert!(cause.contains(&a) && cause.contains("[2, 7]"), "{cause}");
        let cause = cause_of(&[(&a, &[2, 192])], None);
        assert!(cause.contains(&a) && cause.contains("lacks"), "{cause}");
        let cause =
            cause_of(&[(&a, &[2, 192]), (&b, &[192, 2])], Some(r#"{"unet.use_dora": true}"#));
        assert!(cause.contains("use_dora"), "{cause}");
        let cause = cause_of(&[(&a, &[2, 192]), (&b, &[192, 2])], Some(r#"{"unet.lora_alpha"#));
        assert!(cause.contains("lora_adapter_metadata"), "{cause}");
        for (key, kind) in [
            ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
            ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
            ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
            ("something.else", "unknown"),
        ] {
            let cause = cause_of(&[(key, &[1])], None);
            assert!(cause.contains(key) && cause.contains(kind), "{cause}");
        }
    }
}
