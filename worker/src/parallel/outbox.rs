//! What a rank sends, on its way to the links: encoded once, in memory that is used again; and where a
//! device computed it, copied to the host while the device goes on.

use super::wire;
use crate::device::staging::Fetch;
use crate::device::{Array, Device};
use crate::model::Result;
use crate::model::exchange::dtype;
use crate::model::tensor::Tensor;
use bytes::Bytes;
use protocol::job::Wire;
use protocol::{Call, Rank, Site};
use std::borrow::Cow;
use std::collections::VecDeque;

/// Values to be sent, where they are.
#[derive(Debug)]
pub(super) enum Outgoing<'a> {
    /// In the host's memory.
    Host(Cow<'a, [f32]>),
    /// On a device.
    Device(Device, Array),
}

impl<'a> Outgoing<'a> {
    /// All of `x`.
    pub(super) fn of(x: &'a Tensor) -> Self {
        match x.on_device() {
            None => Self::Host(Cow::Borrowed(x.view())),
            Some(x) => Self::Device(x.device.clone(), x.values.clone()),
        }
    }

    /// Rows `from..from + count` of every image of `x` [batch, rows, columns, channels].
    pub(super) fn rows(x: &Tensor, from: usize, count: usize) -> Result<Self> {
        if let Some(x) = x.on_device() {
            return Ok(Self::Device(x.device.clone(), x.values.narrow(1, from, count)?));
        }
        let [batch, rows, columns, channels] = x.sizes()?;
        let row = columns * channels;
        let of_image = |image| {
            let start = (image * rows + from) * row;
            &x.view()[start..start + count * row]
        };
        Ok(Self::Host((0..batch).flat_map(of_image).copied().collect()))
    }

    /// They, in the host's memory: a device's are waited for.
    pub(super) fn into_host(self) -> Result<Cow<'a, [f32]>> {
        match self {
            Self::Host(values) => Ok(values),
            Self::Device(device, values) => Ok(Cow::Owned(device.download(&values)?)),
        }
    }
}

/// Where values go: to whom, for what site, of which call.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) peers: Vec<Rank>,
    pub(super) site: Site,
    pub(super) call: Call,
}

/// When the peer needs a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needed {
    /// In the call it is of: it waits for it.
    Now,
    /// In the call after.
    Later,
}

/// What is on its way out.
#[derive(Debug)]
pub(super) struct Outbox {
    /// What was posted last for each site, to one peer and to another: its memory is used again.
    sent: Vec<[Bytes; 2]>,
    /// What a device computed, in the order in which it did.
    coming: VecDeque<(Address, Wire, Fetch)>,
}

impl Outbox {
    pub(super) fn new(sites: usize) -> Self {
        Self { sent: vec![Default::default(); sites], coming: VecDeque::new() }
    }

    /// `values` for `site` as they cross.
    pub(super) fn encode(&mut self, wire: Wire, site: Site, values: &[f32]) -> Result<Bytes> {
        let sent = &mut self.sent[usize::from(site.0)];
        // One suffices but for a rank between two others, which sends each something else in a call.
        if !sent[0].is_unique() {
            sent.swap(0, 1);
        }
        let bytes = wire::encode(wire, site, values, std::mem::take(&mut sent[0]))?;
        sent[0] = bytes.clone();
        Ok(bytes)
    }

    /// Begins to copy what `device` computes to the host, in the type in which it crosses.
    pub(super) fn stage(
        &mut self,
        to: Address,
        wire: Wire,
        (device, values): (&Device, &Array),
    ) -> Result<()> {
        let fetch = device.fetch(&values.to_dtype(dtype(wire))?)?;
        self.coming.push_back((to, wire, fetch));
        Ok(())
    }

    /// Whether nothing is being copied from a device.
    pub(super) fn is_empty(&self) -> bool {
        self.coming.is_empty()
    }

    /// What was staged first, if it has arrived; or once it has, if it is `waited` for.
    pub(super) fn arrived(&mut self, waited: bool) -> Result<Option<(Address, Bytes)>> {
        match self.coming.front() {
            Some((_, _, fetch)) if waited || fetch.is_done()? => {}
            _ => return Ok(None),
        }
        let Some((to, wire, fetch)) = self.coming.pop_front() else { return Ok(None) };
        let bytes = fetch.wait()?;
        wire::check(wire, to.site, &bytes)?;
        Ok(Some((to, bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;
    use crate::model::tensor::Memory;
    use protocol::job::Dtype;

    fn device() -> Device {
        Device::open(DeviceChoice::Candle, Dtype::F32).unwrap().unwrap()
    }

    #[test]
    fn rows_are_the_same_wherever_they_are() {
        let values: Vec<f32> = (0_u8..12).map(f32::from).collect();
        for memory in [Memory::default(), Memory::Device(device())] {
            let x = Tensor::new(&memory, &values, [2, 3, 1, 2]).unwrap();
            let rows = Outgoing::rows(&x, 1, 2).unwrap().into_host().unwrap();
            assert_eq!(*rows, [2.0, 3.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
            assert_eq!(*Outgoing::of(&x).into_host().unwrap(), values[..]);
        }
    }

    #[test]
    fn what_a_device_computes_is_sent_in_its_order_and_only_once_it_is_there() {
        let (device, mut outbox) = (device(), Outbox::new(9));
        let to = |site| Address { peers: vec![Rank(1)], site: Site(site), call: Call(2) };
        for site in [3, 7] {
            let values = device.upload(&[f32::from(site)], &[1]).unwrap();
            outbox.stage(to(site), Wire::F32, (&device, &values)).unwrap();
        }
        assert!(outbox.arrived(false).unwrap().is_none(), "nobody waited");
        for site in [3, 7] {
            let (to, bytes) = outbox.arrived(true).unwrap().unwrap();
            assert_eq!((to.site, to.call), (Site(site), Call(2)));
            assert_eq!(*bytes, f32::from(site).to_le_bytes());
        }
        assert!(outbox.arrived(true).unwrap().is_none());
    }

    #[test]
    fn what_f16_cannot_hold_is_named() {
        let (device, mut outbox) = (device(), Outbox::new(9));
        let values = device.upload(&[1.0, 7e4], &[2]).unwrap();
        let to = Address { peers: vec![Rank(1)], site: Site(3), call: Call(0) };
        outbox.stage(to, Wire::F16, (&device, &values)).unwrap();
        assert!(outbox.arrived(true).unwrap_err().to_string().contains("at site 3"));
    }
}
