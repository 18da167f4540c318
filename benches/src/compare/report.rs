//! What the rounds say: medians, spreads, ratios, geometric means.

use serde_json::{Value, json};

use super::Options;
use super::cells::{BASE, Cell, Kind};
use super::rounds::Measured;
use crate::aim::Aim;
use crate::meter::{Scale, median, quantile};
use crate::workload::Family;

/// One cell of one row.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The median of the rounds.
    pub median: f64,
    /// The distance of the quartiles, as a share of the median.
    pub spread: f64,
    /// To jemalloc.
    pub to_base: f64,
    /// To the best unaccounted peer of the row.
    pub to_best: f64,
    /// Of each round.
    pub rounds: Vec<f64>,
}

/// One workload, or one property of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// What it is averaged with.
    pub family: &'static str,
    /// `ns`, or bytes.
    pub unit: &'static str,
    /// The best unaccounted peer.
    pub best: String,
    /// One for each cell; none where it did not run.
    pub figures: Vec<Option<Figure>>,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The columns.
    pub cells: Vec<Cell>,
    /// The rows.
    pub rows: Vec<Row>,
    /// How much of each workload.
    pub scale: Scale,
    /// Which time was compared.
    pub clock: &'static str,
    /// Rounds.
    pub rounds: usize,
}

/// Families of rows that are not those of workloads.
pub(super) const PEAK: &str = "peak RSS";
pub(super) const FULL: &str = "RSS, all live";
pub(super) const TENTH: &str = "RSS, 90 % freed";
pub(super) const EMPTY: &str = "RSS, all freed";
/// Above what was there before, when all but a few objects have just been freed.
pub(super) const KEPT: &str = "RSS, few kept";
pub(super) const LATER: &str = "RSS, few kept, 10 s later";

impl Report {
    /// Of what was measured.
    pub(super) fn new(
        cells: Vec<Cell>,
        measured: &Measured,
        options: &Options,
        rounds: usize,
    ) -> Self {
        let clock = if options.cpu { "cpu_ns" } else { "ns" };
        let mut rows = Vec::new();
        for ((name, family), answers) in measured {
            let mut add = |family, unit, read: &dyn Fn(&Value) -> Option<f64>| {
                let values: Vec<Vec<f64>> =
                    answers.iter().map(|rounds| rounds.iter().filter_map(read).collect()).collect();
                rows.extend(row(&cells, name, family, unit, &values));
            };
            let mib = |field: &'static str| {
                move |answer: &Value| {
                    let memory = &answer["memory"];
                    let bytes = memory[field].as_f64()? - memory["before"].as_f64()?;
                    Some(bytes.max(4096.0) / f64::from(1 << 20))
                }
            };
            if name.starts_with("kept.") {
                add(KEPT, "MiB", &mib("kept"));
                add(LATER, "MiB", &mib("later"));
                continue;
            }
            if *family == Family::Memory {
                // What the process had before is the binary's and the workload's table.
                let above = |field: &'static str| {
                    move |answer: &Value| {
                        let memory = &answer["memory"];
                        let bytes = memory[field].as_f64()? - memory["before"].as_f64()?;
                        // A heap that fell below where it began counts as one page.
                        Some(bytes.max(4096.0) / memory["asked"].as_f64()?)
                    }
                };
                add(FULL, "per byte", &above("full"));
                add(TENTH, "per byte", &above("tenth"));
                add(EMPTY, "of before", &|answer| {
                    let memory = &answer["memory"];
                    Some(memory["empty"].as_f64()? / memory["before"].as_f64()?)
                });
            } else {
                add(family.name(), "ns", &|answer| answer[clock].as_f64());
            }
            add(PEAK, "MiB", &|answer| Some(answer["peak_rss"].as_f64()? / f64::from(1 << 20)));
        }
        Self { cells, rows, scale: options.scale, clock, rounds }
    }

    /// Families that have rows, in order.
    #[must_use]
    pub fn families(&self) -> Vec<&'static str> {
        let mut families: Vec<&'static str> = Family::ALL.map(Family::name).to_vec();
        families.extend([PEAK, FULL, TENTH, EMPTY, KEPT, LATER]);
        families.retain(|family| self.rows.iter().any(|row| row.family == *family));
        families
    }

    /// The column of that title.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn cell(&self, name: &str) -> usize {
        self.cells.iter().position(|cell| cell.name == name).expect("a cell of that name")
    }

    /// The geometric mean over the families' rows of what `ratio` has of them.
    fn mean_of(&self, families: &[&str], ratio: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
        let logs: Vec<f64> = self
            .rows
            .iter()
            .filter(|row| families.contains(&row.family))
            .filter_map(|row| Some(ratio(row)?.ln()))
            .collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }

    /// The geometric mean over the families' rows of one cell's ratio.
    #[must_use]
    pub fn mean(&self, families: &[&str], cell: usize, ratio: fn(&Figure) -> f64) -> Option<f64> {
        self.mean_of(families, |row| row.figures[cell].as_ref().map(ratio))
    }

    /// The geometric mean over the families' rows of the ratio of one cell to another.
    #[must_use]
    pub fn between(&self, families: &[&str], cell: usize, to: usize) -> Option<f64> {
        self.mean_of(families, |row| {
            let (cell, to) = (row.figures[cell].as_ref()?, row.figures[to].as_ref()?);
            Some(ratio(&cell.rounds, &to.rounds))
        })
    }

    /// The row of a family in which one cell's ratio to jemalloc is the highest.
    #[must_use]
    pub fn worst(&self, family: &str, cell: usize) -> Option<(&Row, &Figure)> {
        self.rows
            .iter()
            .filter(|row| row.family == family)
            .filter_map(|row| Some((row, row.figures[cell].as_ref()?)))
            .max_by(|a, b| a.1.to_base.total_cmp(&b.1.to_base))
    }

    /// All of it, and what it was held against.
    #[must_use]
    pub fn json(&self, aims: &[Aim]) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let figures: serde_json::Map<String, Value> = self
                    .cells
                    .iter()
                    .zip(&row.figures)
                    .filter_map(|(cell, figure)| {
                        let figure = figure.as_ref()?;
                        let value = json!({
                            "median": figure.median,
                            "spread": figure.spread,
                            "to_jemalloc": figure.to_base,
                            "to_best_peer": figure.to_best,
                        });
                        Some((cell.name.clone(), value))
                    })
                    .collect();
                json!({
                    "name": row.name,
                    "family": row.family,
                    "unit": row.unit,
                    "best_peer": row.best,
                    "figures": figures,
                })
            })
            .collect();
        let means: Vec<Value> = self
            .families()
            .iter()
            .flat_map(|family| {
                self.cells.iter().enumerate().filter_map(move |(index, cell)| {
                    Some(json!({
                        "family": family,
                        "cell": cell.name,
                        "to_jemalloc": self.mean(&[family], index, |figure| figure.to_base)?,
                        "to_best_peer": self.mean(&[family], index, |figure| figure.to_best)?,
                    }))
                })
            })
            .collect();
        let absent: serde_json::Map<String, Value> = self
            .cells
            .iter()
            .filter_map(|cell| Some((cell.name.clone(), Value::from(cell.absent?))))
            .collect();
        json!({
            "scale": self.scale.name(),
            "clock": self.clock,
            "rounds": self.rounds,
            "absent": absent,
            "rows": rows,
            "geometric_means": means,
            "aims": aims.iter().map(Aim::json).collect::<Vec<_>>(),
        })
    }
}

