//! How jobs are taken in.

use super::Priority;
use serde::{Deserialize, Serialize};

/// How a job is taken in, whatever it shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Whether it goes on when the client that submitted it leaves.
    pub detached: bool,
    /// Whether it is rendered before others that wait.
    pub priority: Priority,
    /// A name of the client's own for this submission, so that it can be said again without making a
    /// second job.
    pub idempotency_key: Option<String>,
}

impl Default for Terms {
    /// Of a job that ends with its client's connection, in turn with the others.
    fn default() -> Self {
        Self { detached: false, priority: Priority::Normal, idempotency_key: None }
    }
}
