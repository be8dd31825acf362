//! The parts of a request that one can be wrong about.

use serde::{Deserialize, Serialize};

/// A field of a [`JobRequest`](super::JobRequest), or of what is in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is named as the field is")]
pub enum Field {
    Prompt,
    Negative,
    Width,
    Height,
    Steps,
    Guidance,
    Dtype,
    Model,
    CfgSplit,
    Fabrics,
    Workers,
    Loras,
    Init,
    Strength,
}

impl Field {
    /// Every field, in a request's order.
    pub const ALL: &[Self] = &[
        Self::Prompt,
        Self::Negative,
        Self::Width,
        Self::Height,
        Self::Steps,
        Self::Guidance,
        Self::Dtype,
        Self::Model,
        Self::CfgSplit,
        Self::Fabrics,
        Self::Workers,
        Self::Loras,
        Self::Init,
        Self::Strength,
    ];

    /// Where it is in a request that is written as JSON.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Negative => "negative",
            Self::Width => "width",
            Self::Height => "height",
            Self::Steps => "steps",
            Self::Guidance => "guidance",
            Self::Dtype => "dtype",
            Self::Model => "model",
            Self::CfgSplit => "cfg_split",
            Self::Fabrics => "fabrics",
            Self::Workers => "workers",
            Self::Loras => "loras",
            Self::Init => "init",
            Self::Strength => "init.strength",
        }
    }
}
