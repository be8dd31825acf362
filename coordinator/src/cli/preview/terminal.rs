//! What a terminal can show, by what it says of itself in the environment.

/// How pictures are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Kitty,
    Iterm,
    Blocks,
}

/// How the terminal of these environment variables shows pictures, if it is known to.
pub(super) fn detect(variable: impl Fn(&str) -> Option<String>) -> Option<Protocol> {
    let value = |name| variable(name).unwrap_or_default();
    let is_set = |name| !value(name).is_empty();
    let (terminal, program) = (value("TERM"), value("TERM_PROGRAM"));
    if terminal == "dumb" {
        return None;
    }
    // What lies between a program and its terminal passes characters on, and no pictures.
    let multiplexed = is_set("TMUX")
        || is_set("STY")
        || ["screen", "tmux"].iter().any(|name| terminal.starts_with(name));
    if !multiplexed {
        let kitty = is_set("KITTY_WINDOW_ID")
            || ["xterm-kitty", "xterm-ghostty"].contains(&&*terminal)
            || program == "ghostty";
        if kitty {
            return Some(Protocol::Kitty);
        }
        // The second passes through ssh.
        let iterm =
            ["iTerm.app", "WezTerm"].contains(&&*program) || value("LC_TERMINAL") == "iTerm2";
        if iterm {
            return Some(Protocol::Iterm);
        }
    }
    let coloured = ["truecolor", "24bit"].contains(&&*value("COLORTERM")) && !is_set("NO_COLOR");
    coloured.then_some(Protocol::Blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn a_terminal_is_known_by_what_it_sets_and_an_unknown_one_shows_nothing() {
        let kitty = ("KITTY_WINDOW_ID", "1");
        let colours = ("COLORTERM", "truecolor");
        let cases: &[(Variables<'_>, Option<Protocol>)] = &[
            (&[], None),
            (&[("TERM", "xterm-256color")], None),
            (&[("TERM", "dumb"), colours, kitty], None),
            (&[("TERM", "xterm-256color"), colours], Some(Protocol::Blocks)),
            (&[("TERM", "xterm-256color"), ("COLORTERM", "24bit")], Some(Protocol::Blocks)),
            (&[("TERM", "xterm-256color"), colours, ("NO_COLOR", "1")], None),
            (&[("TERM", "xterm-kitty")], Some(Protocol::Kitty)),
            (&[("TERM", "xterm-256color"), kitty], Some(Protocol::Kitty)),
            (&[("TERM", "xterm-ghostty"), colours], Some(Protocol::Kitty)),
            (&[("TERM_PROGRAM", "ghostty")], Some(Protocol::Kitty)),
            (&[("TERM_PROGRAM", "iTerm.app"), colours], Some(Protocol::Iterm)),
            (&[("TERM_PROGRAM", "WezTerm"), colours], Some(Protocol::Iterm)),
            (&[("LC_TERMINAL", "iTerm2")], Some(Protocol::Iterm)),
            (
                &[("TERM", "tmux-256color"), ("TMUX", "/tmp/t"), kitty, colours],
                Some(Protocol::Blocks),
            ),
            (&[("TERM", "screen.xterm-256color"), ("LC_TERMINAL", "iTerm2")], None),
            (&[("TERM_PROGRAM", "vscode"), colours], Some(Protocol::Blocks)),
        ];
        for (variables, wanted) in cases {
            let variable = |name: &str| {
                let set = variables.iter().find(|(set, _)| *set == name);
                set.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(detect(variable), *wanted, "{variables:?}");
        }
    }
}
