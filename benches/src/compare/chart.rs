//! The chart: geometric means of each family, to jemalloc.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::cells::{BASE, Kind};
use super::report::Report;

const FAMILIES: [&str; 4] = ["allocator", "two-thread", "application", "groups"];
/// Bars are cut here: the worst peers are several times as high.
const TOP: f64 = 4.0;
/// Room for the legend, in bars.
const LEGEND: usize = 9;

/// Draws it.
pub(super) fn draw(report: &Report, path: &Path) -> Result<(), Box<dyn Error>> {
    let families: Vec<&str> =
        report.families().into_iter().filter(|family| FAMILIES.contains(family)).collect();
    let cells: Vec<usize> = (0..report.cells.len())
        .filter(|cell| {
            let cell = &report.cells[*cell];
            cell.absent.is_none() && cell.name != "jemalloc#2" && cell.state != "at-limit"
        })
        .collect();
    // Each family takes one bar more than there are cells, which is the gap.
    let stride = cells.len() + 1;
    let root = SVGBackend::new(path, (1000, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Time, in units of jemalloc without accounting (lower is better)",
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(25)
        .y_label_area_size(40)
        .build_cartesian_2d(0.0..(families.len() * stride + LEGEND) as f64, 0.0..TOP)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .y_desc("geometric mean")
        .draw()?;
    for (place, &cell) in cells.iter().enumerate() {
        let colour = colour(report.cells[cell].kind, &report.cells[cell].name, place);
        let bars = families.iter().enumerate().filter_map(|(at, family)| {
            let mean = report.mean(&[family], cell, |figure| figure.to_base)?;
            let left = (at * stride + place) as f64;
            Some(Rectangle::new([(left, 0.0), (left + 0.9, mean.min(TOP))], colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(label(report, cell))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart.draw_series(families.iter().enumerate().map(|(at, family)| {
        let style = ("sans-serif", 15).into_font().color(&BLACK);
        Text::new((*family).to_owned(), ((at * stride) as f64, TOP * 0.97), style)
    }))?;
    let line = [(0.0, 1.0), ((families.len() * stride) as f64, 1.0)];
    chart.draw_series(LineSeries::new(line, &BLACK))?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn label(report: &Report, cell: usize) -> String {
    let cell = &report.cells[cell];
    match cell.kind {
        Kind::Ours => format!("memcg, {}", cell.name),
        _ => cell.name.clone(),
    }
}

/// Grey for peers that count nothing, red for those that do, blue for memcg.
fn colour(kind: Kind, name: &str, place: usize) -> RGBColor {
    let shade = u8::try_from(place * 12).unwrap_or(u8::MAX);
    match kind {
        _ if name == BASE => BLACK,
        Kind::Unaccounted => RGBColor(110 + shade, 110 + shade, 110 + shade),
        Kind::Accounting => RGBColor(220, 40 + shade, 40 + shade),
        Kind::Ours => RGBColor(20 + shade / 2, 60 + shade, 200),
        Kind::Also => RGBColor(20, 150, 60),
    }
}
