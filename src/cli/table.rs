//! Tables for people and, with `--plain`, for programs that read columns.

use std::fmt;

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};

use super::output::{self, Look};

/// Rows under a header. On a terminal it fits the width; with `--plain` there are tabs between columns and a row is a line.
pub(super) struct Listing {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Columns whose cells stand at the right.
    right: Vec<usize>,
}

impl Listing {
    pub(super) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new(), right: Vec::new() }
    }

    /// These columns hold numbers.
    pub(super) fn right(mut self, columns: impl IntoIterator<Item = usize>) -> Self {
        self.right.extend(columns);
        self
    }

    pub(super) fn add_row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn plain(&self) -> String {
        let one_line = |cell: &String| cell.trim().replace(['\t', '\n'], " ");
        let line = |cells: &Vec<String>| cells.iter().map(one_line).collect::<Vec<_>>().join("\t");
        std::iter::once(&self.header).chain(&self.rows).map(line).collect::<Vec<_>>().join("\n")
    }

    fn aligned(&self, width: Option<u16>, colour: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // What the terminal is like is known already, and tables are made for pipes as well.
        table.force_no_tty();
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        if colour {
            table.enforce_styling();
        }
        let head = |text: &String| {
            let cell = Cell::new(text);
            if colour { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(self.header.iter().map(head));
        for row in &self.rows {
            table.add_row(row);
        }
        for column in &self.right {
            if let Some(column) = table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let text = table.to_string();
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Look { plain, colour, .. } = output::look();
        f.write_str(&if plain { self.plain() } else { self.aligned(output::width(), colour) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let mut listing = Listing::new(["PEER", "AGENT", "BYTES"]).right([2]);
        listing.add_row(["12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS", "a\tb\nc", "7"]);
        listing.add_row(["b", "quelea/0.1.0", "1234"]);
        listing
    }

    #[test]
    fn plain_rows_are_lines_with_tabs() {
        let expected =
            "PEER\tAGENT\tBYTES\n12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS\ta b c\t7\nb\tquelea/0.1.0\t1234";
        assert_eq!(listing().plain(), expected);
    }

    #[test]
    fn a_terminal_is_not_overrun_and_a_pipe_is_not_folded() {
        for width in [40, 60, 79] {
            let text = listing().aligned(Some(width), false);
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= usize::from(width), "{longest} columns of {width}:\n{text}");
        }
        let piped = listing().aligned(None, false);
        assert!(piped.contains("12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS") && !piped.contains('\u{1b}'));
        assert!(listing().aligned(None, true).contains("\u{1b}[1m"));
    }
}
