//! The figures that a prediction is made from: on the command line, in a file, or the defaults.

use super::lists::{Exposed, Sizes, Switch, Workers};
use super::units::{Bandwidth, Memory, Rate, Time};
use crate::planner::cost::preset::{self, PUBLISHED, PUBLISHED_WORKERS};
use crate::planner::cost::{Overlap, Scheme};
use anyhow::{Context, bail};
use protocol::job::{CfgSplit, ModelCard, UnknownName, Wire};
use serde::Deserialize;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;

/// What an A100 has: 80 GiB.
const MEMORY_DEFAULT: Memory = Memory(85_899_345_920.0);

/// What was given. In a file it is one JSON object, with the names and values of the command line.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Figures {
    /// The model: sdxl, sd15 or emoji-xl [default: sdxl].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What each worker computes [default: 161TFLOP/s, an A100 as the published figures show it].
    #[arg(long, value_name = "FLOP/s")]
    rate: Option<Rate>,
    /// What each call takes besides [default: 20ms, as the published figures show it].
    #[arg(long, value_name = "TIME")]
    overhead: Option<Time>,
    /// What each worker has [default: 80GiB].
    #[arg(long, value_name = "BYTES")]
    memory: Option<Memory>,
    /// What lands on a worker a second from others of its node [default: 150GB/s].
    #[arg(long, value_name = "BYTES/s")]
    bandwidth_inside: Option<Bandwidth>,
    /// How long a small value takes inside a node [default: 5us].
    #[arg(long, value_name = "TIME")]
    latency_inside: Option<Time>,
    /// What lands on a worker a second from other nodes, all workers of its node receiving at once
    /// [default: 3GB/s, an eighth of a 200 Gbit/s card].
    #[arg(long, value_name = "BYTES/s")]
    bandwidth_between: Option<Bandwidth>,
    /// How long a small value takes between nodes [default: 10us].
    #[arg(long, value_name = "TIME")]
    latency_between: Option<Time>,
    /// How many workers a node has [default: 8].
    #[arg(long, value_name = "N")]
    workers_per_node: Option<NonZeroU32>,
    /// Sizes in pixels, such as 1024,2048x1024 [default: once, twice and four times the model's own].
    #[arg(long, value_name = "SIZES")]
    sizes: Option<Sizes>,
    /// Numbers of workers, such as 1,2,3; A..B doubles from A to B [default: 1..8].
    #[arg(long, value_name = "N")]
    workers: Option<Workers>,
    /// Sampler steps of one call each [default: 50].
    #[arg(long, value_name = "N")]
    steps: Option<NonZeroU32>,
    /// The first K+1 calls are synchronous [default: 4].
    #[arg(long, value_name = "K")]
    warmup: Option<u32>,
    /// Whether there are two predictions: on or off [default: on].
    #[arg(long, value_name = "WHEN")]
    guidance: Option<Switch>,
    /// Whether different workers compute them: auto, on or off [default: auto].
    #[arg(long, value_name = "WHEN")]
    cfg_split: Option<CfgSplit>,
    /// The type in which keys and values cross: f32, f16 or bf16 [default: f16].
    #[arg(long, value_name = "TYPE")]
    wire: Option<Wire>,
    /// How much of a displaced call's exchange is waited for: auto (what takes longer than computing),
    /// or a share from 0 to 1 [default: auto].
    #[arg(long, value_name = "SHARE")]
    exposed: Option<Exposed>,
    /// Who sends what: neighbours (ours) or all-gather (the DistriFusion code's) [default: neighbours].
    #[arg(long, value_name = "SCHEME")]
    exchange: Option<Exchange>,
}

/// Who sends what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Exchange(Scheme);

