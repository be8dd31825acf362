//! What `submit` shows while it waits: a bar on a terminal, lines in a pipe, JSON when asked.

use super::preview::{Picture, Screen};
use crate::profile::Profiles;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::job::JobSpec;
use protocol::message::{BandView, Event, Phase, RecoveryView, WaitView};
use protocol::plan::Branch;
use protocol::{FaultKind, JobId};
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Lines in a pipe: one for each of this many parts of the steps.
const LINES: u32 = 10;
/// How often a bar redraws while nothing happens, so that its clock runs.
const REDRAW: Duration = Duration::from_millis(200);

/// Shows a job's events.
#[derive(Debug)]
pub(super) struct Progress {
    style: Style,
    screen: Option<Screen>,
    seed: Option<u64>,
    finished: Option<Finished>,
    bands: usize,
    calls: u32,
}

#[derive(Debug)]
enum Style {
    Bar(ProgressBar),
    Lines,
    Json,
    Quiet,
}

#[derive(Debug)]
struct Finished {
    seconds_per_step: f64,
    seconds: f64,
    waits: Vec<WaitView>,
    displaced_calls: u32,
}

impl Progress {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let style = match (json, quiet, terminal) {
            (true, _, _) => Style::Json,
            (_, true, _) => Style::Quiet,
            (_, _, true) => Style::Bar(bar()),
            _ => Style::Lines,
        };
        Self { style, screen: None, seed: None, finished: None, bands: 0, calls: 0 }
    }

    /// Shows previews on `screen`, if there is one.
    pub(super) fn with_previews(mut self, screen: Option<Screen>) -> Self {
        self.screen = screen;
        self
    }

    /// Whether a preview would be shown.
    pub(super) fn wants_preview(&self) -> bool {
        self.screen.as_ref().is_some_and(Screen::is_due)
    }

    /// Shows how the image looks by now, or that it cannot be told.
    pub(super) fn preview(
        &mut self,
        picture: Result<Option<Picture>, impl std::fmt::Display>,
    ) -> io::Result<()> {
        let (Style::Bar(bar), Some(screen)) = (&self.style, &mut self.screen) else {
            return Ok(());
        };
        match picture {
            Ok(Some(picture)) => screen.show(bar, &picture),
            Ok(None) => Ok(()),
            Err(error) => {
                let said = screen.print(bar, &format!("note: no previews: {error}"));
                self.screen = None;
                said
            }
        }
    }

    pub(super) fn accepted(&mut self, job: JobId, ahead: u32) -> io::Result<()> {
        match &self.style {
            Style::Json => say(&json!({ "event": "accepted", "job": job, "ahead": ahead })),
            Style::Lines if ahead > 0 => say(&format!("{job} waits behind {ahead} others")),
            _ => Ok(()),
        }
    }

    pub(super) fn event(&mut self, event: &Event) -> io::Result<()> {
        self.note(event);
        match &self.style {
            Style::Json => say(&flat(event)),
            Style::Quiet => Ok(()),
            Style::Bar(bar) => draw(bar, self.screen.as_mut(), event),
            Style::Lines => line(event).map_or(Ok(()), |line| say(&line)),
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Started { spec, bands, .. } => {
                self.seed = Some(spec.seed);
                self.bands = bands.len();
            }
            Event::Step { calls, .. } => self.calls = *calls,
            Event::Finished { seconds_per_step, seconds, waits, displaced_calls, .. } => {
                self.finished = Some(Finished {
                    seconds_per_step: *seconds_per_step,
                    seconds: *seconds,
                    waits: waits.clone(),
                    displaced_calls: *displaced_calls,
                });
            }
            _ => {}
        }
    }

    /// The end: files, seed, speed, and what workers waited for each other.
    pub(super) fn written(&self, image: &Path, latents: Option<&Path>) -> io::Result<()> {
        let Some(finished) = &self.finished else { return Ok(()) };
        match &self.style {
            Style::Quiet => Ok(()),
            Style::Json => say(&json!({
                "event": "written", "file": image, "latents": latents, "seed": self.seed,
            })),
            Style::Bar(_) | Style::Lines => {
                let seed = self.seed.unwrap_or_default();
                say(&format!(
                    "{}  seed {seed}, {:.3} s/step, {:.1} s in all",
                    image.display(),
                    finished.seconds_per_step,
                    finished.seconds
                ))?;
                latents.map_or(Ok(()), |path| say(&format!("{}", path.display())))?;
                if self.bands > 1 {
                    say(&format!(
                        "{}; {} of {} calls displaced",
                        waits(finished),
                        finished.displaced_calls,
                        self.calls
                    ))?;
                }
                Ok(())
            }
        }
    }

    /// Where the time went, and where more of it is written.
    pub(super) fn profiled(&self, trace: &Path, profiles: &Profiles) -> io::Result<()> {
        match &self.style {
            Style::Quiet => Ok(()),
            Style::Json => say(&json!({ "event": "profiled", "file": trace })),
            Style::Bar(_) | Style::Lines => say(&format!(
                "\n{}\n\n{}  when each did what: open it at ui.perfetto.dev",
                profiles.table(),
                trace.display()
            )),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Style::Bar(bar) = &self.style {
            bar.finish_and_clear();
        }
    }
}

