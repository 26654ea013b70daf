//! Line charts as inline SVG: no script, no font, no file beside the page.
//!
//! Each curve is drawn twice, as measured and, where there are enough points, smoothed over that.

use std::fmt::Write;

/// Small enough that labels are legible where a phone shows it at 320 pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
const COLOURS: usize = 6;
const TICKS: f64 = 5.0;
/// How much of itself the smoothed curve keeps from point to point, as TensorBoard's slider.
const SMOOTHING: f64 = 0.8;
/// Fewer points need no smoothing.
const SMOOTHED_MIN: usize = 8;

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

    /// Whether it was measured, and was 0 whenever it was: what it counts never happened.
    pub(crate) fn is_zero(&self) -> bool {
        let mut measured = self.values.iter().flatten().peekable();
        measured.peek().is_some() && measured.all(|value| *value == 0.0)
    }

    /// The exponential moving average without the bias of its start; nothing for a few points.
    fn smoothed(&self) -> Vec<Option<f64>> {
        if self.values.iter().flatten().count() < SMOOTHED_MIN {
            return Vec::new();
        }
        let (mut sum, mut weight) = (0.0, 0.0);
        let mut follow = |value: f64| {
            sum = SMOOTHING * sum + (1.0 - SMOOTHING) * value;
            weight = SMOOTHING * weight + (1.0 - SMOOTHING);
            sum / weight
        };
        let values = self.values.iter();
        values.map(|value| value.map(&mut follow)).collect()
    }
}

