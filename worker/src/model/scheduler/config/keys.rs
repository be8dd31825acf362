//! Reading a JSON object so that no key is ignored: what is read is taken out, and whatever is
//! left must be known to change nothing.

use serde_json::{Map, Value};

use super::super::SchedulerError;

/// Keys whose other values change the image in ways not implemented, with the values that do not.
const FIXED: &[(&str, &[&str])] = &[
    ("algorithm_type", &["\"dpmsolver++\""]),
    ("disable_corrector", &["[]"]),
    ("interpolation_type", &["\"linear\""]),
    ("lambda_min_clipped", &["-Infinity", "null"]),
    ("predict_x0", &["true"]),
    ("sigma_max", &["null"]),
    ("sigma_min", &["null"]),
    ("solver_order", &["2"]),
    ("solver_p", &["null"]),
    // Each of the two solvers reads the other's name as its own default.
    ("solver_type", &["\"midpoint\"", "\"bh2\"", "\"logrho\""]),
    ("thresholding", &["false"]),
    ("timestep_type", &["\"discrete\""]),
    ("trained_betas", &["null"]),
    ("use_beta_sigmas", &["false", "null"]),
    ("use_dynamic_shifting", &["false", "null"]),
    ("use_exponential_sigmas", &["false", "null"]),
    ("use_flow_sigmas", &["false", "null"]),
    ("use_lu_lambdas", &["false", "null"]),
    ("variance_type", &["null"]),
];

/// Parameters of features that [`FIXED`] keeps off: inert at any value.
const INERT: &[&str] =
    &["dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"];

/// The keys not read yet.
pub(super) struct Keys(Map<String, Value>);

impl Keys {
    pub(super) fn new(json: &Value) -> Result<Self, SchedulerError> {
        match json {
            Value::Object(map) => Ok(Self(map.clone())),
            other => Err(SchedulerError::NotAnObject { cause: other.to_string() }),
        }
    }

    /// Takes `key` out, if it is there, as `convert` reads it.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        supported: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, SchedulerError> {
        let Some(value) = self.0.shift_remove(key) else { return Ok(None) };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(unsupported(key, &value, supported)),
        }
    }

    /// Null is false, as in Python.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, SchedulerError> {
        self.take(
            key,
            "true, false",
            |value| if value.is_null() { Some(false) } else { value.as_bool() },
        )
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, SchedulerError> {
        let within = |n: &usize| (least..=most).contains(n);
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok().filter(within);
        self.take(key, &format!("{least} to {most}"), count)
    }

    /// A number above 0 and below `limit`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        limit: f64,
    ) -> Result<Option<f64>, SchedulerError> {
        let number = |value: &Value| value.as_f64().filter(|&x| x > 0.0 && x < limit);
        self.take(key, &format!("above 0, below {limit:e}"), number)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, SchedulerError> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let find = |value: &Value| {
            let chosen = choices.iter().find(|(name, _)| value.as_str() == Some(name));
            chosen.map(|&(_, choice)| choice)
        };
        self.take(key, &names.join(", "), find)
    }

    /// Refuses what is left, unless it is known to change nothing.
    pub(super) fn finish(mut self) -> Result<(), SchedulerError> {
        for (key, supported) in FIXED {
            let text = |value: &Value| match value {
                Value::String(text) if text == "-Infinity" => text.clone(),
                other => other.to_string(),
            };
            let is_supported =
                |value: &Value| supported.contains(&text(value).as_str()).then_some(());
            self.take(key, &supported.join(", "), is_supported)?;
        }
        // As in diffusers, an underscore marks what is about the file.
        let unknown = |key: &str| !key.starts_with('_') && !INERT.contains(&key);
        match self.0.into_iter().find(|(key, _)| unknown(key)) {
            Some((key, value)) => Err(SchedulerError::UnknownKey { key, value: value.to_string() }),
            None => Ok(()),
        }
    }
}

pub(super) fn unsupported(key: &'static str, value: &Value, supported: &str) -> SchedulerError {
    let supported = supported.to_owned();
    SchedulerError::Unsupported { key, value: value.to_string(), supported }
}
