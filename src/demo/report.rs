//! The HTML report: one file that needs nothing else.

use askama::Template;

use crate::demo::{
    player::Sample,
    plot::{self, Mark, Spend},
    verdict::Verdict,
};

/// Campaigns shown by name: those furthest from their plan.
const WORST: usize = 10;

#[derive(Template)]
#[template(path = "report.html", config = "src/demo/askama.toml")]
struct Page<'a> {
    verdict: &'a Verdict,
    seconds: u64,
    p50_ms: String,
    p99_ms: String,
    delivered: String,
    spend: String,
    latency: String,
    deliveries: String,
    worst: Vec<Row<'a>>,
}

struct Row<'a> {
    campaign: &'a str,
    planned: String,
    delivered: String,
    share: String,
}

/// What the report is made of.
pub(super) struct Material<'a> {
    pub(super) verdict: &'a Verdict,
    pub(super) seconds: u64,
    pub(super) spend: &'a [Spend],
    pub(super) samples: &'a [Sample],
    pub(super) marks: &'a [Mark],
}

/// The page.
pub(super) fn render(material: &Material<'_>) -> anyhow::Result<String> {
    let verdict = material.verdict;
    let mut worst: Vec<_> = verdict.deliveries.iter().collect();
    worst.sort_by(|a, b| a.share().total_cmp(&b.share()));
    let units = |micros: u64| format!("{:.2}", micros as f64 / 1e6);
    let page = Page {
        verdict,
        seconds: material.seconds,
        p50_ms: ms(verdict.score_p50_us),
        p99_ms: ms(verdict.score_p99_us),
        delivered: percent(verdict.delivered_share),
        spend: plot::spend(material.spend, verdict.planned_micros, material.marks)?,
        latency: plot::latency(material.samples)?,
        deliveries: plot::deliveries(&verdict.deliveries)?,
        worst: worst
            .into_iter()
            .take(WORST)
            .map(|d| Row {
                campaign: &d.campaign,
                planned: units(d.planned_micros),
                delivered: units(d.delivered_micros),
                share: percent(d.share()),
            })
            .collect(),
    };
    Ok(page.render()?)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn ms(us: u64) -> String {
    format!("{:.1}", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{demo::verdict::Delivery, verify::Findings};

    #[test]
    fn the_report_is_one_file_with_figures_plots_and_what_is_wrong() {
        let mut findings = Findings::default();
        findings.note("a <token> billed twice".into());
        let verdict = Verdict {
            planned_micros: 2_000_000,
            delivered_micros: 1_900_000,
            delivered_share: 0.95,
            score_p99_us: 4_321,
            findings,
            deliveries: (0..30)
                .map(|i| Delivery {
                    campaign: format!("demo-{i}"),
                    planned_micros: 100_000,
                    delivered_micros: 80_000 + i * 600,
                })
                .collect(),
            ..Verdict::default()
        };
        let spend: Vec<Spend> =
            (0..100).map(|i| Spend { at: f64::from(i) / 100.0, micros: u64::from(i as u32) * 19_000 }).collect();
        let samples: Vec<Sample> =
            (0..5_000).map(|i| Sample { at: f64::from(i) / 5_000.0, micros: 300 + (i as u32 * 7919) % 900 }).collect();
        let marks = [Mark { at: 0.35, what: "actor of demo-1 crashed".into() }];
        let material = Material { verdict: &verdict, seconds: 20, spend: &spend, samples: &samples, marks: &marks };
        let html = render(&material).unwrap();
        for part in ["95.0 %", "4.3 ms", "a &#60;token&#62; billed twice", "demo-0", "actor of demo-1 crashed"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<svg").count(), 3);
        let elsewhere = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http"), "nothing is loaded from elsewhere");
    }
}
