//! Layers. Activations are channels-last: images are [batch, rows, columns, channels], tokens
//! [batch, tokens, channels], so that an image is its own token sequence and a band's rows are
//! contiguous.

pub mod attention;
pub mod conv;
pub mod embedding;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
pub mod shard;

use super::exchange::{Place, Sites};
use super::weights::{Values, Weights};
use super::{Error, Result};
use crate::device::{Array, Device};
use crate::kernels::Arithmetic;
use candle_core::DType;
use protocol::Site;
use protocol::plan::Ask;
use std::cell::RefCell;
use std::fmt::Display;

/// Builds layers from the weights at one path, and numbers their exchange points.
#[derive(Clone, Debug)]
pub struct Loader<'a> {
    weights: &'a Weights,
    sites: &'a RefCell<Sites>,
    path: String,
    place: Place,
    exact: bool,
}

impl<'a> Loader<'a> {
    /// The loader at the root of `weights`.
    #[must_use]
    pub fn new(weights: &'a Weights, sites: &'a RefCell<Sites>, place: Place) -> Self {
        Self { weights, sites, path: String::new(), place, exact: false }
    }

    /// The loader of the part called `name`.
    #[must_use]
    pub fn at(&self, name: impl Display) -> Self {
        let path =
            if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { path, ..self.clone() }
    }

    /// The same loader at another resolution or stage.
    #[must_use]
    pub fn placed(&self, place: Place) -> Self {
        Self { place, ..self.clone() }
    }

    /// The same loader for what is as exact as it can be, whatever the weights' type: small layers
    /// that much depends on.
    #[must_use]
    pub fn exact(&self) -> Self {
        Self { exact: true, ..self.clone() }
    }

    /// The numbers that linear layers here compute in.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        if self.exact { Arithmetic::F32 } else { self.weights.arithmetic() }
    }

    /// The device that layers here compute on, if it is not the processor with our own kernels.
    #[must_use]
    pub fn device(&self) -> Option<&'a Device> {
        self.weights.device()
    }

    /// `values` on that device, in the type that it computes in here.
    ///
    /// # Errors
    /// If there is no such device, or it has no room for them.
    pub fn array(&self, values: Values, shape: &[usize]) -> Result<Array> {
        let none = || Error::Shape("a layer for a device, where there is none".to_owned());
        let (device, dtype) = (self.device().ok_or_else(none)?, self.weights.computed());
        let dtype = if self.exact { DType::F32 } else { dtype };
        Ok(values.into_array(shape, device)?.to_dtype(dtype)?)
    }

    /// A layer's small parameters there, as f32, if layers compute on a device.
    ///
    /// # Errors
    /// If it has no room for them.
    pub fn parameters(&self, values: [&[f32]; 2]) -> Result<Option<[Array; 2]>> {
        let Some(device) = self.device() else { return Ok(None) };
        let [first, second] = values.map(|values| device.upload(values, &[values.len()]));
        Ok(Some([first?, second?]))
    }

    /// Where the tensors here are in their file: what names start with.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the layer stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether there is a tensor called `name` here.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.at(name).path)
    }

    /// The shape of the tensor called `name`, if it is there.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.weights.shape(&self.at(name).path)
    }

    /// The tensor called `name`, in the type weights are held in.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Values> {
        self.weights.load(&self.at(name).path, shape)
    }

    /// The small tensor called `name`, as f32.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn values_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.load_f32(&self.at(name).path, shape)
    }

    /// Numbers this layer's exchange point.
    #[must_use]
    pub fn site(&self, ask: Ask, channels: usize) -> Site {
        self.sites.borrow_mut().number(self.place.site(&self.path, ask, channels))
    }
}
