//! The image as it comes to be, in terminals that can show it.
//!
//! The picture lies above the progress bar and is drawn again in its place. All that is known of the terminal is its
//! size: the picture never takes all of its rows, so that whatever is drawn above the bar is still on the screen.

mod encode;
mod terminal;

pub(super) use encode::Picture;

use encode::Cells;
use indicatif::ProgressBar;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};
use terminal::Protocol;

/// How often a picture is drawn at most: enough to see it grow, and little over a slow connection.
const EVERY: Duration = Duration::from_millis(250);

/// Where previews are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PreviewArg {
    /// In a terminal that is known to show them.
    Auto,
    /// Nowhere.
    Off,
    /// By kitty's graphics protocol, which Ghostty knows, too.
    Kitty,
    /// By iTerm2's inline images, which `WezTerm` knows, too.
    Iterm,
    /// In coloured half blocks: any terminal with 24-bit colours.
    Blocks,
}

impl PreviewArg {
    /// The screen to show previews on, if there is one.
    ///
    /// # Errors
    /// If a protocol was asked for, and standard output or error is no terminal.
    pub(super) fn screen(self, silent: bool) -> anyhow::Result<Option<Screen>> {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let protocol = match self {
            Self::Off => return Ok(None),
            Self::Auto if silent || !terminal => return Ok(None),
            Self::Auto => terminal::detect(|name| std::env::var(name).ok()),
            _ if silent => {
                anyhow::bail!("--preview: --json and --quiet leave nothing to show it on")
            }
            _ if !terminal => anyhow::bail!(
                "--preview: standard output and standard error must be a terminal to show previews; leave it out, \
                 or give --preview off"
            ),
            Self::Kitty => Some(Protocol::Kitty),
            Self::Iterm => Some(Protocol::Iterm),
            Self::Blocks => Some(Protocol::Blocks),
        };
        Ok(protocol.map(|protocol| Screen::new(protocol, std::process::id())))
    }
}

/// The picture above the progress bar.
#[derive(Debug)]
pub(super) struct Screen {
    protocol: Protocol,
    /// What the terminal calls the picture, where it wants a number: an earlier command's stays what it is.
    number: u32,
    shown: Option<Shown>,
    drawn: Option<Instant>,
}

#[derive(Debug)]
struct Shown {
    cells: Cells,
    /// Rows and columns of the terminal.
    terminal: (u16, u16),
    body: String,
}

impl Screen {
    fn new(protocol: Protocol, number: u32) -> Self {
        Self { protocol, number, shown: None, drawn: None }
    }

    /// Whether a picture may be drawn again already.
    pub(super) fn is_due(&self) -> bool {
        self.drawn.is_none_or(|drawn| drawn.elapsed() >= EVERY)
    }

    /// Shows `picture` above `bar`, in the place of the one before.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn show(&mut self, bar: &ProgressBar, picture: &Picture) -> io::Result<()> {
        self.drawn = Some(Instant::now());
        let drawing = self.draw(picture, size());
        beneath(bar, &drawing)
    }

    /// Prints a line above the picture.
    ///
    /// # Errors
    /// If the terminal cannot be written to.
    pub(super) fn print(&mut self, bar: &ProgressBar, line: &str) -> io::Result<()> {
        if self.shown.is_none() {
            bar.println(line);
            return Ok(());
        }
        let drawing = self.above(line, size());
        beneath(bar, &drawing)
    }

    /// What draws `picture`, with the cursor in the row below, before and after. Nothing, where there is no room.
    fn draw(&mut self, picture: &Picture, terminal: Option<(u16, u16)>) -> String {
        let Some((terminal, cells)) = terminal.and_then(|size| Some((size, picture.fit(size)?)))
        else {
            self.shown = None; // what is there stays
            return String::new();
        };
        let body = match self.protocol {
            Protocol::Kitty => picture.kitty(cells, self.number),
            Protocol::Iterm => picture.iterm(cells),
            Protocol::Blocks => picture.blocks(cells),
        };
        let again = |shown: &Shown| (shown.cells, shown.terminal) == (cells, terminal);
        // In another size it is drawn anew: rows may have moved.
        let again = self.shown.as_ref().is_some_and(again);
        let drawing = if again { placed(cells, &body) } else { anew(cells, &body) };
        self.shown = Some(Shown { cells, terminal, body });
        drawing
    }

    /// What moves the picture down by `line`.
    fn above(&mut self, line: &str, terminal: Option<(u16, u16)>) -> String {
        let line = line.replace('\n', "\r\n");
        let in_place = self.shown.as_ref().filter(|shown| terminal == Some(shown.terminal));
        let Some(Shown { cells, body, .. }) = in_place else {
            self.shown = None;
            return format!("{line}\r\n");
        };
        let gone = match self.protocol {
            Protocol::Kitty => encode::kitty_gone(self.number),
            Protocol::Iterm | Protocol::Blocks => String::new(),
        };
        format!("{gone}\x1b[{}A\r\x1b[J{line}\r\n{}", cells.rows, anew(*cells, body))
    }
}

/// Makes room above the cursor and draws there.
fn anew(cells: Cells, body: &str) -> String {
    "\n".repeat(cells.rows.into()) + &placed(cells, body)
}

/// Draws in the rows above the cursor, and comes back.
fn placed(cells: Cells, body: &str) -> String {
    let mut drawing = String::with_capacity(body.len() + 16);
    // Writing to a string succeeds.
    write!(drawing, "\r\x1b7\x1b[{}A{body}\x1b8", cells.rows).ok();
    drawing
}

/// Writes while there is no bar.
fn beneath(bar: &ProgressBar, drawing: &str) -> io::Result<()> {
    if drawing.is_empty() {
        return Ok(());
    }
    bar.suspend(|| {
        let mut out = io::stderr().lock();
        out.write_all(drawing.as_bytes())?;
        out.flush()
    })
}

/// Rows and columns of the terminal, if it tells.
fn size() -> Option<(u16, u16)> {
    console::Term::stderr().size_checked()
}

#[cfg(test)]
mod tests;
