//! Patch parallelism: answers the model's [`Exchange`](crate::model::exchange::Exchange) from the
//! other ranks of a run.
//!
//! - [`synchronous`] waits for this call's values of every peer: warm-up, `full-sync`, the decode.
//! - [`displaced`] answers with the previous call's values and sends its own for the next one.
//! - [`drift`] says how far what a rank sends moves from call to call.
//! - [`rows`] carries the little that crosses between layers: the other branch's prediction, and
//!   the rows to decode.
//! - `nccl` is how GPUs of one machine exchange, under either; all other values have links.
//! - [`Planned`] answers nothing, while memory is planned.
//! - [`netcheck`] measures links, with no model.
//! - [`sharded`] adds up what ranks compute with their parts of each layer: a baseline.
//! - [`naive`] asks nothing within a call, and puts predictions together after it: another.
//!
//! Invariants, cited by tests:
//! - **P-1 exact staleness**: a displaced call uses precisely the previous call's values (with
//!   `no-sync` those of the last synchronous one), waited for; what a run computes does not depend on timing, fabric or order of arrival (S-5).
//! - **P-2 two versions**: a displaced site consumes its peers' values before it posts its own, a
//!   synchronous one posts before it consumes; so no slot ever has more than two versions that
//!   are not consumed, told apart by the parity of the call. A synchronous call after a displaced one
//!   (`--warmup auto`) leaves a version unconsumed; there ranks begin a call only when all have ended
//!   the one before (P-3, in [`drift`]).

pub mod displaced;
pub mod drift;
mod group;
pub mod mesh;
pub mod naive;
mod nccl;
pub mod netcheck;
mod outbox;
mod planned;
pub mod rows;
pub mod sharded;
mod slots;
pub mod synchronous;
mod wire;

pub use displaced::Displaced;
pub use mesh::{Mesh, Spent};
pub use planned::Planned;
pub use sharded::Sharded;
pub use synchronous::Synchronous;
