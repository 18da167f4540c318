//! The table.

use std::fmt::Write;

use super::cells::Kind;
use super::report::{Figure, PEAK, Report, Row};

/// The whole of it, as Markdown.
pub(super) fn print(report: &Report) -> String {
    let mut text = String::new();
    for cell in &report.cells {
        if let Some(why) = cell.absent {
            line(&mut text, format_args!("{} left out: {why}", cell.name));
        }
    }
    for family in report.families() {
        line(&mut text, format_args!("\n### {family}\n"));
        head(&mut text, report);
        // Peaks are one for each workload, and the JSON has them.
        for row in report.rows.iter().filter(|row| row.family == family && family != PEAK) {
            figures(&mut text, report, row);
        }
        worst(&mut text, report, family);
        mean(&mut text, report, family, "geometric mean / jemalloc", |figure| figure.to_base);
        mean(&mut text, report, family, "geometric mean / best peer", |figure| figure.to_best);
    }
    spread(&mut text, report);
    text
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("a string takes all");
}

/// Columns that are shown.
fn shown(report: &Report) -> impl Iterator<Item = usize> + '_ {
    (0..report.cells.len()).filter(|cell| report.cells[*cell].absent.is_none())
}

fn head(text: &mut String, report: &Report) {
    let names: Vec<String> = shown(report)
        .map(|cell| match report.cells[cell].kind {
            Kind::Ours => format!("**{}**", report.cells[cell].name),
            _ => report.cells[cell].name.clone(),
        })
        .collect();
    line(text, format_args!("| | {} | best peer |", names.join(" | ")));
    line(text, format_args!("|---|{}", "---|".repeat(names.len() + 1)));
}

/// The value, and in brackets the ratio to jemalloc.
fn figures(text: &mut String, report: &Report, row: &Row) {
    let values: Vec<String> = shown(report)
        .map(|cell| match &row.figures[cell] {
            Some(figure) => format!("{} ({:.2})", value(figure.median), figure.to_base),
            None => String::new(),
        })
        .collect();
    let (name, unit) = (&row.name, row.unit);
    line(text, format_args!("| {name} [{unit}] | {} | {} |", values.join(" | "), row.best));
}

fn value(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn mean(text: &mut String, report: &Report, family: &str, title: &str, ratio: fn(&Figure) -> f64) {
    let means: Vec<String> = shown(report)
        .map(|cell| {
            report
                .mean(&[family], cell, ratio)
                .map_or_else(String::new, |mean| format!("**{mean:.2}**"))
        })
        .collect();
    line(text, format_args!("| **{title}** | {} | |", means.join(" | ")));
}

/// The highest ratio to jemalloc, and of what.
fn worst(text: &mut String, report: &Report, family: &str) {
    let worst: Vec<String> = shown(report)
        .map(|cell| {
            report.worst(family, cell).map_or_else(String::new, |(row, figure)| {
                format!("{:.2} {}", figure.to_base, row.name)
            })
        })
        .collect();
    line(text, format_args!("| *worst / jemalloc* | {} | |", worst.join(" | ")));
}

/// How much the figures vary from round to round.
fn spread(text: &mut String, report: &Report) {
    let spreads: Vec<f64> = report
        .rows
        .iter()
        .filter(|row| row.unit == "ns")
        .flat_map(|row| row.figures.iter().flatten())
        .map(|figure| figure.spread)
        .collect();
    if !spreads.is_empty() {
        let middle = 100.0 * crate::meter::median(&spreads);
        let most = 100.0 * crate::meter::quantile(&spreads, 0.95);
        line(
            text,
            format_args!(
                "\nOf {} rounds; {}; quartiles of a time lie {middle:.0} % of it apart in the median, {most:.0} % \
                 in one of twenty.",
                report.rounds,
                if report.clock == "ns" { "wall time" } else { "CPU time" },
            ),
        );
    }
}
