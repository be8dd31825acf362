//! Weights: tensors of safetensors files, memory-mapped one by one and converted once at load.

use super::files::{Blob, ModelFiles};
use super::{Error, Result};
use crate::device::{Array, Device};
use crate::kernels::{Arithmetic, Isa, Stored};
use candle_core::DType;
use half::{bf16, f16};
use protocol::job::Dtype;
use safetensors::tensor::{Dtype as FileDtype, Metadata};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// The longest safetensors header we read: SDXL's has 180 KiB; the format's own limit is 100 MB.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The tensors of one part of a checkpoint (`unet`, `vae`, ...).
#[derive(Debug)]
pub struct Weights {
    part: String,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
    dtype: Dtype,
    device: Option<Device>,
    used: RefCell<BTreeMap<String, Use>>,
    /// What files say of themselves.
    notes: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    blob: Blob,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: FileDtype,
    shape: Vec<usize>,
    start: u64,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    hash: blake3::Hash,
    dtype: FileDtype,
    values: usize,
}

/// The values of one tensor, in the type they are held in.
#[derive(Clone, Debug)]
pub enum Values {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl Weights {
    /// Finds the weights in `part`'s folder, with `stem` as the file name before its endings:
    /// one file or shards named by an index, with or without the `fp16` variant mark.
    ///
    /// Layers are to compute on `device`, if there is one.
    ///
    /// # Errors
    /// If there are none, or a header is corrupt.
    pub fn open(
        files: &ModelFiles,
        part: &str,
        stem: &str,
        (dtype, device): (Dtype, Option<&Device>),
    ) -> Result<Self> {
        let mut weights = Self {
            part: part.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            dtype,
            device: device.cloned(),
            used: RefCell::default(),
            notes: BTreeMap::new(),
        };
        for ending in ["safetensors", "fp16.safetensors"] {
            let path = format!("{part}/{stem}.{ending}");
            if let Some(blob) = files.open(&path)? {
                weights.add(Shard { name: files.describe(&path), blob })?;
                return Ok(weights);
            }
        }
        let endings = [
            "safetensors.index.json",
            "safetensors.index.fp16.json",
            "fp16.safetensors.index.json",
        ];
        for ending in endings {
            let index = format!("{part}/{stem}.{ending}");
            if let Some(bytes) = files.find(&index)? {
                weights.add_index(files, &index, &bytes)?;
                return Ok(weights);
            }
        }
        Err(Error::Checkpoint(format!(
            "{} is missing, and so are its `.fp16.` and `.index.json` forms; pickled `.bin` \
             weights are not read: convert them with diffusers' save_pretrained",
            files.describe(&format!("{part}/{stem}.safetensors"))
        )))
    }

