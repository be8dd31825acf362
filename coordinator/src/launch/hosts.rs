//! The file that names hosts: one a line, as `mpirun` and others have it.
//!
//! ```text
//! # [user@]host[:port] [slots=N] [device=cuda|cpu] [threads=N] [model=DIR] [worker=PATH]
//! node1 slots=4 device=cuda
//! me@node2:2222 threads=16
//! ```

use super::local::LocalDevice;
use clap::ValueEnum;
use protocol::job::Dtype;
use std::collections::BTreeMap;
use std::num::{NonZeroU16, ParseIntError};

/// The keys that a line may have.
const KEYS: &str = "slots, device, threads, model, worker";

/// A machine that workers are started on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// What people call it: as the file does.
    pub(crate) name: String,
    /// How it is reached.
    pub(crate) place: Place,
    /// How many workers it gets.
    pub(crate) slots: NonZeroU16,
    /// What they are started with.
    pub(crate) settings: Settings,
}

/// How a host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is this machine: without ssh.
    Here,
    /// Over ssh.
    Ssh {
        /// `[user@]host`, as ssh takes it.
        destination: String,
        /// The port, unless ssh's configuration says it.
        port: Option<u16>,
    },
}

/// What workers are started with. What is not said here is said by the command, or by nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// What they compute on.
    pub(crate) device: Option<LocalDevice>,
    /// Compute threads of each.
    pub(crate) threads: Option<NonZeroU16>,
    /// The folder of the checkpoint, on the host.
    pub(crate) model: Option<String>,
    /// The type weights are held in.
    pub(crate) dtype: Option<Dtype>,
    /// The worker binary, on the host.
    pub(crate) worker: Option<String>,
}

impl Settings {
    /// These, and where they say nothing, `others`.
    pub(crate) fn or(self, others: &Self) -> Self {
        Self {
            device: self.device.or(others.device),
            threads: self.threads.or(others.threads),
            model: self.model.or_else(|| others.model.clone()),
            dtype: self.dtype.or(others.dtype),
            worker: self.worker.or_else(|| others.worker.clone()),
        }
    }
}

/// Why a file of hosts cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostsError {
    /// A line makes no sense.
    #[error("line {line}: {cause}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        cause: LineError,
    },
    /// There is no host in it.
    #[error("there is no host in it: give one a line, such as `me@node1:22 slots=4 device=cuda`")]
    Empty,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    /// The host is not one.
    #[error("{0:?} is no host: give [user@]host[:port], an IPv6 address with a port as [::1]:22")]
    Host(String),
    /// The same host again.
    #[error("{0} is in line {1} already: give it more workers there, with slots=N")]
    Twice(String, usize),
    /// A word that is no setting.
    #[error("{0:?} is unknown: after the host come KEY=VALUE, the keys being {KEYS}")]
    Unknown(String),
    /// A setting that was given before.
    #[error("{0} is given twice")]
    Again(String),
    /// A number that is none.
    #[error("{key}={value}: {cause}; give a number from 1 to 65535")]
    Number {
        /// Which setting.
        key: String,
        /// What it says.
        value: String,
        /// Why that is no number.
        cause: ParseIntError,
    },
    /// A device that there is not.
    #[error("device={0}: give cpu or cuda, which gives each worker of the host a GPU of its own")]
    Device(String),
    /// A setting without a value.
    #[error("{0}= is given without a value")]
    Nothing(String),
}

/// Reads a file of hosts.
///
/// # Errors
/// The first line that makes no sense.
pub(crate) fn parse(text: &str) -> Result<Vec<Host>, HostsError> {
    let mut hosts = Vec::new();
    let mut lines = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let failed = |cause| HostsError::Line { line: number, cause };
        let said = line.split('#').next().unwrap_or_default();
        let mut words = said.split_whitespace();
        let Some(name) = words.next() else { continue };
        let host = host(name, words).map_err(failed)?;
        if let Some(first) = lines.insert(host.name.clone(), number) {
            return Err(failed(LineError::Twice(host.name, first)));
        }
        hosts.push(host);
    }
    if hosts.is_empty() { Err(HostsError::Empty) } else { Ok(hosts) }
}

