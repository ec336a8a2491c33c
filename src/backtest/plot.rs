//! A plot of spend against plan, as SVG.

use std::path::Path;

use plotters::prelude::*;

use super::{Report, SLICES};

/// Size in pixels.
const SIZE: (u32, u32) = (960, 540);

/// Micros of a unit of currency.
const MICROS: f64 = 1e6;

/// Draws what was billed by the end of each slice against the even plan, and the spend of each slice over its plan.
pub fn draw(report: &Report, path: &Path) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 * 2 / 3);
    let budget = report.budget_micros as f64 / MICROS;

    let mut sum = 0.0;
    let spent: Vec<(f64, f64)> = std::iter::once((0.0, 0.0))
        .chain(report.slices_micros.iter().enumerate().map(|(i, micros)| {
            sum += *micros as f64 / MICROS;
            ((i + 1) as f64 / SLICES as f64 * 100.0, sum)
        }))
        .collect();
    let title = format!(
        "{}: value {:.3} of the optimum, {:.1} % of the budget billed",
        report.policy,
        report.value_ratio,
        report.utilisation * 100.0
    );
    let mut chart = ChartBuilder::on(&upper)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..100.0, 0.0..budget * 1.05)?;
    chart.configure_mesh().x_desc("% of the flight").y_desc("billed").draw()?;
    chart
        .draw_series(LineSeries::new([(0.0, 0.0), (100.0, budget)], BLACK.mix(0.5)))?
        .label("plan")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLACK.mix(0.5)));
    chart
        .draw_series(LineSeries::new(spent, BLUE.stroke_width(2)))?
        .label("spend")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], BLUE));
    chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).draw()?;

    let plan = budget / SLICES as f64;
    let mut chart = ChartBuilder::on(&lower)
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..100.0, 0.0..report.max_slice.max(1.0) * 1.1)?;
    chart.configure_mesh().x_desc("% of the flight").y_desc("spend / plan").draw()?;
    chart.draw_series(LineSeries::new([(0.0, 1.0), (100.0, 1.0)], BLACK.mix(0.5)))?;
    chart.draw_series(LineSeries::new(
        report
            .slices_micros
            .iter()
            .enumerate()
            .map(|(i, micros)| ((i as f64 + 0.5) / SLICES as f64 * 100.0, *micros as f64 / MICROS / plan)),
        BLUE,
    ))?;
    root.present()?;
    Ok(())
}