    /// The tensors of one file, which people call `name`.
    ///
    /// # Errors
    /// If its header is corrupt.
    pub fn of_file(name: &str, blob: Blob) -> Result<Self> {
        let mut weights = Self {
            part: name.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            dtype: Dtype::Auto,
            device: None,
            used: RefCell::default(),
            notes: BTreeMap::new(),
        };
        weights.add(Shard { name: name.to_owned(), blob })?;
        Ok(weights)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What a file says of itself under `key`.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<&str> {
        self.notes.get(key).map(String::as_str)
    }

    fn add_index(&mut self, files: &ModelFiles, index: &str, bytes: &[u8]) -> Result<()> {
        let corrupt =
            |what: &str| Error::Checkpoint(format!("{} is corrupt: {what}", files.describe(index)));
        let json: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| corrupt(&error.to_string()))?;
        let map = json.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| corrupt("it has no `weight_map`"))?;
        // A shard lies beside its index: a checkpoint from elsewhere names no other file of this machine.
        let plain = |name: &&str| Path::new(name).file_name().is_some_and(|file| file == *name);
        let shard =
            |(tensor, name): (&String, &serde_json::Value)| match name.as_str().filter(plain) {
                Some(name) => Ok(name.to_owned()),
                None => Err(corrupt(&format!(
                    "the shard of `{tensor}` is {name}, which is no file name"
                ))),
            };
        let mut names = map.iter().map(shard).collect::<Result<Vec<String>>>()?;
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = format!("{}/{name}", self.part);
            let blob = files.open(&path)?.ok_or_else(|| {
                corrupt(&format!("it names the shard `{name}`, which is not there"))
            })?;
            self.add(Shard { name: files.describe(&path), blob })?;
        }
        map.keys().find(|tensor| !self.tensors.contains_key(*tensor)).map_or(Ok(()), |tensor| {
            Err(corrupt(&format!("no shard has the tensor `{tensor}` that it names")))
        })
    }

    fn add(&mut self, shard: Shard) -> Result<()> {
        let corrupt =
            |what: String| Error::Checkpoint(format!("{} is corrupt: {what}", shard.name));
        let head = shard.blob.head(8).map_err(|error| corrupt(format!("no header: {error}")))?;
        let header_len = head.try_into().map_or(0, u64::from_le_bytes);
        if header_len > HEADER_BYTES_MAX || header_len + 8 > shard.blob.len() {
            return Err(corrupt(format!("its header claims {header_len} bytes")));
        }
        let whole = usize::try_from(header_len + 8).map_err(|error| corrupt(error.to_string()))?;
        let header = shard.blob.head(whole).map_err(|error| corrupt(error.to_string()))?;
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| corrupt(error.to_string()))?;
        self.notes.extend(metadata.metadata().clone().into_iter().flatten());
        for (name, info) in metadata.tensors().into_iter().collect::<BTreeMap<_, _>>() {
            let (start, end) = info.data_offsets;
            let data_len = shard.blob.len() - (header_len + 8);
            if end as u64 > data_len {
                return Err(corrupt(format!(
                    "the tensor `{name}` ends {} bytes after the file's end (truncated?)",
                    end as u64 - data_len
                )));
            }
            if start > end {
                return Err(corrupt(format!("the tensor `{name}` ends before it begins")));
            }
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: header_len + 8 + start as u64,
                len: end - start,
            };
            self.tensors.insert(name, entry);
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor's shape.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Loads a tensor in the type that weights are held in.
    ///
    /// # Errors
    /// If it is missing or of another shape or of a type that is not a float.
    pub fn load(&self, name: &str, shape: &[usize]) -> Result<Values> {
        let values = self.load_as_stored(name, shape)?;
        Ok(match self.dtype {
            // 8 bits are for linear layers: they are rounded as they are packed.
            Dtype::Auto | Dtype::Int8 => values,
            Dtype::F32 => Values::F32(values.into_f32()),
            Dtype::F16 if matches!(values, Values::F16(_)) => values,
            Dtype::F16 => Values::F16(values.into_f32().into_iter().map(f16::from_f32).collect()),
            Dtype::Bf16 if matches!(values, Values::Bf16(_)) => values,
            Dtype::Bf16 => {
                Values::Bf16(values.into_f32().into_iter().map(bf16::from_f32).collect())
            }
        })
    }

    /// Loads a small tensor (a bias, a norm's scale) as f32.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.load_as_stored(name, shape).map(Values::into_f32)
    }

    fn load_as_stored(&self, name: &str, shape: &[usize]) -> Result<Values> {
        let entry = self.tensors.get(name).ok_or_else(|| {
            let shard = self.shards.first().map_or("?", |shard| shard.name.as_str());
            Error::Checkpoint(format!("the tensor `{name}` is missing from {shard}"))
        })?;
        let shard = &self.shards[entry.shard];
        let corrupt =
            |what: String| Error::Checkpoint(format!("{}: the tensor `{name}` {what}", shard.name));
        if entry.shape != shape {
            return Err(corrupt(format!(
                "has the shape {:?}, but the configuration needs {shape:?}",
                entry.shape
            )));
        }
        let values: usize = shape.iter().product();
        let width = match entry.dtype {
            FileDtype::F32 => 4,
            FileDtype::F16 | FileDtype::BF16 => 2,
            other => {
                return Err(corrupt(format!("is of type {other:?}; supported: F32, F16, BF16")));
            }
        };
        if entry.len != values * width {
            return Err(corrupt(format!("has {} bytes instead of {}", entry.len, values * width)));
        }
        let bytes = shard
            .blob
            .map(entry.start, entry.len)
            .map_err(|error| corrupt(format!("cannot be mapped: {error}")))?;
        let hash = blake3::hash(&bytes);
        self.used.borrow_mut().insert(name.to_owned(), Use { hash, dtype: entry.dtype, values });
        Ok(match entry.dtype {
            FileDtype::F16 => Values::F16(words(&bytes).map(f16::from_le_bytes).collect()),
            FileDtype::BF16 => Values::Bf16(words(&bytes).map(bf16::from_le_bytes).collect()),
            _ => Values::F32(words(&bytes).map(f32::from_le_bytes).collect()),
        })
    }

    /// Checks that every tensor was loaded, but for those that `unused` knows to be of no use.
    ///
    /// # Errors
    /// Names the first tensor that the configuration has no place for.
    pub fn finish(&self, unused: impl Fn(&str) -> bool) -> Result<()> {
        let used = self.used.borrow();
        let left = self.tensors.iter().find(|(name, _)| !used.contains_key(*name) && !unused(name));
        left.map_or(Ok(()), |(name, entry)| {
            Err(Error::Checkpoint(format!(
                "{}: nothing in the configuration uses the tensor `{name}`: this checkpoint has a \
                 part that is not supported",
                self.shards[entry.shard].name
            )))
        })
    }

    /// Adds the hash of every loaded tensor to `hasher`, in the order of names.
    pub fn hash_into(&self, hasher: &mut blake3::Hasher) {
        for (name, used) in self.used.borrow().iter() {
            hasher.update(self.part.as_bytes());
            hasher.update(name.as_bytes());
            hasher.update(used.hash.as_bytes());
        }
    }

    /// The numbers that this part's linear layers compute in: `f32`, but in the UNet, which takes nearly
    /// all the time, those that were asked for.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        match self.dtype {
            Dtype::Int8 if self.part == "unet" => Arithmetic::Int8,
            Dtype::Bf16 if self.part == "unet" && Isa::best().has_bf16() => Arithmetic::Bf16,
            _ => Arithmetic::F32,
        }
    }

    /// The device that layers compute on, if it is not the processor with our own kernels.
    #[must_use]
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// The type that a device computes in: that of the weights, but for the decoder, which is made for
    /// f32 (`force_upcast`).
    #[must_use]
    pub fn computed(&self) -> DType {
        let stored = || {
            let values = |dtype| {
                let entries = self.tensors.values().filter(move |entry| entry.dtype == dtype);
                entries.map(|entry| entry.len).sum::<usize>()
            };
            let types = [FileDtype::F32, FileDtype::F16, FileDtype::BF16];
            types.into_iter().max_by_key(|dtype| values(*dtype))
        };
        match self.dtype {
            _ if self.part == "vae" => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
            Dtype::F32 | Dtype::Int8 => DType::F32,
            Dtype::Auto => match stored() {
                Some(FileDtype::F16) => DType::F16,
                Some(FileDtype::BF16) => DType::BF16,
                _ => DType::F32,
            },
        }
    }

    /// The type most of the loaded values are held in.
    #[must_use]
    pub fn main_dtype(&self) -> Dtype {
        if self.dtype != Dtype::Auto {
            return self.dtype;
        }
        let mut sums = [(0, Dtype::F32), (0, Dtype::F16), (0, Dtype::Bf16)];
        for used in self.used.borrow().values() {
            let place = match used.dtype {
                FileDtype::F16 => 1,
                FileDtype::BF16 => 2,
                _ => 0,
            };
            sums[place].0 += used.values;
        }
        sums.iter().max_by_key(|(sum, _)| *sum).map_or(Dtype::F32, |(_, dtype)| *dtype)
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().copied()
}