fn waits(finished: &Finished) -> String {
    let each = finished.waits.iter().map(|wait| {
        let share = 100.0 * wait.seconds / finished.seconds.max(f64::MIN_POSITIVE);
        format!("{} {:.2} s ({share:.0} %)", wait.worker, wait.seconds)
    });
    format!("waited for peers: {}", each.collect::<Vec<_>>().join(", "))
}

/// Prints a line; a reader that went away is no reason to stop rendering.
pub(super) fn say(line: &impl std::fmt::Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let cause = format!("cannot write to standard output: {error}");
            Err(io::Error::new(error.kind(), cause))
        }
        _ => Ok(()),
    }
}

/// `{"step": {"call": 1}}` as `{"event": "step", "call": 1}`.
pub(super) fn flat(event: &Event) -> Value {
    let Ok(Value::Object(tagged)) = serde_json::to_value(event) else { return Value::Null };
    let mut flat = serde_json::Map::new();
    for (name, fields) in tagged {
        flat.insert("event".to_owned(), name.into());
        if let Value::Object(fields) = fields {
            flat.extend(fields);
        }
    }
    Value::Object(flat)
}

pub(super) fn line(event: &Event) -> Option<String> {
    match event {
        Event::Queued { ahead: 0, workers, wanted } if workers < wanted => {
            Some(format!("waiting for workers: {workers} of {wanted} are there"))
        }
        Event::Queued { ahead, .. } if *ahead > 0 => Some(format!("waiting behind {ahead} others")),
        Event::Started { spec, model, bands, reason, .. } => {
            Some(started(spec, model, bands, reason))
        }
        Event::Notice { text } => Some(format!("note: {text}")),
        Event::Interrupted { fault, call } => Some(format!("broke off after call {call}: {fault}")),
        Event::Resumed { recovery, reason, .. } => Some(resumed(recovery, reason)),
        Event::Phase { phase } => Some(name(*phase).to_owned()),
        Event::Step { call, calls, seconds, .. } => {
            let part = |call: u32| u64::from(call) * u64::from(LINES) / u64::from(*calls).max(1);
            let due = part(*call) > part(call - 1);
            due.then(|| format!("step {call}/{calls}, {seconds:.3} s"))
        }
        _ => None,
    }
}

pub(super) fn started(spec: &JobSpec, model: &str, bands: &[BandView], reason: &str) -> String {
    let plural = if bands.len() == 1 { "" } else { "s" };
    let prompts = bands.iter().filter(|band| band.branch == Branch::Prompt).count();
    let branches = match prompts {
        0 => String::new(),
        _ => format!(" ({} for the negative prompt)", bands.len() - prompts),
    };
    format!(
        "{model}, {}x{}, {} steps of {}, guidance {}, seed {}, {} worker{plural}{branches}, {}\n\
         plan: {reason}",
        spec.width,
        spec.height,
        spec.steps,
        spec.scheduler,
        spec.guidance,
        spec.seed,
        bands.len(),
        spec.way()
    )
}

