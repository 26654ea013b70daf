//! Line charts as inline SVG: no script, no font, no file beside the page.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;
const COLOURS: [&str; 6] = [
    "#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#475569",
];

/// One named curve: a value for each iteration, `None` where there was none.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
}

impl Series {
    pub(crate) fn new(name: &str, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        Self {
            name: name.to_owned(),
            values: values
                .into_iter()
                .map(|v| v.filter(|x| x.is_finite()))
                .collect(),
        }
    }
}

/// Draws `series` over the iterations 0.. as one SVG element; empty if no series has a value.
pub(crate) fn line_chart(title: &str, series: &[Series]) -> String {
    let Some(frame) = Frame::around(series) else {
        return String::new();
    };
    let mut svg = format!(
        "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    frame.draw_axes(&mut svg);
    for (index, one) in series.iter().enumerate() {
        frame.draw_series(&mut svg, one, COLOURS[index % COLOURS.len()]);
    }
    svg.push_str("</svg>");
    if series.len() > 1 {
        svg.push_str(&legend(series));
    }
    svg.push_str("</figure>");
    svg
}

fn legend(series: &[Series]) -> String {
    let entries = series.iter().enumerate().map(|(index, one)| {
        let colour = COLOURS[index % COLOURS.len()];
        format!(
            "<span><i style=\"background:{colour}\"></i>{}</span>",
            one.name
        )
    });
    format!(
        "<div class=\"legend\">{}</div>",
        entries.collect::<String>()
    )
}

/// The data's bounds and their mapping to the drawing area.
struct Frame {
    last_index: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn around(series: &[Series]) -> Option<Self> {
        let values = || {
            series
                .iter()
                .flat_map(|s| s.values.iter().flatten().copied())
        };
        let low = values().reduce(f64::min)?;
        let high = values().reduce(f64::max)?;
        let margin = ((high - low) * 0.05).max(1e-9 + high.abs() * 1e-3);
        let longest = series.iter().map(|s| s.values.len()).max()?;
        Some(Self {
            last_index: (longest.max(2) - 1) as f64,
            low: if low >= 0.0 {
                (low - margin).max(0.0)
            } else {
                low - margin
            },
            high: high + margin,
        })
    }

    fn x(&self, index: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * index / self.last_index
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)
    }

    fn draw_axes(&self, svg: &mut String) {
        for step in 0..=4 {
            let value = self.low + (self.high - self.low) * f64::from(step) / 4.0;
            let y = self.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                tick_label(value),
            );
        }
        for step in 0..=4 {
            let index = (self.last_index * f64::from(step) / 4.0).round();
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{index}</text>",
                self.x(index),
                HEIGHT - 8.0,
            );
        }
    }

    fn draw_series(&self, svg: &mut String, series: &Series, colour: &str) {
        let points = series
            .values
            .iter()
            .enumerate()
            .filter_map(|(index, value)| {
                value.map(|v| format!("{:.1},{:.1}", self.x(index as f64), self.y(v)))
            });
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>",
            points.collect::<Vec<_>>().join(" "),
        );
    }
}

fn tick_label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if !(1e-3..1e5).contains(&v) => format!("{value:.1e}"),
        v if v < 0.1 => format!("{value:.4}"),
        v if v < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_without_values_is_empty() {
        assert_eq!(
            line_chart("reward", &[Series::new("mean", [None, Some(f64::NAN)])]),
            ""
        );
    }

    #[test]
    fn a_constant_series_stays_inside_the_drawing_area() {
        let svg = line_chart("reward", &[Series::new("mean", [Some(0.5), Some(0.5)])]);
        assert!(svg.contains("points=\"52.0,"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