impl FromStr for Exchange {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "neighbours" => Ok(Self(Scheme::Neighbours)),
            "all-gather" => Ok(Self(Scheme::AllGather)),
            _ => Err(UnknownName {
                what: "exchange",
                value: text.to_owned(),
                supported: "neighbours all-gather".to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for Exchange {
    type Error = UnknownName;

    fn try_from(text: String) -> Result<Self, UnknownName> {
        text.parse()
    }
}

/// Every figure.
#[derive(Clone, Debug)]
pub(super) struct Settled {
    pub(super) card: ModelCard,
    pub(super) rate: Rate,
    pub(super) overhead: Time,
    pub(super) memory: Memory,
    /// Bandwidth and latency inside a node, and between nodes.
    pub(super) inside: (Bandwidth, Time),
    pub(super) between: (Bandwidth, Time),
    pub(super) workers_per_node: usize,
    pub(super) sizes: Sizes,
    pub(super) workers: Workers,
    pub(super) steps: u32,
    pub(super) warmup: u32,
    pub(super) guided: bool,
    pub(super) cfg_split: CfgSplit,
    pub(super) wire: Wire,
    pub(super) exposed: Exposed,
    pub(super) scheme: Scheme,
}

impl Figures {
    /// The figures of a file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("--figures {}: cannot be read", path.display()))?;
        let context = || {
            format!(
                "--figures {}: it is to be a JSON object such as \
                 {{\"rate\": \"161TFLOP/s\", \"workers\": \"1..8\"}}",
                path.display()
            )
        };
        serde_json::from_str(&text).with_context(context)
    }

    /// These, and where there are none those of `others`.
    pub(super) fn or(self, others: Self) -> Self {
        Self {
            model: self.model.or(others.model),
            rate: self.rate.or(others.rate),
            overhead: self.overhead.or(others.overhead),
            memory: self.memory.or(others.memory),
            bandwidth_inside: self.bandwidth_inside.or(others.bandwidth_inside),
            latency_inside: self.latency_inside.or(others.latency_inside),
            bandwidth_between: self.bandwidth_between.or(others.bandwidth_between),
            latency_between: self.latency_between.or(others.latency_between),
            workers_per_node: self.workers_per_node.or(others.workers_per_node),
            sizes: self.sizes.or(others.sizes),
            workers: self.workers.or(others.workers),
            steps: self.steps.or(others.steps),
            warmup: self.warmup.or(others.warmup),
            guidance: self.guidance.or(others.guidance),
            cfg_split: self.cfg_split.or(others.cfg_split),
            wire: self.wire.or(others.wire),
            exposed: self.exposed.or(others.exposed),
            exchange: self.exchange.or(others.exchange),
        }
    }

    /// Those that give the published entries.
    pub(super) fn paper() -> Self {
        let square = |side| super::lists::Size { width: side, height: side };
        let sizes = PUBLISHED.iter().map(|entry| square(entry.side));
        let workers = PUBLISHED_WORKERS.iter().filter_map(|count| usize::try_from(*count).ok());
        Self {
            sizes: Some(Sizes(sizes.collect())),
            workers: Some(Workers(workers.collect())),
            latency_inside: Some(Time(0.0)),
            cfg_split: Some(CfgSplit::Off),
            exposed: Some(Exposed::Share(1.0)),
            exchange: Some(Exchange(Scheme::AllGather)),
            ..Self::default()
        }
    }

    /// All figures, with the defaults for those that are not given.
    pub(super) fn settle(self) -> anyhow::Result<Settled> {
        let name = self.model.as_deref().unwrap_or("sdxl");
        let Some(card) = preset::card(name) else {
            bail!("--model {name}: no such model; there are {}", preset::NAMES.join(" "));
        };
        let workers_per_node = self.workers_per_node.map_or(8, NonZeroU32::get);
        let guided = self.guidance.is_none_or(|guidance| guidance.0);
        let cfg_split = self.cfg_split.unwrap_or(CfgSplit::Auto);
        let wire = self.wire.unwrap_or(Wire::F16);
        Ok(Settled {
            rate: self.rate.unwrap_or(Rate(161e12)),
            overhead: self.overhead.unwrap_or(Time(0.02)),
            memory: self.memory.unwrap_or(MEMORY_DEFAULT),
            inside: (
                self.bandwidth_inside.unwrap_or(Bandwidth(150e9)),
                self.latency_inside.unwrap_or(Time(5e-6)),
            ),
            between: (
                self.bandwidth_between.unwrap_or(Bandwidth(3e9)),
                self.latency_between.unwrap_or(Time(1e-5)),
            ),
            workers_per_node: usize::try_from(workers_per_node)?,
            sizes: self.sizes.unwrap_or_else(|| sizes_of(&card)),
            workers: self.workers.unwrap_or_else(|| Workers(vec![1, 2, 4, 8])),
            steps: self.steps.map_or(50, NonZeroU32::get),
            warmup: self.warmup.unwrap_or(4),
            guided,
            cfg_split,
            wire,
            exposed: self.exposed.unwrap_or(Exposed::Auto),
            scheme: self.exchange.map_or(Scheme::Neighbours, |exchange| exchange.0),
            card,
        })
    }
}

fn sizes_of(card: &ModelCard) -> Sizes {
    let (width, height) = card.native;
    let times = |factor| super::lists::Size { width: factor * width, height: factor * height };
    Sizes([1, 2, 4].map(times).to_vec())
}

impl Settled {
    pub(super) fn overlap(&self) -> Overlap {
        match self.exposed {
            Exposed::Auto => Overlap::Hidden,
            Exposed::Share(share) => Overlap::Share(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Figures, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Figures::read(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_command_line_comes_before_the_file_and_that_before_the_defaults() {
        let text = r#"{"rate": "10TFLOP/s", "workers": "1..4", "steps": 20, "cfg-split": "off"}"#;
        let given = Figures { rate: Some(Rate(5e12)), ..Figures::default() };
        let settled = given.or(file(text).unwrap()).settle().unwrap();
        assert_eq!(settled.rate, Rate(5e12));
        assert_eq!((settled.workers.0, settled.steps), (vec![1, 2, 4], 20));
        assert_eq!((settled.cfg_split, settled.overhead), (CfgSplit::Off, Time(0.02)));
    }

    #[test]
    fn what_a_file_says_is_known_or_refused() {
        let cause = file(r#"{"rat": "10TFLOP/s"}"#).unwrap_err();
        assert!(cause.contains("unknown field `rat`") && cause.contains("`rate`"), "{cause}");
        let cause = file(r#"{"rate": "10"}"#).unwrap_err();
        assert!(cause.contains("`10` is no rate") && cause.contains("161TFLOP/s"), "{cause}");
        assert!(file("rate = 10").unwrap_err().contains("JSON object"));
        let missing = Figures::read(Path::new("no/such.json")).unwrap_err();
        assert!(missing.to_string().contains("no/such.json"), "{missing}");
    }

    #[test]
    fn a_model_that_is_not_known_is_named_with_those_that_are() {
        let figures = Figures { model: Some("flux".to_owned()), ..Figures::default() };
        let cause = figures.settle().unwrap_err().to_string();
        assert_eq!(cause, "--model flux: no such model; there are sdxl sd15 emoji-xl");
    }
}
