//! `report.html`: one page that opens without a server; its pictures lie beside it in `samples/`.

use std::collections::BTreeSet;

use retouch_evaluation::{Comparison, HEADINGS, HeldOut, Parts, bootstrap::Estimate};
use retouch_proto::metrics::{METRICS, Metric};

use crate::{samples::Strip, show::duration};

use super::{
    chart::{Series, line_chart},
    summary::{IterationPoint, Report},
};

const CURVES_NOTE: &str = "<p class=\"note\">Pale: as measured in each iteration. Bold: smoothed, by a moving average \
                           that keeps 0.8 of itself.</p>";
const STYLE: &str = include_str!("style.css");
/// In place of numbers that nobody asked for.
const NOT_EVALUATED: &str = "not evaluated";

/// A held-out pair shown on the page.
pub(crate) struct Example {
    pub(crate) prompt: String,
    pub(crate) task: String,
    /// Path of its pictures side by side, relative to the page.
    pub(crate) picture: String,
    /// What is said of each picture, from left to right: one for every column of [`HEADINGS`] that it has.
    pub(crate) scores: Vec<Vec<String>>,
}

/// Renders the whole page.
pub(crate) fn page(report: &Report, examples: &[Example], strips: &[Strip]) -> String {
    let name = escape(&report.name);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Retouch: {name}</title>\
         <style>{STYLE}</style></head><body><h1>{name}</h1>{}{}{}\
         <h2>Training</h2>{CURVES_NOTE}<div class=\"charts\">{}</div>{}{}{}{}</body></html>\n",
        headline(report),
        settings(report),
        measures(report),
        charts(&report.curve),
        never(&report.curve),
        glossary(),
        pictures(examples),
        film(strips),
    )
}

fn headline(report: &Report) -> String {
    let facts = [
        gain(report.heldout.as_ref()),
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

/// What the run and its report were made with.
fn settings(report: &Report) -> String {
    let sampling = report
        .heldout
        .as_ref()
        .map(|heldout| heldout.sampling.clone());
    let evaluation = sampling.map(|sampling| ("evaluation", sampling));
    let facts = report.setup.facts().into_iter().chain(evaluation);
    let rows = facts.map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escape(&value)));
    format!("<dl class=\"settings\">{}</dl>", rows.collect::<String>())
}

fn gain(heldout: Option<&HeldOut>) -> (&'static str, String) {
    let Some(heldout) = heldout else {
        return ("held-out gain", NOT_EVALUATED.to_owned());
    };
    match &heldout.oracle {
        Some(oracle) => ("oracle gain (of 5)", interval(oracle.gain)),
        None => ("judge gain (of 1)", interval(heldout.judge.gain)),
    }
}

fn measures(report: &Report) -> String {
    let stages = report.stage_s.iter().map(|(stage, seconds)| {
        format!(
            "<tr><td>{}</td><td>{}</td></tr>",
            escape(stage),
            duration(*seconds)
        )
    });
    let stages = stages.collect::<String>();
    let stages = format!("<table><tr><th>stage</th><th>time</th></tr>{stages}</table>");
    let Some(heldout) = &report.heldout else {
        return format!(
            "<h2>Measures on held-out pairs</h2><p>{NOT_EVALUATED}: evaluation.pairs is 0.</p>\
             <div class=\"side\">{stages}</div>"
        );
    };
    let mut rows = String::new();
    if let Some(oracle) = &heldout.oracle {
        rows += &measure_row("oracle, 0..5", oracle);
    }
    for (name, part) in heldout.parts.named() {
        rows += &measure_row(&format!("{name}, 0..1"), &part);
    }
    rows += &measure_row("judge, 0..1", &heldout.judge);
    format!(
        "<h2>Measures on {} held-out pairs</h2><p>{}; mean and 95 % interval of a paired bootstrap.</p>\
         <div class=\"scroll\"><table><tr><th></th><th>before</th><th>after</th><th>gain</th></tr>{rows}</table></div>\
         <div class=\"side\">{}{stages}</div>",
        heldout.pairs,
        escape(&heldout.sampling),
        tasks(heldout),
    )
}

