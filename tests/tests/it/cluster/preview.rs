//! `submit` in a terminal that shows pictures.

use super::within;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU16;
use std::process::{ExitStatus, Stdio};
use tests::cluster::{command, coordinator, text};
use tests::picture;
use vt100::{Color, Parser};

const ROWS: u16 = 30;
const COLUMNS: u16 = 80;
/// What a terminal says of itself.
const SAYS: [&str; 8] = [
    "COLORTERM",
    "KITTY_WINDOW_ID",
    "LC_TERMINAL",
    "NO_COLOR",
    "STY",
    "TERM",
    "TERM_PROGRAM",
    "TMUX",
];

/// Runs `submit` in a terminal of these variables, and shows `see` the screen after each piece of what comes.
fn submit(
    out: &str,
    more: &[&str],
    variables: &[(&str, &str)],
    mut see: impl FnMut(&Parser),
) -> (ExitStatus, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut command = command("coordinator");
    command.args(["submit", "red apple", "--seed", "7", "--local", "1", "--out", out]).args(more);
    for name in SAYS {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    command.stdout(Stdio::from(terminal.try_clone().unwrap())).stderr(Stdio::from(terminal));
    let mut child = command.spawn().unwrap();
    drop(command); // which holds the terminal open
    let (mut master, mut parser) = (File::from(master), parser());
    let (mut piece, mut all) = ([0; 1 << 16], Vec::new());
    // A terminal that nobody has open any more is read with an error.
    while let Ok(count @ 1..) = master.read(&mut piece) {
        parser.process(&piece[..count]);
        all.extend_from_slice(&piece[..count]);
        see(&parser);
    }
    (child.wait().unwrap(), text(&all))
}

fn parser() -> Parser {
    let [rows, columns] = [ROWS, COLUMNS].map(|size| NonZeroU16::new(size).unwrap());
    Parser::new(rows, columns, 0)
}

/// The rows that begin with a block.
fn blocks(parser: &Parser) -> Vec<u16> {
    let begins =
        |row: &u16| parser.screen().cell(*row, 0).is_some_and(|cell| cell.contents() == "\u{2580}");
    (0..ROWS).filter(begins).collect()
}

#[test]
fn the_image_is_seen_as_it_comes_to_be_above_a_bar_that_still_counts() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let variables = [("TERM", "xterm-256color"), ("COLORTERM", "truecolor")];
    let (mut beside, mut most, mut last) = (0, 0, None);
    let mut seen = std::collections::BTreeSet::new();
    let more = ["--steps", "40"];
    let (status, printed) = submit(&out, &more, &variables, |parser| {
        let rows = blocks(parser);
        most = most.max(rows.len());
        if let (16, Some(row)) = (rows.len(), rows.last()) {
            let below: String =
                parser.screen().rows(0, COLUMNS).nth(usize::from(*row) + 1).unwrap_or_default();
            beside += usize::from(below.contains("/40"));
            let cell = parser.screen().cell(rows[8], 16).unwrap();
            seen.insert(format!("{:?}", cell.fgcolor()));
        }
        last = Some((rows, parser.screen().clone()));
    });
    assert!(status.success(), "{printed}");
    assert_eq!(most, 16, "one picture is on the screen, and no more");
    assert!(beside > 0, "no bar below the picture");
    assert!(seen.len() > 1, "the picture does not change: {seen:?}");
    // What is left on the screen is the image.
    let (rows, screen) = last.unwrap();
    let shown = screen.contents();
    assert!(shown.contains("seed 7") && shown.contains("plan: "), "{shown}");
    assert!(!shown.contains("/40"), "the bar is left:\n{shown}");
    let image = picture::read(out.as_ref());
    assert_eq!((image.size, rows.len()), ((256, 256), 16));
    for row in 0..16 {
        for column in 0..32 {
            let cell = screen.cell(rows[0] + row, column).unwrap();
            let halves = [(2 * row, cell.fgcolor()), (2 * row + 1, cell.bgcolor())];
            for (row, got) in halves {
                let want = mean(&image.pixels, row.into(), column.into());
                assert_eq!(got, Color::Rgb(want[0], want[1], want[2]), "{row}, {column}");
            }
        }
    }
}

/// The mean colour of 8 x 8 pixels of an image of 256 x 256.
fn mean(pixels: &[u8], row: usize, column: usize) -> [u8; 3] {
    [0, 1, 2].map(|channel| {
        let of = |at: usize| {
            let (row, column) = (row * 8 + at / 8, column * 8 + at % 8);
            usize::from(pixels[(row * 256 + column) * 3 + channel])
        };
        u8::try_from(((0..64).map(of).sum::<usize>() + 32) / 64).unwrap()
    })
}

/// Options, what the terminal says of itself, and how the picture is drawn.
type Case<'a> = (&'a [&'a str], (&'a str, &'a str), Option<&'a str>);

#[test]
fn an_unknown_terminal_gets_a_bar_and_a_known_one_its_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let steps = ["--steps", "2"];
    let kitty = ("TERM", "xterm-kitty");
    let cases: [Case<'_>; 5] = [
        (&steps, ("TERM", "xterm-256color"), None),
        (&steps, kitty, Some("\u{1b}_Ga=T,")),
        (&[&steps[..], &["--preview", "iterm"]].concat(), kitty, Some("\u{1b}]1337;File=inline=1")),
        (&[&steps[..], &["--preview", "off"]].concat(), kitty, None),
        (&[&steps[..], &["--json"]].concat(), kitty, None),
    ];
    for (more, variable, wanted) in cases {
        let (status, printed) = submit(&out, more, &[variable], |_| {});
        assert!(status.success(), "{printed}");
        for (what, protocol) in
            [("kitty", "\u{1b}_G"), ("iterm", "\u{1b}]1337"), ("blocks", "\u{2580}")]
        {
            let wanted = wanted.is_some_and(|wanted| wanted.starts_with(protocol));
            assert_eq!(printed.contains(protocol), wanted, "{what} with {more:?} and {variable:?}");
        }
        assert!(wanted.is_none_or(|wanted| printed.contains(wanted)));
    }
}

#[test]
fn previews_that_nobody_would_see_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let refused = |more: &[&str]| {
        let submit = ["submit", "red apple", "--local", "1", "--out", &out, "--preview", "kitty"];
        let output = coordinator(&[&submit[..], more].concat());
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    assert!(refused(&[]).contains("must be a terminal"), "{}", refused(&[]));
    assert!(refused(&["--json"]).contains("--json and --quiet"));
}
