//! Plots of a run, as SVG.

use anyhow::anyhow;
use plotters::prelude::*;

use crate::demo::{player::Sample, profile, verdict::Delivery};

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (900, 320);
/// Points of the latency curves: half an hour of the day each.
const BUCKETS: usize = 48;
const BLUE: RGBColor = RGBColor(31, 119, 180);
const GREY: RGBColor = RGBColor(120, 120, 120);
const ORANGE: RGBColor = RGBColor(221, 107, 32);

/// Money billed, over the day.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spend {
    /// Share of the day.
    pub(super) at: f64,
    pub(super) micros: u64,
}

/// Something that happened, to be marked.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// Share of the day.
    pub(super) at: f64,
    pub(super) what: String,
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the plot could not be drawn: {error}")
}

/// Spend against plan: the plan follows the day's traffic.
pub(super) fn spend(spend: &[Spend], planned_micros: u64, marks: &[Mark]) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let top = planned_micros as f64 / 1e6 * 1.05;
        let digits = if top < 20.0 { 1 } else { 0 };
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..24.0, 0.0..top)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(13)
            .x_label_formatter(&|hour| format!("{hour:.0}"))
            .y_label_formatter(&|units| format!("{units:.digits$}"))
            .x_desc("hour of the day")
            .y_desc("billed (currency units)")
            .draw()
            .map_err(failed)?;
        let plan = (0..=96).map(|i| f64::from(i) / 96.0);
        let plan = plan.map(|at| (at * 24.0, profile::day_share(at) * planned_micros as f64 / 1e6));
        let style = GREY.stroke_width(2);
        chart
            .draw_series(LineSeries::new(plan, style))
            .map_err(failed)?
            .label("plan: the budgets, in proportion to the day's traffic")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let line = spend.iter().map(|s| ((s.at * 24.0).min(24.0), s.micros as f64 / 1e6));
        let style = BLUE.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line, style))
            .map_err(failed)?
            .label("billed")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        for mark in marks {
            let x = mark.at * 24.0;
            chart
                .draw_series(LineSeries::new([(x, 0.0), (x, top)], ORANGE.stroke_width(1)))
                .map_err(failed)?
                .label(mark.what.clone())
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], ORANGE.stroke_width(1)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(GREY.mix(0.4))
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Median and 99th percentile of the score latency, per half hour of the day.
pub(super) fn latency(samples: &[Sample]) -> anyhow::Result<String> {
    let mut buckets: Vec<Vec<u32>> = vec![Vec::new(); BUCKETS];
    for sample in samples {
        let bucket = (sample.at.clamp(0.0, 1.0) * BUCKETS as f64) as usize;
        buckets[bucket.min(BUCKETS - 1)].push(sample.micros);
    }
    buckets.iter_mut().for_each(|bucket| bucket.sort_unstable());
    let curve = |at: f64| -> Vec<(f64, f64)> {
        let value = |bucket: &Vec<u32>| bucket[((bucket.len() - 1) as f64 * at) as usize];
        let filled = buckets.iter().enumerate().filter(|(_, bucket)| !bucket.is_empty());
        filled.map(|(i, b)| ((i as f64 + 0.5) / BUCKETS as f64 * 24.0, f64::from(value(b)) / 1e3)).collect()
    };
    let (p50, p99) = (curve(0.5), curve(0.99));
    let top = p99.iter().map(|(_, ms)| *ms).fold(1.0, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..24.0, (0.05..top).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(13)
            .x_label_formatter(&|hour| format!("{hour:.0}"))
            .y_label_formatter(&|ms| format!("{}", (ms * 100.0).round() / 100.0))
            .x_desc("hour of the day")
            .y_desc("score latency (ms)")
            .draw()
            .map_err(failed)?;
        for (curve, colour, label) in [(p50, BLUE, "median"), (p99, ORANGE, "99th percentile")] {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(curve, style))
                .map_err(failed)?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(GREY.mix(0.4))
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// How many campaigns delivered how much of their plan.
pub(super) fn deliveries(deliveries: &[Delivery]) -> anyhow::Result<String> {
    // Twenty bars up to 100 % (each with its upper end), and one for what must not be.
    const BARS: usize = 21;
    let mut counts = [0u32; BARS];
    for delivery in deliveries {
        counts[((delivery.share() * 20.0).ceil() as usize).clamp(1, BARS) - 1] += 1;
    }
    let top = f64::from(counts.iter().copied().max().unwrap_or(1).max(1)) * 1.1;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..105.0, 0.0..top)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(12)
            .x_label_formatter(&|percent| format!("{percent:.0} %"))
            .y_label_formatter(&|count| format!("{count:.0}"))
            .x_desc("delivered of plan")
            .y_desc("campaigns")
            .draw()
            .map_err(failed)?;
        chart
            .draw_series(counts.iter().enumerate().map(|(i, count)| {
                let from = i as f64 * 5.0;
                Rectangle::new([(from + 0.4, 0.0), (from + 4.6, f64::from(*count))], BLUE.filled())
            }))
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}
