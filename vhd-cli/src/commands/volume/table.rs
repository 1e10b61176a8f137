//! Tables for people, drawn.

use std::fmt;

/// A table: the widths of its columns come from what is in them.
pub(super) struct Table<const COLUMNS: usize> {
    head: [&'static str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(head: [&'static str; COLUMNS]) -> Self {
        Self { head, rows: Vec::new() }
    }

    pub(super) fn row(&mut self, row: [String; COLUMNS]) {
        self.rows.push(row);
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.map(str::to_owned);
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            let cells = self.rows.iter().chain([&head]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        });
        let rule = widths.map(|width| "-".repeat(width + 2)).join("+");
        writeln!(f, "  +{rule}+")?;
        line(f, &head, &widths)?;
        writeln!(f, "  +{rule}+")?;
        self.rows.iter().try_for_each(|row| line(f, row, &widths))?;
        writeln!(f, "  +{rule}+")
    }
}

fn line<const COLUMNS: usize>(
    f: &mut fmt::Formatter<'_>,
    cells: &[String; COLUMNS],
    widths: &[usize; COLUMNS],
) -> fmt::Result {
    write!(f, "  |")?;
    for (cell, width) in cells.iter().zip(widths) {
        write!(f, " {cell:width$} |")?;
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["node", "x"]);
        table.row(["a".into(), "longer".into()]);
        let lines = [
            "  +------+--------+",
            "  | node | x      |",
            "  +------+--------+",
            "  | a    | longer |",
            "  +------+--------+\n",
        ];
        assert_eq!(table.to_string(), lines.join("\n"));
    }
}
