//! `report.html`: one page that opens without a server; its pictures lie beside it in `samples/`.

use std::{collections::BTreeSet, fmt::Write};

use retouch_evaluation::{Comparison, bootstrap::Estimate};
use retouch_proto::metrics::METRICS;

use crate::show::duration;

use super::{
    chart::{Series, line_chart},
    summary::{IterationPoint, Report},
};

const STYLE: &str = include_str!("style.css");

/// A held-out pair shown on the page.
pub(crate) struct Example {
    pub(crate) prompt: String,
    /// Path of the triptych (source, before, after), relative to the page.
    pub(crate) picture: String,
    /// Score before and after, with the scale's top.
    pub(crate) scores: (f64, f64, f64),
}

/// Renders the whole page.
pub(crate) fn page(report: &Report, examples: &[Example]) -> String {
    let name = escape(&report.name);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Retouch: {name}</title>\
         <style>{STYLE}</style></head><body><h1>{name}</h1>{}{}<h2>Training</h2><div class=\"charts\">{}</div>{}\
         <h2>Held-out pairs</h2><p>Source, before, after; the same initial noise before and after.</p>\
         <div class=\"examples\">{}</div></body></html>\n",
        headline(report),
        measures(report),
        charts(&report.curve),
        glossary(),
        examples.iter().map(example).collect::<String>(),
    )
}

fn headline(report: &Report) -> String {
    let heldout = &report.heldout;
    let (label, gain) = match &heldout.oracle {
        Some(oracle) => ("oracle gain (of 5)", oracle.gain),
        None => ("judge gain (of 1)", heldout.judge.gain),
    };
    let facts = [
        (label, interval(gain)),
        ("iterations", report.iterations.to_string()),
        ("state", report.state.clone()),
        ("wall clock", duration(report.wall_s)),
        ("peak memory", format!("{:.0} MiB", report.peak_rss_mib)),
        (
            "adapter",
            format!(
                "<code>{}</code> {}",
                &report.adapter[..report.adapter.len().min(16)],
                report.adapter_age()
            ),
        ),
    ];
    let cells = facts
        .iter()
        .map(|(name, value)| format!("<div><b>{value}</b><span>{name}</span></div>"));
    format!(
        "<section class=\"facts\">{}</section>",
        cells.collect::<String>()
    )
}

fn measures(report: &Report) -> String {
    let heldout = &report.heldout;
    let mut rows = String::new();
    if let Some(oracle) = &heldout.oracle {
        rows += &measure_row("oracle, 0..5", oracle);
    }
    rows += &measure_row("judge, 0..1", &heldout.judge);
    let tasks = heldout.gain_by_task.iter().map(|(task, gain)| {
        format!(
            "<tr><td>{}</td><td>{}</td></tr>",
            escape(task),
            interval(*gain)
        )
    });
    let stages = report.stage_s.iter().map(|(stage, seconds)| {
        format!(
            "<tr><td>{}</td><td>{}</td></tr>",
            escape(stage),
            duration(*seconds)
        )
    });
    format!(
        "<h2>Measures on {} held-out pairs</h2><p>{}; mean and 95 % interval of a paired bootstrap.</p>\
         <table><tr><th></th><th>before</th><th>after</th><th>gain</th></tr>{rows}</table>\
         <div class=\"side\"><table><tr><th>task</th><th>gain</th></tr>{}</table>\
         <table><tr><th>stage</th><th>time</th></tr>{}</table></div>",
        heldout.pairs,
        escape(&heldout.sampling),
        tasks.collect::<String>(),
        stages.collect::<String>(),
    )
}

fn measure_row(name: &str, measure: &Comparison) -> String {
    format!(
        "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        interval(measure.before),
        interval(measure.after),
        interval(measure.gain),
    )
}

/// A chart for each title of the table of metrics, in its order.
fn charts(curve: &[IterationPoint]) -> String {
    let mut charts: Vec<(&str, Vec<Series>)> = Vec::new();
    for metric in &METRICS {
        let Some(title) = metric.chart else { continue };
        let values = curve.iter().map(|point| *point.values.get(metric.name)?);
        let series = Series::new(metric.label, values);
        match charts.iter_mut().find(|(other, _)| *other == title) {
            Some((_, together)) => together.push(series),
            None => charts.push((title, vec![series])),
        }
    }
    let charts = charts.iter();
    let charts: String = charts
        .map(|(title, series)| line_chart(title, series))
        .collect();
    charts + &reward_terms(curve)
}

