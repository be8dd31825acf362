//! The seam: where model maths ends and distribution begins.
//!
//! A layer works on a band of the image and asks an [`Exchange`] for the three things that its own
//! rows cannot answer; or, where it holds a part of its weights, for what all parts give together. It
//! cannot tell whether the answer is a peer's value of this call, of the previous one, or its own:
//! policy lives behind the seam. Rows of peers are read where they landed ([`Rows`]): nothing copies or
//! casts them on the way. Never across the seam: rank, world size, step, mode, sockets.

mod rows;

pub use rows::{Rows, dtype};

use super::tensor::{OnDevice, Tensor};
use super::{Error, Result};
use crate::kernels::Moment;
use crate::profile::Work;
use protocol::plan::{Ask, SiteSpec, Stage};
use protocol::{Fault, FaultKind, Site};
use std::fmt;

/// The things a layer may ask for.
pub trait Exchange: fmt::Debug {
    /// `rows` rows of `x` [batch, rows, columns, channels] from either side of this band.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo>;

    /// Group statistics of the whole image, given those of this band.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments>;

    /// The same, of statistics that a device computed; by default they are waited for, and the host's
    /// answer is copied back.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    fn moments_on_device(&mut self, site: Site, own: &DeviceMoments) -> Result<DeviceMoments> {
        let whole = self.moments(site, &own.to_host()?)?;
        own.like(&whole)
    }

    /// `own` [batch, tokens, channels] of the whole image, band by band in row order, each where it
    /// lies; the own part is always this call's.
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled.
    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>>;

    /// The sum of what all parts of a layer give, of which one gives `own` [batch, .., channels].
    ///
    /// # Errors
    /// If a peer is lost or the run is cancelled; or if layers have no parts here, which is the rule.
    fn sum(&mut self, sites: SumSites, own: &Tensor) -> Result<Tensor> {
        let (site, shape) = (sites.summand, own.shape());
        let cause = format!("{site} asks for the sum of {shape:?}, but no layer is divided");
        Err(Fault::new(FaultKind::PlanMismatch, cause).into())
    }
}

/// Where parts of a layer meet: in two steps, as each rank adds up a part of the result.
#[derive(Clone, Copy, Debug)]
pub struct SumSites {
    /// Everyone's summands of what a rank adds up.
    pub summand: Site,
    /// What each rank added up.
    pub sum: Site,
}

/// Where a band is in the image, and the rows next to it, [batch, rows, columns, channels]. None past
/// the image's border, where a convolution sees zeros.
#[derive(Clone, Debug, Default)]
pub struct Halo {
    /// The image's row that the band begins with.
    pub first_row: usize,
    /// The rows before the band's first.
    pub above: Option<Rows>,
    /// The rows after the band's last.
    pub below: Option<Rows>,
}

/// Statistics of normalisation groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// How many values each group has.
    pub count: f64,
    /// Mean and sum of squared deviations, [batch, groups].
    pub groups: Vec<Moment>,
}

/// Statistics of normalisation groups in a device's memory.
#[derive(Clone, Debug)]
pub struct DeviceMoments {
    /// How many values each group has.
    pub count: f64,
    /// Mean and sum of squared deviations, [batch x groups, 2].
    pub groups: Tensor,
}

impl DeviceMoments {
    /// They, as the device knows them.
    ///
    /// # Errors
    /// If they are in the host's memory.
    pub fn on_device(&self) -> Result<OnDevice<'_>> {
        let none = || Error::Shape("a device's statistics in the host's memory".to_owned());
        self.groups.on_device().ok_or_else(none)
    }

    /// They, waited for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Moments> {
        let values = self.groups.to_host()?;
        let (pairs, _) = values.as_chunks::<2>();
        let groups = pairs.iter().map(|[mean, m2]| Moment { mean: *mean, m2: *m2 }).collect();
        Ok(Moments { count: self.count, groups })
    }

    /// `moments` on the same device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn like(&self, moments: &Moments) -> Result<Self> {
        let groups = self.groups.make_on_host(Work::Copy, self.groups.shape(), |out| {
            for (out, moment) in out.chunks_exact_mut(2).zip(&moments.groups) {
                out.copy_from_slice(&[moment.mean, moment.m2]);
            }
            Ok(())
        })?;
        Ok(Self { count: moments.count, groups })
    }
}

/// The whole image is this band: what lies beyond it is its border.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

impl Exchange for Dense {
    fn halo(&mut self, _: Site, _: &Tensor, _: usize) -> Result<Halo> {
        Ok(Halo::default())
    }

    fn moments(&mut self, _: Site, own: &Moments) -> Result<Moments> {
        Ok(own.clone())
    }

    fn moments_on_device(&mut self, _: Site, own: &DeviceMoments) -> Result<DeviceMoments> {
        Ok(own.clone())
    }

    fn gather(&mut self, _: Site, own: &Tensor) -> Result<Vec<Rows>> {
        Ok(vec![Rows::own(own, 1)?])
    }
}

/// Numbers the exchange points of a model while it is built.
#[derive(Debug, Default)]
pub struct Sites(Vec<SiteSpec>);

impl Sites {
    /// Gives the layer at `path` its number.
    ///
    /// # Panics
    /// If a model has more than 65,536 exchange points; SDXL has 156.
    pub fn number(&mut self, spec: SiteSpec) -> Site {
        let site = Site(u16::try_from(self.0.len()).expect("fewer exchange points than 2^16"));
        self.0.push(spec);
        site
    }

    /// Every exchange point, by number.
    #[must_use]
    pub fn into_specs(self) -> Vec<SiteSpec> {
        self.0
    }
}

/// Where in a model a layer stands, as far as its exchange is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// When it runs.
    pub stage: Stage,
    /// How often rows and columns are halved here (negative: doubled).
    pub halvings: i8,
}

impl Place {
    /// The place one downsampling further down.
    #[must_use]
    pub fn halved(self) -> Self {
        Self { halvings: self.halvings + 1, ..self }
    }

    /// The place one upsampling further up.
    #[must_use]
    pub fn doubled(self) -> Self {
        Self { halvings: self.halvings - 1, ..self }
    }

    /// An exchange point here.
    #[must_use]
    pub fn site(self, path: &str, ask: Ask, channels: usize) -> SiteSpec {
        SiteSpec {
            path: path.to_owned(),
            ask,
            stage: self.stage,
            channels: u32::try_from(channels).expect("channel counts are far below 2^32"),
            halvings: self.halvings,
        }
    }
}
