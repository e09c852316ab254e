//! The table on the screen, and the file.

use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, Table};

use crate::expected::{original, wanted};
use crate::figure::Figure;

/// The figures as a table, each with what is wanted and what the Go original did.
pub fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "figure",
        "database",
        "value",
        "unit",
        "bare baseline",
        "ratio",
        "wanted",
        "Go original",
    ]);
    for figure in figures {
        let bound = wanted(&figure.name);
        let verdict = match (bound, bound.and_then(|bound| bound.holds(figure))) {
            (Some(bound), Some(true)) => Cell::new(format!("{} yes", bound.text())).fg(Color::Green),
            (Some(bound), Some(false)) => Cell::new(format!("{} NO", bound.text())).fg(Color::Red),
            _ => Cell::new(""),
        };
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(&figure.name),
            Cell::new(figure.database),
            number(shown(figure.value)),
            Cell::new(figure.unit),
            number(figure.baseline.map(shown).unwrap_or_default()),
            number(figure.ratio.map(shown).unwrap_or_default()),
            verdict,
            number(original(&figure.name).unwrap_or_default().to_owned()),
        ]);
    }
    table
}

/// A number for people: what is large without decimals.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Writes `bench-results.json`.
pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(path, text).with_context(|| format!("--json {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::Database;

    #[test]
    fn the_table_says_what_is_wanted_and_whether_it_is_so() {
        let figures = [
            Figure::new("heartbeat_conn_64", Database::Mysql, 7_500.0, "a second", Some(8_000.0)),
            Figure::new("create_conn_1", Database::Sqlite, 300.25, "a second", None),
        ];
        let text = table(&figures).to_string();
        assert!(text.contains("ratio >= 0.95 NO") && text.contains("0.938"), "{text}");
        assert!(text.contains("218") && text.contains("300"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(["8160", "4.50", "0.938", "0"], [8_160.4, 4.5, 0.937_5, 0.0].map(shown));
    }

    #[test]
    fn the_file_is_a_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench-results.json");
        write(&path, &[Figure::new("x", Database::Mysql, 1.0, "s", None)]).unwrap();
        let back: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(back[0]["name"], "x");
        let error = format!("{:#}", write(Path::new("/no/such/folder/x.json"), &[]).unwrap_err());
        assert!(error.contains("--json"), "{error}");
    }
}