/// What the charts show, in words.
fn glossary() -> String {
    let rows = METRICS.iter().filter(|metric| metric.chart.is_some());
    let rows = rows.map(|metric| {
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(metric.name),
            escape(metric.unit),
            escape(metric.meaning)
        )
    });
    format!(
        "<details><summary>What the curves are</summary><table>{}</table></details>",
        rows.collect::<String>()
    )
}

/// What each judge says, where there is more than one.
fn reward_terms(curve: &[IterationPoint]) -> String {
    let names: BTreeSet<&String> = curve.iter().flat_map(|p| p.reward_terms.keys()).collect();
    if names.len() < 2 {
        return String::new();
    }
    let values = |name: &String| {
        curve
            .iter()
            .map(|p| p.reward_terms.get(name).copied())
            .collect::<Vec<_>>()
    };
    let series = names
        .into_iter()
        .map(|name| Series::new(&escape(name), values(name)));
    line_chart("mean score by reward term", &series.collect::<Vec<_>>())
}

fn example(example: &Example) -> String {
    let (before, after, top) = example.scores;
    let mut html = String::new();
    let _ = write!(
        html,
        "<figure><img src=\"{}\" alt=\"source, before, after\"><figcaption>{}<br>{before:.2} &rarr; {after:.2} of {top}</figcaption></figure>",
        escape(&example.picture),
        escape(&example.prompt),
    );
    html
}

fn interval(estimate: Estimate) -> String {
    format!(
        "{:.3} <small>[{:.3}, {:.3}]</small>",
        estimate.mean, estimate.ci95[0], estimate.ci95[1]
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use retouch_proto::{metrics::TOP_PERCENT, status::IterationMetrics, task::TrainMetrics};

    use super::*;

    #[test]
    fn several_judges_have_a_chart_and_gaps_where_one_was_silent() {
        let point = |iteration, terms: &[(&str, f64)]| IterationPoint {
            iteration,
            reward_terms: terms
                .iter()
                .map(|(name, mean)| ((*name).to_owned(), *mean))
                .collect(),
            ..IterationPoint::default()
        };
        let one = [point(1, &[("edit", 0.5)]), point(2, &[("edit", 0.6)])];
        assert_eq!(reward_terms(&one), "");
        let two = [
            point(1, &[("edit", 0.5), ("<b>", 0.1)]),
            point(2, &[("edit", 0.6)]),
        ];
        let chart = reward_terms(&two);
        assert!(chart.contains("mean score by reward term"), "{chart}");
        assert!(
            chart.contains("&lt;b&gt;") && !chart.contains("<b>"),
            "{chart}"
        );
    }

    #[test]
    fn every_metric_with_a_chart_is_drawn_and_explained() {
        let scored = IterationMetrics {
            scored: 1,
            reward_top: TOP_PERCENT.map(|percent| (percent.to_string(), 0.5)).into(),
            train: Some(TrainMetrics::default()),
            ..IterationMetrics::default()
        };
        let charts = charts(&[IterationPoint::from(&scored)]);
        let drawn = charts.matches("<polyline").count();
        let rows = glossary().matches("<tr>").count();
        let with_chart = METRICS.iter().filter(|metric| metric.chart.is_some());
        assert_eq!([drawn, rows], [with_chart.count(); 2], "{charts}");
        let first = |title: &str| charts.find(title).expect(title);
        assert!(first("KL to the base") < first("largest distance from the old policy"));
    }

    #[test]
    fn text_from_datasets_is_escaped() {
        let html = example(&Example {
            prompt: "<script>".to_owned(),
            picture: "a.png".to_owned(),
            scores: (1.0, 2.0, 5.0),
        });
        assert!(
            html.contains("&lt;script&gt;") && !html.contains("<script>"),
            "{html}"
        );
    }
}
