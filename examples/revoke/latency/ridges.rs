//! The drawing: a ridge for each row, on a logarithmic axis that all rows share.

use super::measure::{Series, What};
use super::table::decades;
use crate::figures::nanos;
use crate::svg::{Anchor, Svg};
use std::fmt::Write;

const WIDTH: usize = 960;
/// Left of the axis: names. Right of it: percentiles.
const LEFT: usize = 210;
const RIGHT: usize = 190;
const TOP: usize = 64;
const ROW: usize = 44;
const HEADING: usize = 40;
const BOTTOM: usize = 48;
const BINS_PER_DECADE: usize = 24;

const INK: &str = "#1f2933";
const FAINT: &str = "fill=\"#7b8794\"";
const GRID: &str = "stroke=\"#e4e7eb\"";
const BOLD: &str = "font-weight=\"600\"";

fn colour(what: What) -> &'static str {
    match what {
        What::Fault => "#2f6f9f",
        What::Disable => "#b5482f",
        What::Enable => "#3c7a4b",
    }
}

/// An SVG document.
pub(super) fn draw(series: &[Series], kernel: &str) -> String {
    let groups: Vec<&[Series]> = series.chunk_by(|a, b| a.what == b.what).collect();
    let height = TOP + groups.len() * HEADING + series.len() * ROW + BOTTOM;
    let axis = Axis::of(series);
    let (left, right) = (24.0, WIDTH as f64 - 24.0);
    let mut svg = Svg::new(WIDTH, height, "Latency of faults, disable() and enable()");
    let heading = format!("font-size=\"18\" {BOLD}");
    svg.text(left, 34.0, Anchor::Start, &heading, "How long revoking and restoring take");
    svg.text(right, 34.0, Anchor::End, FAINT, kernel);
    axis.grid(&mut svg, TOP as f64, (height - BOTTOM) as f64);
    let mut y = TOP as f64;
    for group in groups {
        y += HEADING as f64;
        svg.text(left, y - 10.0, Anchor::Start, BOLD, group[0].what.title());
        let columns = [("p50", 0.5, right - 106.0), ("p99", 0.99, right)];
        for (name, _, x) in columns {
            svg.text(x, y - 10.0, Anchor::End, FAINT, name);
        }
        for row in group {
            ridge(&mut svg, &axis, row, y);
            y += ROW as f64;
            svg.text(left, y - 8.0, Anchor::Start, "", &row.name);
            for (_, share, x) in columns {
                svg.text(x, y - 8.0, Anchor::End, "", &nanos(row.quantile(share)));
            }
        }
    }
    axis.labels(&mut svg, (height - BOTTOM + 20) as f64);
    svg.end()
}

/// Durations along the width, every decade as wide as the next.
struct Axis {
    from: usize,
    to: usize,
}

impl Axis {
    fn of(series: &[Series]) -> Self {
        let (from, to) = decades(series);
        Self { from, to }
    }

    /// The place of a power of ten of nanoseconds.
    fn x(&self, power: f64) -> f64 {
        let width = (WIDTH - LEFT - RIGHT) as f64;
        LEFT as f64 + (power - self.from as f64) / (self.to - self.from) as f64 * width
    }

    fn grid(&self, svg: &mut Svg, top: f64, bottom: f64) {
        for power in self.from..=self.to {
            let x = self.x(power as f64);
            svg.line((x, top), (x, bottom), GRID);
        }
    }

    fn labels(&self, svg: &mut Svg, y: f64) {
        for power in self.from..=self.to {
            svg.text(self.x(power as f64), y, Anchor::Middle, FAINT, &label(power));
        }
    }
}

fn label(power: usize) -> String {
    let thousands = (power / 3).min(3);
    format!("1{:0<1$} {2}", "", power - 3 * thousands, ["ns", "µs", "ms", "s"][thousands])
}

/// The distribution of a row, standing on its line, with the median marked.
fn ridge(svg: &mut Svg, axis: &Axis, row: &Series, top: f64) {
    let bins = (axis.to - axis.from) * BINS_PER_DECADE;
    let counts = row.histogram(axis.from as f64, axis.to as f64, bins);
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let base = top + ROW as f64 - 4.0;
    let room = ROW as f64 - 10.0;
    let mut path = format!("M{:.1} {base:.1}", axis.x(axis.from as f64));
    for (bin, n) in counts.iter().enumerate() {
        let power = axis.from as f64 + bin as f64 / BINS_PER_DECADE as f64;
        // The square root keeps a thin tail visible.
        let y = base - (*n as f64 / most).sqrt() * room;
        write!(path, "L{:.1} {y:.1}H{:.1}", axis.x(power), axis.x(power + 1.0 / BINS_PER_DECADE as f64))
            .expect("a String takes any text");
    }
    let colour = colour(row.what);
    svg.path(
        format_args!("{path}V{base:.1}Z"),
        &format!("fill=\"{colour}\" fill-opacity=\"0.35\" stroke=\"{colour}\""),
    );
    let x = axis.x(row.quantile(0.5).max(1.0).log10());
    svg.line((x, base - room), (x, base), &format!("stroke=\"{INK}\" stroke-width=\"1.5\""));
}
