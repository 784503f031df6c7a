//! The chart of a service's traffic: new connections a second, the versions stacked, as SVG. Pure.
#![forbid(unsafe_code)]

use maud::{Markup, html};

use super::traffic::{COLOURS, Line, Lines, WINDOW_S};
use crate::cli::table::shortened;

/// The least distance between two labels, in pixels.
const LABEL_GAP: f64 = 15.0;
/// The chart is at least as high as this rate.
const RATE_MIN: f64 = 4.0;
/// The most steps of the rates' axis.
const STEPS_MAX: f64 = 5.0;
/// Room around the plot, in pixels: above, below for times, and at the left for rates.
const ABOVE: f64 = 12.0;
const BELOW: f64 = 26.0;
const LEFT: f64 = 44.0;

/// How a chart is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Its class in the style sheet, which shows one of the two.
    pub class: &'static str,
    /// In pixels.
    pub width: u32,
    pub height: u32,
    /// Room at the right for the labels, in pixels and in letters.
    labels: u32,
    letters: usize,
    /// Minutes between two marks of the time.
    minutes: usize,
}

/// For wide and for narrow pages: letters keep their size.
pub(super) const SIZES: [Size; 2] = [
    Size { class: "wide", width: 960, height: 230, labels: 150, letters: 14, minutes: 2 },
    Size { class: "narrow", width: 360, height: 210, labels: 116, letters: 7, minutes: 5 },
];

/// The two axes: where in the picture an age and a rate are.
#[derive(Clone, Copy, Debug)]
struct Scales {
    right: f64,
    bottom: f64,
    /// The rate between two lines of the grid, and at the top.
    step: f64,
    top: f64,
}

impl Scales {
    /// Axes for rates up to this one.
    fn new(size: Size, highest: f64) -> Self {
        let step = step(highest.max(RATE_MIN));
        let top = (highest.max(RATE_MIN) / step).ceil() * step;
        Self { right: f64::from(size.width - size.labels), bottom: f64::from(size.height) - BELOW, step, top }
    }

    fn x(self, age_s: f64) -> f64 {
        self.right - age_s / WINDOW_S * (self.right - LEFT)
    }

    fn y(self, rate: f64) -> f64 {
        self.bottom - rate / self.top * (self.bottom - ABOVE)
    }

    /// The rates that have a line.
    fn rates(self) -> impl Iterator<Item = f64> {
        (0..=(self.top / self.step).round() as u32).map(move |number| f64::from(number) * self.step)
    }
}

/// The least of 1, 2, 5, 10, 20, 50 … of which at most so many make up a rate.
fn step(highest: f64) -> f64 {
    let least = highest / STEPS_MAX;
    let power = 10_f64.powi(least.log10().floor() as i32);
    // The margin is for what floating point makes of a whole multiple.
    let of = [1.0, 2.0, 5.0].into_iter().find(|of| of * power >= least * (1.0 - 1e-9));
    of.unwrap_or(10.0) * power
}

/// What is inside the `svg` element.
pub(super) fn inside(shown: &Lines, size: Size) -> Markup {
    let stacked = shown.stacked();
    let highest = stacked.iter().flatten().filter_map(|edges| edges.last()).fold(0.0, |a: f64, b| a.max(*b));
    let scales = Scales::new(size, highest);
    html! {
        (axes(scales, size))
        // From above, because the edge of a line without connections is that of the line below.
        @for run in runs(&stacked) {
            @for (index, line) in shown.lines.iter().enumerate().rev() {
                @let (lower, upper) = (edge(scales, shown, &stacked, &run, index), edge(scales, shown, &stacked, &run, index + 1));
                g class=(colour(line)) {
                    polygon points=(points(upper.iter().chain(lower.iter().rev()))) {}
                    polyline points=(points(upper.iter())) {}
                }
            }
        }
        @if let Some(edges) = stacked.last().and_then(Option::as_ref) { (labels(scales, shown, edges, size)) }
    }
}

