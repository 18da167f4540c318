//! The aims that a run can be held against: each a ratio of medians within its rounds.

use super::cells::{self, BASE, COMPILED_OUT, LIMITED, MANY, NONE};
use super::report::{EMPTY, Figure, PEAK, Report, Row};
use crate::aim::Aim;
use crate::workload::Family;

/// Families of time whose rows are all workloads but those that are made for groups.
const TIMED: [Family; 3] = [Family::Allocator, Family::TwoThreads, Family::Application];

/// All of them, in the order of their table.
pub(super) fn of(report: &Report) -> Vec<Aim> {
    let all = TIMED.map(Family::name);
    let to_jemalloc = |what: &str, most, family: Family, cell| {
        let cell = report.cell(cell);
        let mean = report.mean(&[family.name()], cell, |figure| figure.to_base);
        Aim::new(what, most, mean)
    };
    let mut aims = vec![
        worst(report, "hot pair, each size, limited group / jemalloc", 0.95, |row| {
            row.name.starts_with("pair.")
        }),
        worst(report, "batches, each, limited group / jemalloc", 0.55, |row| {
            row.name.starts_with("batch.")
        }),
        to_jemalloc(
            "allocator workloads, limited group / jemalloc, mean",
            0.8,
            Family::Allocator,
            LIMITED,
        ),
        worst(report, "the same, the worst of them", 1.1, |row| {
            row.family == Family::Allocator.name()
        }),
        to_jemalloc(
            "application workloads, limited group / jemalloc, mean",
            0.9,
            Family::Application,
            LIMITED,
        ),
        to_jemalloc(
            "two-thread workloads, limited group / jemalloc, mean",
            0.9,
            Family::TwoThreads,
            LIMITED,
        ),
        to_jemalloc(
            "allocator workloads, 1,000 groups switched every 16 operations / jemalloc, mean",
            1.0,
            Family::Allocator,
            MANY,
        ),
        Aim::new(
            "all workloads, limited group / the best unaccounted peer of each, mean",
            1.05,
            report.mean(&all, report.cell(LIMITED), |figure| figure.to_best),
        )
        .of(families(report, |family| {
            report.mean(&[family], report.cell(LIMITED), |figure| figure.to_best)
        })),
    ];
    aims.extend([
        between(
            report,
            "all workloads, no group used / compiled out",
            1.02,
            &TIMED,
            NONE,
            COMPILED_OUT,
        ),
        between(
            report,
            "whole-process workloads, limited group / no group used",
            1.02,
            &[Family::Application],
            LIMITED,
            NONE,
        ),
        between(report, "all workloads, depth 8 / depth 1", 1.05, &TIMED, cells::DEEP, LIMITED),
    ]);
    aims.extend(memory(report));
    aims
}

/// The highest ratio to jemalloc of the rows that `wanted` names.
fn worst(report: &Report, what: &str, most: f64, wanted: impl Fn(&Row) -> bool) -> Aim {
    let limited = report.cell(LIMITED);
    let rows = report.rows.iter().filter(|row| Family::is_timed(row.family) && wanted(row));
    let ratios: Vec<(&str, f64)> = rows
        .filter_map(|row| Some((row.name.as_str(), row.figures[limited].as_ref()?.to_base)))
        .collect();
    let highest = ratios.iter().map(|ratio| ratio.1).max_by(f64::total_cmp);
    // The bad ones are what is asked about where there are many.
    let over = |ratio: &&(&str, f64)| ratios.len() < 8 || ratio.1 > most;
    let named = ratios.iter().filter(over).map(|(name, ratio)| format!("{name} {ratio:.2}"));
    Aim::new(what, most, highest).of(named.collect::<Vec<_>>().join(", "))
}

/// The mean of one state's ratio to another within the rounds.
fn between(report: &Report, what: &str, most: f64, of: &[Family], cell: &str, to: &str) -> Aim {
    let (cell, to) = (report.cell(cell), report.cell(to));
    let names: Vec<&str> = of.iter().map(|family| family.name()).collect();
    let aim = Aim::new(format!("{what}, mean"), most, report.between(&names, cell, to));
    if of.len() == 1 {
        return aim;
    }
    aim.of(families(report, |family| report.between(&[family], cell, to)))
}

/// A figure of each family.
fn families(report: &Report, figure: impl Fn(&str) -> Option<f64>) -> String {
    let names = report.families().into_iter().filter(|family| Family::is_timed(family));
    let named = names
        .filter(|family| *family != Family::Groups.name())
        .filter_map(|family| Some(format!("{family} {:.3}", figure(family)?)));
    named.collect::<Vec<_>>().join(", ")
}