/// The median of the ratios within a round.
fn ratio(values: &[f64], of: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(of).map(|(value, of)| value / of).collect();
    if ratios.is_empty() { f64::NAN } else { median(&ratios) }
}

/// None if nobody has a value.
fn row(
    cells: &[Cell],
    name: &str,
    family: &'static str,
    unit: &'static str,
    values: &[Vec<f64>],
) -> Option<Row> {
    let base = cells.iter().position(|cell| cell.name == BASE)?;
    let best = (0..cells.len())
        .filter(|cell| cells[*cell].kind == Kind::Unaccounted && !values[*cell].is_empty())
        .min_by(|a, b| median(&values[*a]).total_cmp(&median(&values[*b])))?;
    let figures = values
        .iter()
        .map(|mine| {
            (!mine.is_empty()).then(|| {
                let middle = median(mine);
                Figure {
                    median: middle,
                    spread: (quantile(mine, 0.75) - quantile(mine, 0.25)) / middle,
                    to_base: ratio(mine, &values[base]),
                    to_best: ratio(mine, &values[best]),
                    rounds: mine.clone(),
                }
            })
        })
        .collect();
    Some(Row { name: name.to_owned(), family, unit, best: cells[best].name.clone(), figures })
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;

    #[test]
    fn ratios_are_within_a_round_and_to_the_best_peer() {
        let cells = cells::all(&cells::none());
        let answer = |ns: f64| json!({ "ns": ns, "peak_rss": 1 << 20, "memory": null });
        let mut answers = vec![Vec::new(); cells.len()];
        let at = |name: &str| cells.iter().position(|cell| cell.name == name).expect("a cell");
        // The machine was slow in the second round.
        answers[at("jemalloc")] = vec![answer(10.0), answer(100.0), answer(10.0)];
        answers[at("mimalloc")] = vec![answer(5.0), answer(50.0), answer(5.0)];
        answers[at("limited")] = vec![answer(8.0), answer(80.0), answer(9.0)];
        let limited = at("limited");
        let options = Options { scale: Scale::Quick, ..Options::default() };
        let measured = vec![(("pair.64", Family::Allocator), answers)];
        let report = Report::new(cells, &measured, &options, 3);
        let row = &report.rows[0];
        assert_eq!(row.best, "mimalloc");
        let figure = row.figures[limited].as_ref().expect("it ran");
        assert!((figure.to_base - 0.8).abs() < 1e-9 && (figure.to_best - 1.6).abs() < 1e-9);
        let mean = report.mean(&["allocator"], limited, |figure| figure.to_base);
        assert!((mean.expect("a row") - 0.8).abs() < 1e-9);
        assert_eq!(report.json(&[])["rows"][0]["figures"]["limited"]["median"], 9.0);
    }
}