/// The grid with its rates, and the marks of the time.
fn axes(scales: Scales, size: Size) -> Markup {
    let place = |at: f64| format!("{at:.1}");
    let last = WINDOW_S as usize / 60;
    html! {
        @for rate in scales.rates() {
            @let y = scales.y(rate);
            line class=(if rate == 0.0 { "axis" } else { "grid" }) x1=(LEFT) x2=(scales.right) y1=(place(y)) y2=(place(y)) {}
            text x=(LEFT - 8.0) y=(place(y + 4.0)) text-anchor="end" { (thousands(rate)) }
        }
        @for minutes in (0..=last).step_by(size.minutes) {
            @let x = scales.x(minutes as f64 * 60.0);
            line class="axis" x1=(place(x)) x2=(place(x)) y1=(scales.bottom) y2=(scales.bottom + 5.0) {}
            text x=(place(x)) y=(scales.bottom + 20.0) text-anchor="middle" {
                @if minutes == 0 { "now" } @else { "−" (minutes) " min" }
            }
        }
    }
}

/// The upper edge of so many lines from below, in pixels; of none it is the axis.
fn edge(
    scales: Scales,
    shown: &Lines,
    stacked: &[Option<Vec<f64>>],
    run: &std::ops::Range<usize>,
    lines: usize,
) -> Vec<(f64, f64)> {
    let height = |edges: &Vec<f64>| lines.checked_sub(1).map_or(0.0, |last| edges[last]);
    let times = run.clone().zip(&shown.ages_s[run.clone()]);
    times.filter_map(|(at, age)| Some((scales.x(*age), scales.y(height(stacked[at].as_ref()?))))).collect()
}

fn points<'a>(places: impl Iterator<Item = &'a (f64, f64)>) -> String {
    places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// The versions with their last rates, beside the right end of the chart.
fn labels(scales: Scales, shown: &Lines, edges: &[f64], size: Size) -> Markup {
    let middles = (0..edges.len()).map(|index| {
        let lower = if index == 0 { 0.0 } else { edges[index - 1] };
        scales.y(f64::midpoint(lower, edges[index]))
    });
    let places = apart(&middles.collect::<Vec<_>>(), scales.bottom - 6.0);
    html! {
        @for (line, y) in shown.lines.iter().zip(places) {
            rect class=(colour(line)) x=(scales.right + 8.0) y=(format!("{:.1}", y - 5.0)) width="9" height="9" rx="2" {}
            text x=(scales.right + 22.0) y=(format!("{:.1}", y + 4.0)) { (shortened(&line.name, size.letters)) " " (rate(line.last())) }
        }
    }
}

/// The class with the colour of a version.
fn colour(line: &Line) -> String {
    format!("c{}", line.colour.min(COLOURS))
}

/// The chart in words.
pub(super) fn described(shown: &Lines) -> String {
    let lines = shown.lines.iter().map(|line| format!("{} {}", line.name, rate(line.last())));
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() { "No traffic is known yet.".to_owned() } else { format!("Now: {}.", lines.join(", ")) }
}

/// A rate with its unit.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "–".to_owned(),
        Some(rate) if rate == 0.0 || rate >= 9.95 => format!("{rate:.0}/s"),
        Some(rate) => format!("{rate:.1}/s"),
    }
}

fn thousands(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.0}k", rate / 1_000.0) } else { format!("{rate:.0}") }
}