/// Gains per task kind, and those of the parts of the oracle's score.
fn tasks(heldout: &HeldOut) -> String {
    let shown: Vec<&str> = heldout.parts.named().map(|(name, _)| name).collect();
    let row = |(task, gain): (&String, &Estimate)| {
        let parts = heldout.parts_by_task.get(task);
        let part = |shown: &&str| {
            let mut parts = parts.into_iter().flat_map(Parts::named);
            let part = parts.find(|(name, _)| name == shown);
            part.map_or_else(|| "-".to_owned(), |(_, part)| interval(part.gain))
        };
        let cells = [interval(*gain)].into_iter().chain(shown.iter().map(part));
        let cells = cells.map(|cell| format!("<td>{cell}</td>"));
        format!(
            "<tr><td>{}</td>{}</tr>",
            escape(task),
            cells.collect::<String>()
        )
    };
    let heads = ["task", "gain"].iter().chain(&shown);
    format!(
        "<div class=\"scroll\"><table><tr>{}</tr>{}</table></div>",
        heads
            .map(|head| format!("<th>{head}</th>"))
            .collect::<String>(),
        heldout.gain_by_task.iter().map(row).collect::<String>()
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

/// The curve of a metric.
fn series_of(metric: &Metric, curve: &[IterationPoint]) -> Series {
    let values = curve.iter().map(|point| *point.values.get(metric.name)?);
    Series::new(metric.label, values)
}

fn iterations(curve: &[IterationPoint]) -> Vec<u32> {
    curve.iter().map(|point| point.iteration).collect()
}

/// Names the metrics without a curve because they were 0 in every iteration.
fn never(curve: &[IterationPoint]) -> String {
    let charted = METRICS.iter().filter(|metric| metric.chart.is_some());
    let zero = charted.filter(|metric| series_of(metric, curve).is_zero());
    let names: Vec<&str> = zero.map(|metric| metric.name).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(
            "<p class=\"note\">0 in every iteration, and not drawn: {}.</p>",
            names.join(", ")
        ),
    }
}

/// A chart for each title of the table of metrics, in its order.
fn charts(curve: &[IterationPoint]) -> String {
    let mut charts: Vec<(&str, Vec<Series>)> = Vec::new();
    for metric in &METRICS {
        let Some(title) = metric.chart else { continue };
        let series = series_of(metric, curve);
        match charts.iter_mut().find(|(other, _)| *other == title) {
            Some((_, together)) => together.push(series),
            None => charts.push((title, vec![series])),
        }
    }
    let charts = charts.iter();
    let charts: String = charts
        .map(|(title, series)| line_chart(title, &iterations(curve), series))
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
        "<details><summary>What the curves are</summary><div class=\"scroll\"><table>{}</table></div></details>",
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
    let series: Vec<Series> = series.collect();
    line_chart("mean score by reward term", &iterations(curve), &series)
}

/// The held-out pairs that are shown, if there are any.
fn pictures(examples: &[Example]) -> String {
    if examples.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Held-out pairs</h2><p>The same initial noise before and after; the run has not trained on these pairs.</p>\
         <div class=\"examples\">{}</div>",
        examples.iter().map(example).collect::<String>()
    )
}

fn example(example: &Example) -> String {
    let headings = &HEADINGS[..example.scores.len()];
    let task = small_task(&example.task, &example.prompt);
    let scores = example.scores.iter().map(|lines| {
        let lines: Vec<String> = lines.iter().map(|line| escape(line)).collect();
        lines.join("<br>")
    });
    let picture = escape(&example.picture);
    format!(
        "<figure>{}<a href=\"{picture}\"><img src=\"{picture}\" loading=\"lazy\" alt=\"{}\"></a>{}\
         <figcaption>{}{task}</figcaption></figure>",
        columns(headings.iter().map(|heading| (*heading).to_owned())),
        headings.join(", "),
        columns(scores),
        escape(&example.prompt),
    )
}

/// The same pairs as the run's adapters edited them on the way.
fn film(strips: &[Strip]) -> String {
    if strips.is_empty() {
        return String::new();
    }
    let strips = strips.iter().map(|strip| {
        let frames = strip.frames.iter().map(|(heading, path)| {
            let (heading, path) = (escape(heading), escape(path));
            format!(
                "<figure><a href=\"{path}\"><img src=\"{path}\" loading=\"lazy\" alt=\"{heading}\"></a>\
                 <figcaption>{heading}</figcaption></figure>"
            )
        });
        format!(
            "<p>{}{}</p><div class=\"film\">{}</div>",
            escape(&strip.prompt),
            small_task(&strip.task, &strip.prompt),
            frames.collect::<String>()
        )
    });
    format!(
        "<h2>Held-out pairs while it trained</h2><p>The EMA adapter of each iteration, always from the same initial \
         noise.</p>{}",
        strips.collect::<String>()
    )
}