/// Draws `series` over the numbers of the iterations as one SVG element; empty if no series has a value other than 0.
pub(crate) fn line_chart(title: &str, iterations: &[u32], series: &[Series]) -> String {
    let series: Vec<&Series> = series.iter().filter(|one| !one.is_zero()).collect();
    let Some(frame) = Frame::around(iterations, &series) else {
        return String::new();
    };
    let mut svg = format!(
        "<figure class=\"chart\"><figcaption>{title}</figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    );
    frame.draw_axes(&mut svg);
    for (index, one) in series.iter().enumerate() {
        let smoothed = one.smoothed();
        let class = if smoothed.is_empty() { "curve" } else { "raw" };
        frame.draw(&mut svg, iterations, &one.values, class, index);
        frame.draw(&mut svg, iterations, &smoothed, "curve", index);
    }
    svg.push_str("</svg>");
    if series.len() > 1 {
        svg.push_str(&legend(&series));
    }
    svg.push_str("</figure>");
    svg
}

fn legend(series: &[&Series]) -> String {
    let entries = series.iter().enumerate().map(|(index, one)| {
        let colour = index % COLOURS;
        format!("<span><i class=\"c{colour}\"></i>{}</span>", one.name)
    });
    format!(
        "<div class=\"legend\">{}</div>",
        entries.collect::<String>()
    )
}

/// The data's bounds and their mapping to the drawing area.
struct Frame {
    first: f64,
    last: f64,
    low: f64,
    high: f64,
}

impl Frame {
    fn around(iterations: &[u32], series: &[&Series]) -> Option<Self> {
        let values = || {
            series
                .iter()
                .flat_map(|s| s.values.iter().flatten().copied())
        };
        let low = values().reduce(f64::min)?;
        let high = values().reduce(f64::max)?;
        // A constant gets room above and below in its own scale, one that is 0 has no scale.
        let spread = match high - low {
            0.0 => high.abs().max(f64::MIN_POSITIVE),
            spread => spread,
        };
        let (first, last) = (
            f64::from(*iterations.first()?),
            f64::from(*iterations.last()?),
        );
        Some(Self {
            first,
            last,
            low: match low >= 0.0 {
                true => (low - 0.05 * spread).max(0.0),
                false => low - 0.05 * spread,
            },
            high: high + 0.05 * spread,
        })
    }

    fn x(&self, iteration: f64) -> f64 {
        let width = WIDTH - LEFT - RIGHT;
        match self.last > self.first {
            true => LEFT + width * (iteration - self.first) / (self.last - self.first),
            false => LEFT + width / 2.0,
        }
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)
    }

    fn draw_axes(&self, svg: &mut String) {
        let step = round_step((self.high - self.low) / TICKS);
        for value in multiples(step, self.low, self.high) {
            let y = self.y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                tick_label(value, step),
            );
        }
        for iteration in self.iteration_ticks() {
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{iteration}</text>",
                self.x(iteration),
                HEIGHT - BOTTOM + 16.0,
            );
        }
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">iteration</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 6.0,
        );
    }

    /// Round numbers, and the first iteration where it is not in the way of one.
    fn iteration_ticks(&self) -> Vec<f64> {
        let step = round_step((self.last - self.first) / TICKS).max(1.0);
        let mut ticks: Vec<f64> = multiples(step, self.first, self.last).collect();
        if ticks
            .first()
            .is_none_or(|tick| tick - self.first >= step / 2.0)
        {
            ticks.insert(0, self.first);
        }
        ticks
    }

    fn draw(
        &self,
        svg: &mut String,
        iterations: &[u32],
        values: &[Option<f64>],
        class: &str,
        index: usize,
    ) {
        let points = iterations.iter().zip(values);
        let points = points.filter_map(|(iteration, value)| {
            let (x, y) = (self.x(f64::from(*iteration)), self.y((*value)?));
            Some(format!("{x:.1},{y:.1}"))
        });
        let points: Vec<String> = points.collect();
        let colour = index % COLOURS;
        let _ = match &points[..] {
            [] => Ok(()),
            // A line of one point is invisible.
            [point] => {
                let (x, y) = point.split_once(',').unwrap_or_default();
                write!(
                    svg,
                    "<circle class=\"{class} c{colour}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>"
                )
            }
            points => write!(
                svg,
                "<polyline class=\"{class} c{colour}\" points=\"{}\"/>",
                points.join(" ")
            ),
        };
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least so large.
fn round_step(at_least: f64) -> f64 {
    if at_least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(at_least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let fits = |step: &f64| *step >= at_least * (1.0 - 1e-9);
    steps.into_iter().find(fits).unwrap_or(10.0 * power)
}

fn multiples(step: f64, low: f64, high: f64) -> impl Iterator<Item = f64> {
    // Rounding must not lose one that lies on the border.
    let slack = step * 1e-6;
    let (first, last) = (
        ((low - slack) / step).ceil(),
        ((high + slack) / step).floor(),
    );
    // Minus zero would be labelled so.
    (0..=(last - first).max(0.0) as u32).map(move |index| (first + f64::from(index)) * step + 0.0)
}

/// With as many decimals as tell it from the next tick.
fn tick_label(value: f64, step: f64) -> String {
    let is_small = step < 1e-4;
    let is_large = value.abs() >= 1e5;
    if value == 0.0 {
        return "0".to_owned();
    }
    if is_small || is_large {
        return format!("{value:.1e}");
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(value: f64, count: usize) -> Series {
        Series::new("mean", vec![Some(value); count])
    }

    fn ticks(svg: &str) -> Vec<&str> {
        let ends = svg.match_indices("</text>");
        let text = |end: usize| svg[..end].rsplit('>').next().unwrap_or_default();
        ends.map(|(end, _)| text(end)).collect()
    }

    #[test]
    fn a_chart_without_values_is_empty() {
        let none = Series::new("mean", [None, Some(f64::NAN)]);
        assert_eq!(line_chart("reward", &[1, 2], &[none]), "");
        assert_eq!(line_chart("reward", &[], &[]), "");
    }

    #[test]
    fn what_never_happened_is_not_drawn() {
        assert_eq!(line_chart("filtered", &[1, 2], &[constant(0.0, 2)]), "");
        let both = [constant(0.5, 2), constant(0.0, 2)];
        let chart = line_chart("spread", &[1, 2], &both);
        assert_eq!(chart.matches("<polyline").count(), 1, "{chart}");
        assert!(!Series::new("kl", [None]).is_zero(), "it was not measured");
    }

    #[test]
    fn a_constant_series_stays_inside_the_drawing_area() {
        let svg = line_chart("reward", &[1, 2], &[constant(0.5, 2)]);
        assert!(svg.contains("points=\"54.0,"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("e-"), "{svg}");
    }

    #[test]
    fn axes_have_round_numbers_and_iterations_count_from_one() {
        let iterations: Vec<u32> = (1..=80).collect();
        let values = iterations
            .iter()
            .map(|i| Some(0.31 + f64::from(*i) * 0.0045));
        let svg = line_chart("reward", &iterations, &[Series::new("mean", values)]);
        assert_eq!(
            ticks(&svg),
            [
                "0.3",
                "0.4",
                "0.5",
                "0.6",
                "1",
                "20",
                "40",
                "60",
                "80",
                "iteration"
            ]
        );
        let svg = line_chart("reward", &[1, 2, 3], &[constant(-20.0, 3)]);
        assert_eq!(
            ticks(&svg)[ticks(&svg).len() - 4..],
            ["1", "2", "3", "iteration"]
        );
        let svg = line_chart("reward", &[7], &[constant(1.0, 1)]);
        assert!(
            svg.contains("<circle") && ticks(&svg).contains(&"7"),
            "{svg}"
        );
    }

    #[test]
    fn labels_tell_ticks_apart() {
        for (value, step, label) in [
            (0.0, 1.0, "0"),
            (0.25, 0.05, "0.25"),
            (20.0, 5.0, "20"),
            (0.002, 0.001, "0.002"),
            (3e-6, 1e-6, "3.0e-6"),
            (250_000.0, 50_000.0, "2.5e5"),
        ] {
            assert_eq!(tick_label(value, step), label);
        }
    }

    #[test]
    fn many_points_are_smoothed_over_the_raw_ones() {
        let jagged = |count: u32| Series::new("mean", (0..count).map(|i| Some(f64::from(i % 2))));
        assert!(jagged(7).smoothed().is_empty());
        let smoothed = jagged(100).smoothed();
        assert_eq!(smoothed[0], Some(0.0), "unbiased from the start");
        assert!(
            smoothed[50..]
                .iter()
                .flatten()
                .all(|value| (0.4..0.6).contains(value))
        );
        let iterations: Vec<u32> = (1..=100).collect();
        let svg = line_chart("reward", &iterations, &[jagged(100)]);
        assert!(svg.contains("class=\"raw c0\"") && svg.contains("class=\"curve c0\""));
    }
}
