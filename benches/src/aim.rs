//! What is aimed at, and what was measured.

use std::fmt::Write;

use serde_json::{Value, json};

/// A figure and the bound that it is to keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Aim {
    /// What is measured.
    pub what: String,
    /// The most that it may be; none for what is told beside an aim.
    pub most: Option<f64>,
    /// What it is; none where it was not measured.
    pub figure: Option<f64>,
    /// What it is made of.
    pub detail: String,
}

impl Aim {
    /// At most `most`, and measured if `figure` is.
    #[must_use]
    pub fn new(what: impl Into<String>, most: f64, figure: impl Into<Option<f64>>) -> Self {
        let figure = figure.into();
        Self { what: what.into(), most: Some(most), figure, detail: String::new() }
    }

    /// No aim, but worth knowing beside one.
    #[must_use]
    pub fn told(what: impl Into<String>, figure: f64) -> Self {
        Self { what: what.into(), most: None, figure: Some(figure), detail: String::new() }
    }

    /// The same, with what it is made of.
    #[must_use]
    pub fn of(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }

    /// Whether the bound is kept.
    #[must_use]
    pub fn verdict(&self) -> String {
        match (self.most, self.figure) {
            (None, _) => String::from("no aim"),
            (_, None) => String::from("not measured"),
            (Some(most), Some(figure)) if figure <= most => String::from("met"),
            (Some(most), Some(figure)) => {
                format!("missed by {:.0} %", (100.0 * (figure / most - 1.0)).max(1.0))
            }
        }
    }

    /// As JSON has it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "aim": self.what,
            "at_most": self.most,
            "figure": self.figure,
            "verdict": self.verdict(),
            "detail": self.detail,
        })
    }

    /// From what [`json`](Self::json) made.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            what: value["aim"].as_str()?.to_owned(),
            most: value["at_most"].as_f64(),
            figure: value["figure"].as_f64(),
            detail: value["detail"].as_str()?.to_owned(),
        })
    }
}

/// All of them, as Markdown.
///
/// # Panics
///
/// Never: a string takes all.
#[must_use]
pub fn table(aims: &[Aim]) -> String {
    let mut text = String::from("| | at most | figure | | of |\n|---|---|---|---|---|\n");
    for aim in aims {
        let number = |value: Option<f64>| match value {
            Some(value) if value >= 10.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.3}"),
            None => String::new(),
        };
        let most = aim.most.map_or_else(String::new, |most| most.to_string());
        let (what, figure, verdict) = (&aim.what, number(aim.figure), aim.verdict());
        writeln!(text, "| {what} | {most} | {figure} | {verdict} | {} |", aim.detail)
            .expect("a string takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_kept_or_missed_and_survives_a_file() {
        let met = Aim::new("pair", 0.95, 0.95).of("pair.16 0.95");
        let missed = Aim::new("pair", 1.0, 1.001);
        let unknown = Aim::new("pair", 1.0, None);
        let told = Aim::told("pair", 3.0);
        assert_eq!(met.verdict(), "met");
        assert_eq!(missed.verdict(), "missed by 1 %");
        assert_eq!(Aim::new("pair", 2.0, 3.0).verdict(), "missed by 50 %");
        assert_eq!(unknown.verdict(), "not measured");
        assert_eq!(told.verdict(), "no aim");
        for aim in [met, missed, unknown, told] {
            assert_eq!(Aim::from_json(&aim.json()), Some(aim));
        }
    }

    #[test]
    fn a_row_for_each() {
        let text = table(&[Aim::new("bytes", 256.0, 302.7), Aim::new("pair", 0.95, 0.5)]);
        assert!(text.contains("| bytes | 256 | 303 | missed by 18 % |"), "{text}");
        assert!(text.contains("| pair | 0.95 | 0.500 | met |"), "{text}");
    }
}