/// The task under an instruction, unless it says nothing new.
fn small_task(task: &str, prompt: &str) -> String {
    match task.is_empty() || task == prompt {
        true => String::new(),
        false => format!("<br><small>{}</small>", escape(task)),
    }
}

/// Texts that stand over or under the pictures of a strip.
fn columns(texts: impl Iterator<Item = String>) -> String {
    let cells: String = texts.map(|text| format!("<span>{text}</span>")).collect();
    format!("<div class=\"columns\">{cells}</div>")
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
    use retouch_proto::RunConfig;

    use super::{super::summary::Setup, *};

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

    /// Every charted metric with the same value.
    fn point(value: f64) -> IterationPoint {
        let charted = METRICS.iter().filter(|metric| metric.chart.is_some());
        IterationPoint {
            iteration: (value * 4.0) as u32,
            values: charted
                .map(|metric| (metric.name.to_owned(), Some(value)))
                .collect(),
            ..IterationPoint::default()
        }
    }

    #[test]
    fn what_never_happened_is_named_and_not_drawn() {
        let mut curve = [point(0.5)];
        assert_eq!(never(&curve), "");
        let rate = curve[0].values.get_mut("filter_rate");
        *rate.expect("it has a chart") = Some(0.0);
        assert!(never(&curve).contains("not drawn: filter_rate."));
        assert!(!charts(&curve).contains("groups filtered"));
    }

    #[test]
    fn every_metric_with_a_chart_is_drawn_and_explained() {
        let curve: Vec<IterationPoint> = [0.5, 0.75].into_iter().map(point).collect();
        let charts = charts(&curve);
        let drawn = charts.matches("<polyline").count();
        let rows = glossary().matches("<tr>").count();
        let with_chart = METRICS.iter().filter(|metric| metric.chart.is_some());
        assert_eq!([drawn, rows], [with_chart.count(); 2], "{charts}");
        let first = |title: &str| charts.find(title).expect(title);
        assert!(first("KL to the base") < first("largest distance from the old policy"));
    }

    #[test]
    fn a_run_without_held_out_pairs_has_a_page_that_says_so() {
        let report = Report {
            name: "demo".into(),
            setup: Setup::of(&RunConfig::default(), 0),
            state: "finished".into(),
            iterations: 3,
            heldout: None,
            adapter: "abc".into(),
            adapter_iteration: 3,
            wall_s: 1.0,
            peak_rss_mib: 1.0,
            stage_s: [("train".to_owned(), 1.5)].into(),
            curve: Vec::new(),
        };
        let page = page(&report, &[], &[]);
        assert_eq!(page.matches(NOT_EVALUATED).count(), 2, "{page}");
        assert!(!page.contains("<img") && !page.contains("NaN"), "{page}");
        assert!(page.contains("<td>train</td><td>1.5 s</td>"), "{page}");
        let json = serde_json::to_value(&report).expect("JSON");
        assert!(json["heldout"].is_null() && json.get("heldout").is_some());
    }

    #[test]
    fn text_from_datasets_is_escaped() {
        let html = example(&Example {
            prompt: "<script>".to_owned(),
            task: "<b>".to_owned(),
            picture: "a.png".to_owned(),
            scores: vec![Vec::new(), vec!["judge <0.5".to_owned()]],
        });
        for text in ["<script>", "<b>", "<0.5"] {
            assert!(!html.contains(text), "{html}");
            assert!(html.contains(&escape(text)), "{html}");
        }
    }

    #[test]
    fn the_film_has_every_frame_with_its_iteration() {
        assert_eq!(film(&[]), "");
        let html = film(&[Strip {
            prompt: "把球变成红色".to_owned(),
            task: "recolour".to_owned(),
            frames: vec![("iteration 10".to_owned(), "samples/a.png".to_owned())],
        }]);
        for part in [
            "把球变成红色",
            "recolour",
            "iteration 10",
            "src=\"samples/a.png\"",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }

    #[test]
    fn every_picture_has_a_heading_and_its_scores() {
        let html = |count: u32| {
            example(&Example {
                prompt: "把球变成红色".to_owned(),
                task: "recolour".to_owned(),
                picture: "samples/pair_000.png".to_owned(),
                scores: (0..count).map(|i| vec![format!("judge 0.{i}")]).collect(),
            })
        };
        for part in ["wanted", "judge 0.3", "把球变成红色", "recolour"] {
            assert!(html(4).contains(part), "{part}: {}", html(4));
        }
        assert!(!html(3).contains("wanted"), "{}", html(3));
    }
}