impl Values {
    /// The values as the kernels take them.
    #[must_use]
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Self::F32(values) => Stored::F32(values),
            Self::F16(values) => Stored::F16(values),
            Self::Bf16(values) => Stored::Bf16(values),
        }
    }

    /// The values on `device`, as they are.
    ///
    /// # Errors
    /// If they do not fit the shape, or the device has no room for them.
    pub fn into_array(self, shape: &[usize], device: &Device) -> Result<Array> {
        let device = device.candle();
        Ok(match self {
            Self::F32(values) => Array::from_vec(values, shape, device),
            Self::F16(values) => Array::from_vec(values, shape, device),
            Self::Bf16(values) => Array::from_vec(values, shape, device),
        }?)
    }

    /// The values, widened.
    #[must_use]
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            Self::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
        }
    }

    /// Tensors of one type, one after the other. Mixed types are widened.
    #[must_use]
    pub fn joined(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { return Self::F32(Vec::new()) };
        parts.fold(first, |whole, part| match (whole, part) {
            (Self::F16(mut whole), Self::F16(part)) => {
                whole.extend(part);
                Self::F16(whole)
            }
            (Self::Bf16(mut whole), Self::Bf16(part)) => {
                whole.extend(part);
                Self::Bf16(whole)
            }
            (whole, part) => {
                let mut whole = whole.into_f32();
                whole.extend(part.into_f32());
                Self::F32(whole)
            }
        })
    }

    /// Bytes they take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => values.len() * 4,
            Self::F16(values) => values.len() * 2,
            Self::Bf16(values) => values.len() * 2,
        }
    }

    /// Widens row `row` of a table \[rows, columns\] into `out`, \[columns\].
    pub fn widen_row(&self, row: usize, out: &mut [f32]) {
        let range = row * out.len()..(row + 1) * out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[range]),
            Self::F16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
            Self::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
            }
        }
    }
}
