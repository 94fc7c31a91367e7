//! Tables and figures that a person reads.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::deadline::elapsed;

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    indent: &'static str,
}

impl Table {
    pub(super) fn new(indent: &'static str, heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()], indent }
    }

    pub(super) fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| plain(&cell)).collect());
    }

    pub(super) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            format!("{}{}\n", self.indent, line.trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// A cell for what may not be known.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Bytes with a unit that fits.
pub(super) fn bytes(count: u64) -> String {
    let units = [("TiB", 40_u32), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, shift)| count >= 1 << shift);
    match unit {
        None => format!("{count} B"),
        Some((unit, shift)) => {
            let tenths = (u128::from(count) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// A span in the unit that a person would choose.
pub(super) fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..300 => format!("{seconds} s"),
        seconds @ 300..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// How long ago `then` was.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(elapsed(then, now)))
}

/// `then` counted from the notice: `T+38 s`.
pub(super) fn since(notice: Option<Timestamp>, then: Option<Timestamp>) -> String {
    match (notice, then) {
        (_, None) => "-".to_owned(),
        (None, Some(then)) => then.to_string(),
        (Some(notice), Some(then)) => format!("T+{} s", elapsed(notice, then).as_secs()),
    }
}

/// Text from outside, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1536 << 10, 5 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB"]);
        let spans =
            [0, 299, 300, 7199, 7200, 200_000].map(|count| span(Duration::from_secs(count)));
        assert_eq!(spans, ["0 s", "299 s", "5 min", "119 min", "2 h", "2 d"]);
    }

    #[test]
    fn a_name_from_outside_cannot_move_the_cursor() {
        let mut table = Table::new("", &["NAME", "X"]);
        table.add(["a\u{1b}[2J".to_owned(), "1".to_owned()]);
        assert_eq!(table.render(), "NAME   X\na?[2J  1\n");
    }
}