fn host<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Result<Host, LineError> {
    let place = place(name).ok_or_else(|| LineError::Host(name.to_owned()))?;
    let mut host = Host {
        name: name.to_owned(),
        place,
        slots: NonZeroU16::MIN,
        settings: Settings::default(),
    };
    let mut given = Vec::new();
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(LineError::Unknown(word.to_owned()));
        };
        if given.contains(&key) {
            return Err(LineError::Again(key.to_owned()));
        }
        given.push(key);
        let number = || {
            value.parse().map_err(|cause| {
                let (key, value) = (key.to_owned(), value.to_owned());
                LineError::Number { key, value, cause }
            })
        };
        let text = || match value {
            "" => Err(LineError::Nothing(key.to_owned())),
            _ => Ok(value.to_owned()),
        };
        let settings = &mut host.settings;
        match key {
            "slots" => host.slots = number()?,
            "threads" => settings.threads = Some(number()?),
            "device" => {
                let device = LocalDevice::from_str(value, false);
                settings.device = Some(device.map_err(|_| LineError::Device(value.to_owned()))?);
            }
            "model" => settings.model = Some(text()?),
            "worker" => settings.worker = Some(text()?),
            _ => return Err(LineError::Unknown(word.to_owned())),
        }
    }
    Ok(host)
}

/// Reads `[user@]host[:port]`; what starts with a dash would be an option to ssh.
fn place(name: &str) -> Option<Place> {
    let (user, host) = match name.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, name),
    };
    let (host, port) = if let Some(bracketed) = host.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':')?)),
        }
    } else if host.matches(':').count() > 1 {
        (host, None) // an IPv6 address
    } else {
        host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port)))
    };
    let port: Option<NonZeroU16> = port.map(str::parse).transpose().ok()?;
    let plain = |text: &str| {
        let fits = |letter: char| letter.is_alphanumeric() || "-._:%\\+".contains(letter);
        !text.is_empty() && !text.starts_with('-') && text.chars().all(fits)
    };
    if !plain(host) || !user.is_none_or(plain) {
        return None;
    }
    let destination = user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}"));
    Some(Place::Ssh { destination, port: port.map(NonZeroU16::get) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(name: &str) -> Option<(String, Option<u16>)> {
        match place(name)? {
            Place::Ssh { destination, port } => Some((destination, port)),
            Place::Here => None,
        }
    }

    #[test]
    fn a_file_names_hosts_and_what_their_workers_are_started_with() {
        let text = "# ours\nnode1 slots=4 device=cuda  # four GPUs\n\n\tme@node2:2222 threads=16 model=/m worker=/w\n";
        let hosts = parse(text).unwrap();
        let names: Vec<(&str, u16)> =
            hosts.iter().map(|host| (&*host.name, host.slots.get())).collect();
        assert_eq!(names, [("node1", 4), ("me@node2:2222", 1)]);
        assert_eq!(hosts[0].settings.device, Some(LocalDevice::Cuda));
        let second = hosts[1].settings.clone();
        assert_eq!(second.threads.map(NonZeroU16::get), Some(16));
        assert_eq!((second.model.as_deref(), second.worker.as_deref()), (Some("/m"), Some("/w")));
        let others = Settings { model: Some("/n".to_owned()), ..hosts[0].settings.clone() };
        let both = second.or(&others);
        assert_eq!((both.model.as_deref(), both.device), (Some("/m"), Some(LocalDevice::Cuda)));
    }

    #[test]
    fn a_host_is_what_ssh_calls() {
        let of = |destination: &str, port| Some((destination.to_owned(), port));
        assert_eq!(ssh("node1"), of("node1", None));
        assert_eq!(ssh("me@10.0.0.1:2222"), of("me@10.0.0.1", Some(2222)));
        assert_eq!(ssh("[::1]:22"), of("::1", Some(22)));
        assert_eq!(ssh("me@fe80::1%eth0"), of("me@fe80::1%eth0", None));
        for wrong in
            ["-oProxyCommand=x", "@host", "me@", "a:0", "a:b", "a:70000", "[::1", "[::1]2", "a;b"]
        {
            assert_eq!(ssh(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        for (text, line, word) in [
            ("a\nb max_slots=2", 2, "max_slots=2"),
            ("a 4", 1, "slots, device"),
            ("a slots=0", 1, "slots=0"),
            ("a threads=many", 1, "threads=many"),
            ("a device=tpu", 1, "device=tpu"),
            ("a slots=1 slots=2", 1, "slots is given twice"),
            ("a\n#\na", 3, "line 1 already"),
            ("a model=", 1, "model="),
            ("-v", 1, "-v"),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.starts_with(&format!("line {line}: ")) && said.contains(word), "{said}");
        }
        assert_eq!(parse("# nothing\n\n"), Err(HostsError::Empty));
    }
}