fn resumed(recovery: &RecoveryView, reason: &str) -> String {
    let [before, after] = recovery.workers;
    let plural = if after == 1 { "" } else { "s" };
    let again = recovery.broke_at.saturating_sub(recovery.resumed_at);
    let again = match again {
        0 => String::new(),
        again => format!(", {again} calls again"),
    };
    let exact = if recovery.exact { ", bits unchanged" } else { "" };
    let when = match recovery.fault.kind {
        FaultKind::ShuttingDown => recovery.fault.cause.clone(),
        _ => format!("{:.2} s later", recovery.seconds),
    };
    format!(
        "goes on after call {} on {after} worker{plural} (of {before}): {when}{again}{exact}\n\
         plan: {reason}",
        recovery.resumed_at
    )
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::TextEncoding => "text encoding",
        Phase::Denoising => "denoising",
        Phase::Decoding => "decoding",
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(waiting_style());
    bar.set_message("starting");
    bar.enable_steady_tick(REDRAW);
    bar
}

/// Templates that fit narrow terminals: `wide_` parts shrink to what is left.
fn waiting_style() -> ProgressStyle {
    template("{spinner} {wide_msg} {elapsed}")
}

fn step_style() -> ProgressStyle {
    template("{msg} {pos}/{len} {wide_bar} {per_step} eta {eta}").with_key(
        "per_step",
        |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let rate = state.per_sec();
            if rate > 0.0 {
                // Nothing is lost if the bar cannot be drawn.
                write!(out, "{:.2} s/it", 1.0 / rate).ok();
            }
        },
    )
}

fn template(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant")
}

fn draw(bar: &ProgressBar, screen: Option<&mut Screen>, event: &Event) -> io::Result<()> {
    match event {
        Event::Step { call, calls, .. } => {
            bar.set_length((*calls).into());
            bar.set_position((*call).into());
        }
        Event::Phase { phase: Phase::Denoising } => {
            bar.disable_steady_tick();
            bar.reset();
            bar.set_style(step_style());
            bar.set_message(name(Phase::Denoising));
        }
        Event::Phase { phase } => {
            bar.set_style(waiting_style());
            bar.set_message(name(*phase));
            bar.enable_steady_tick(REDRAW);
        }
        Event::Notice { .. }
        | Event::Started { .. }
        | Event::Interrupted { .. }
        | Event::Resumed { .. } => {
            if let Event::Started { spec, .. } = event {
                // The first step corrects it for samplers that take several calls a step.
                bar.set_length(spec.steps.into());
            }
            match (line(event), screen) {
                (Some(line), Some(screen)) => screen.print(bar, &line)?,
                (Some(line), None) => bar.println(line),
                (None, _) => {}
            }
        }
        Event::Queued { .. } => {
            if let Some(line) = line(event) {
                bar.set_message(line);
            }
        }
        Event::Finished { .. } | Event::Failed { .. } => bar.finish_and_clear(),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(call: u32, calls: u32) -> Event {
        let (seconds, waited) = (0.5, 0.0);
        Event::Step { call, calls, seconds, waited, displaced: true, change: Some(0.125) }
    }

    #[test]
    fn json_events_are_flat_and_named() {
        let wanted = json!({
            "event": "step", "call": 3, "calls": 30, "seconds": 0.5, "waited": 0.0,
            "displaced": true, "change": 0.125,
        });
        assert_eq!(flat(&step(3, 30)), wanted);
    }

    #[test]
    fn a_pipe_gets_about_ten_lines_of_steps() {
        for calls in [1, 2, 7, 30, 1000] {
            let lines = (1..=calls).filter_map(|call| line(&step(call, calls))).count();
            assert!(lines <= 10 && lines >= usize::try_from(calls.min(10)).unwrap(), "{lines}");
            assert!(line(&step(calls, calls)).is_some(), "the last step has a line");
        }
    }
}
