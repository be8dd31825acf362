//! Starting workers: for one image (`local`), or as a cluster that stays, on hosts of which this machine may be one.

pub(crate) mod admission;
pub(crate) mod call;
pub(crate) mod failure;
pub(crate) mod fleet;
pub(crate) mod hosts;
pub mod local;
pub(crate) mod ranks;
pub(crate) mod rendezvous;
pub(crate) mod roll;
pub(crate) mod script;