/// The runs of samples whose rates are known.
fn runs(stacked: &[Option<Vec<f64>>]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in stacked.iter().enumerate().filter(|(_, edges)| edges.is_some()) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

/// Moves labels apart that would cover each other. The first one is the lowest, and none goes below `bottom`.
fn apart(wanted: &[f64], bottom: f64) -> Vec<f64> {
    let mut places = Vec::new();
    let mut below = bottom + LABEL_GAP;
    for wanted in wanted {
        let place = (*wanted).min(below - LABEL_GAP);
        places.push(place);
        below = place;
    }
    // Where the upper ones would leave the picture, all of them move down as far as there is room.
    let above = LABEL_GAP - places.last().copied().unwrap_or(LABEL_GAP);
    if above > 0.0 {
        let mut above_of = f64::NEG_INFINITY;
        for place in places.iter_mut().rev() {
            *place = (*place).max(above_of + LABEL_GAP).max(LABEL_GAP);
            above_of = *place;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::{super::traffic::tests::traffic, *};

    #[test]
    fn a_chart_has_its_versions_with_their_rates() {
        let (traffic, now) = traffic(&[&[("v1-1", 0), ("v2-1", 0)], &[("v1-1", 100), ("v2-1", 7)]]);
        let shown = traffic.lines("web", now);
        for size in SIZES {
            let svg = inside(&shown, size).into_string();
            for part in ["v1 50/s", "v2 3.5/s", ">now<", "<g class=\"c0\"><polygon", "<rect class=\"c1\"", ">60</text>"]
            {
                assert!(svg.contains(part), "{part} is not in {svg}");
            }
            assert!(!svg.contains("style="), "{svg}");
        }
        assert_eq!(described(&shown), "Now: v1 50/s, v2 3.5/s.");
    }

    #[test]
    fn names_are_escaped() {
        let (traffic, now) = traffic(&[&[("<b>&'\"-1", 0)], &[("<b>&'\"-1", 2)]]);
        let svg = inside(&traffic.lines("web", now), SIZES[0]).into_string();
        assert!(svg.contains("&lt;b&gt;&amp;'&quot; 1.0/s") && !svg.contains("<b>"), "{svg}");
    }

    #[test]
    fn without_samples_it_is_empty() {
        let svg = inside(&Lines::default(), SIZES[1]).into_string();
        assert!(svg.contains(">now<") && svg.contains(">4<") && !svg.contains("<polygon"), "{svg}");
    }

    #[test]
    fn the_axis_of_rates_has_round_steps() {
        let of = |highest: f64| (step(highest), Scales::new(SIZES[0], highest).rates().collect::<Vec<_>>());
        assert_eq!(of(4.0), (1.0, vec![0.0, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!(of(0.1).1, of(4.0).1, "the least height");
        assert_eq!(of(5.1), (2.0, vec![0.0, 2.0, 4.0, 6.0]));
        assert_eq!(of(50.0), (10.0, vec![0.0, 10.0, 20.0, 30.0, 40.0, 50.0]));
        assert_eq!(of(53.5).1, [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(of(1_234_567.0), (500_000.0, vec![0.0, 500_000.0, 1_000_000.0, 1_500_000.0]));
        assert_eq!((thousands(9_000.0), thousands(1_500_000.0)), ("9000".to_owned(), "1500k".to_owned()));
    }

    #[test]
    fn the_corners_of_the_plot_are_where_they_should_be() {
        let scales = Scales::new(SIZES[0], 10.0);
        assert_eq!((scales.x(WINDOW_S), scales.x(0.0)), (LEFT, 810.0));
        assert_eq!((scales.y(0.0), scales.y(10.0)), (204.0, ABOVE));
        let whole = [(0.0, 0.0), (1.25, 2.0)];
        assert_eq!(points(whole.iter()), "0.0,0.0 1.2,2.0");
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        assert_eq!(apart(&[100.0, 50.0], 200.0), [100.0, 50.0]);
        assert_eq!(apart(&[200.0, 200.0, 200.0], 200.0), [200.0, 185.0, 170.0]);
        assert_eq!(apart(&[20.0, 15.0, 12.0], 200.0), [45.0, 30.0, 15.0], "none leaves the picture");
        assert_eq!(apart(&[], 200.0), [0.0; 0]);
    }
}