fn memory(report: &Report) -> [Aim; 3] {
    let limited = report.cell(LIMITED);
    let ratio = |figure: &Figure| figure.to_base;
    let peak = Aim::new(
        format!("peak RSS, limited group / {BASE}, mean"),
        1.0,
        report.mean(&[PEAK], limited, ratio),
    );
    let highest = report.worst(PEAK, limited);
    let most = Aim::new("the same, the worst", 1.25, highest.map(|(_, figure)| figure.to_base))
        .of(highest.map_or_else(String::new, |(row, _)| row.name.clone()));
    let freed: Vec<(&str, f64)> = report
        .rows
        .iter()
        .filter(|row| row.family == EMPTY)
        .filter_map(|row| Some((row.name.as_str(), row.figures[limited].as_ref()?.median)))
        .collect();
    let left = freed.iter().map(|left| left.1).max_by(f64::total_cmp);
    let named: Vec<String> = freed.iter().map(|(name, left)| format!("{name} {left:.2}")).collect();
    let wait = crate::workload::rest(report.scale).as_millis() as f64 / 1000.0;
    let left = Aim::new(
        format!("RSS {wait} s after freeing everything / before it was allocated, the worst"),
        1.2,
        left,
    );
    [peak, most, left.of(named.join(", "))]
}

#[cfg(test)]
mod tests {
    use super::super::{Cell, Options};
    use super::*;
    use crate::meter::Scale;
    use serde_json::{Value, json};

    fn report(figures: &[(&str, &str, Family, f64)]) -> Report {
        let cells = cells::all(&cells::none());
        let mut measured = Vec::new();
        for (workload, _, family, _) in figures {
            if !measured.iter().any(|((name, _), _): &((&str, Family), _)| name == workload) {
                measured.push(((leak(workload), *family), vec![Vec::new(); cells.len()]));
            }
        }
        let at = |cells: &[Cell], name: &str| {
            cells.iter().position(|cell| cell.name == name).expect("a cell")
        };
        for (workload, cell, family, value) in figures {
            let answers = measured.iter_mut().find(|row| row.0.0 == *workload).expect("pushed");
            answers.1[at(&cells, cell)].push(answer(*family, *value));
        }
        let options = Options { scale: Scale::Full, ..Options::default() };
        Report::new(cells, &measured, &options, 1)
    }

    fn leak(name: &str) -> &'static str {
        String::from(name).leak()
    }

    fn answer(family: Family, value: f64) -> Value {
        let memory =
            json!({ "asked": 1, "before": 1.0, "full": 2.0, "tenth": 2.0, "empty": value });
        let memory = if family == Family::Memory { memory } else { Value::Null };
        json!({ "ns": value, "peak_rss": 1 << 20, "memory": memory })
    }

    fn figure(aims: &[Aim], what: &str) -> Option<f64> {
        aims.iter().find(|aim| aim.what.contains(what)).expect("such an aim").figure
    }

    #[test]
    fn each_figure_is_what_its_aim_says() {
        let report = report(&[
            ("pair.16", BASE, Family::Allocator, 10.0),
            ("pair.16", "mimalloc", Family::Allocator, 5.0),
            ("pair.16", COMPILED_OUT, Family::Allocator, 4.0),
            ("pair.16", NONE, Family::Allocator, 5.0),
            ("pair.16", LIMITED, Family::Allocator, 8.0),
            ("pair.16", cells::DEEP, Family::Allocator, 16.0),
            ("pair.16", MANY, Family::Allocator, 30.0),
            ("pair.64", BASE, Family::Allocator, 10.0),
            ("pair.64", LIMITED, Family::Allocator, 9.0),
            ("json", BASE, Family::Application, 10.0),
            ("json", NONE, Family::Application, 10.0),
            ("json", LIMITED, Family::Application, 12.0),
            ("memory.16", BASE, Family::Memory, 1.0),
            ("memory.16", LIMITED, Family::Memory, 1.5),
        ]);
        let aims = of(&report);
        let is = |what: &str, expected: f64| {
            let found = figure(&aims, what).unwrap_or_else(|| panic!("{what} was measured"));
            assert!((found - expected).abs() < 1e-9, "{what}: {found} and not {expected}");
        };
        is("hot pair", 0.9);
        is("allocator workloads, limited group", (0.8_f64 * 0.9).sqrt());
        is("the same, the worst of them", 0.9);
        is("application workloads", 1.2);
        is("1,000 groups", 3.0);
        is("best unaccounted peer", (1.6_f64 * 0.9 * 1.2).cbrt());
        is("compiled out", 1.25);
        is("whole-process", 1.2);
        is("depth 8", 2.0);
        is("RSS 5 s after", 1.5);
        assert_eq!(figure(&aims, "two-thread"), None);
        assert_eq!(figure(&aims, "batches"), None);
    }
}
