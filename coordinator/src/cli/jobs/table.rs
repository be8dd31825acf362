//! Tables that fit a terminal, however narrow.

use console::{Term, measure_text_width, truncate_str};

/// What stands between columns.
const GAP: usize = 2;
/// The last column is worth a line if it has so much room: two words.
const LAST_MIN: usize = 12;
/// Ends what is cut off.
const CUT: &str = "...";

/// Columns that are as wide as their cells, and a last one that takes what is left.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Vec<String>>,
    last: Vec<String>,
}

impl Table {
    /// A table with its last column.
    pub(super) fn new(head: &str, cells: Vec<String>) -> Self {
        Self { columns: Vec::new(), last: with_head(head, cells) }
    }

    /// Adds a column before the last, unless it has nothing to tell. Where there is no room for all, those that
    /// were added last are left out; the first two never are.
    pub(super) fn column(&mut self, head: &str, cells: Vec<String>) {
        if cells.iter().any(|cell| !cell.is_empty()) {
            self.columns.push(with_head(head, cells));
        }
    }

    /// Its lines, none longer than `width` if that is given.
    pub(super) fn lines(&self, width: Option<usize>) -> Vec<String> {
        let widest =
            |column: &Vec<String>| column.iter().map(|cell| measure_text_width(cell)).max();
        let widths: Vec<usize> =
            self.columns.iter().map(|column| widest(column).unwrap_or(0) + GAP).collect();
        let room = |count: usize| {
            width.map(|width| width.saturating_sub(widths[..count].iter().sum::<usize>()))
        };
        let fits = |count: &usize| room(*count).is_none_or(|room| room >= LAST_MIN);
        let count = (2..=widths.len()).rev().find(fits).unwrap_or_else(|| widths.len().min(2));
        let line = |(row, last): (usize, &String)| {
            let mut line = String::new();
            for (column, width) in self.columns[..count].iter().zip(&widths) {
                let cell = &column[row];
                line += cell;
                line += &" ".repeat(width - measure_text_width(cell));
            }
            line += &room(count).map_or_else(|| last.clone(), |room| cut(last, room));
            width.map_or_else(|| line.trim_end().to_owned(), |width| cut(line.trim_end(), width))
        };
        self.last.iter().enumerate().map(line).collect()
    }
}

fn with_head(head: &str, cells: Vec<String>) -> Vec<String> {
    std::iter::once(head.to_owned()).chain(cells).collect()
}

fn cut(text: &str, room: usize) -> String {
    truncate_str(text, room, if room > CUT.len() { CUT } else { "" }).into_owned()
}

/// How wide the terminal is on standard output, if it is one.
pub(super) fn width() -> Option<usize> {
    Term::stdout().size_checked().map(|(_, columns)| usize::from(columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let cells = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let mut table =
            Table::new("PROMPT", cells(["a lighthouse at dusk in the rain", "東京の夜景、雨"]));
        table.column("JOB", cells(["12", "7"]));
        table.column("STATE", cells(["running", "queued"]));
        table.column("AT", cells(["3/30", ""]));
        table.column("PRIORITY", cells(["", ""]));
        table.column("OWNER", cells(["ann", "ben"]));
        table
    }

    #[test]
    fn without_a_terminal_nothing_is_cut() {
        assert_eq!(
            table().lines(None),
            [
                "JOB  STATE    AT    OWNER  PROMPT",
                "12   running  3/30  ann    a lighthouse at dusk in the rain",
                "7    queued         ben    東京の夜景、雨",
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_loses_columns_and_then_letters_but_no_line_breaks() {
        assert_eq!(
            table().lines(Some(33)),
            [
                "JOB  STATE    AT    PROMPT",
                "12   running  3/30  a lighthou...",
                "7    queued         東京の夜景..."
            ]
        );
        for width in 0..70 {
            let lines = table().lines(Some(width));
            let widest = lines.iter().map(|line| measure_text_width(line)).max();
            assert!(widest <= Some(width), "{width}: {lines:?}");
        }
    }
}
