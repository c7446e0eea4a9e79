//! The drawing: one ridge for each row on a logarithmic axis that all share.
//!
//! Written by hand: a plotting crate has no ridges on a common log axis, so only its axis would be used, and a
//! drawing of rectangles, lines and text is shorter than the code that adapts one.

use super::measure::{Series, What};
use super::table::decades;
use crate::output::nanos;
use std::fmt::{self, Write};

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
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";

fn colour(what: What) -> &'static str {
    match what {
        What::Fault => "#2f6f9f",
        What::Disable => "#b5482f",
        What::Enable => "#3c7a4b",
    }
}

/// An SVG document of its own, white behind, for light and dark pages alike.
pub(super) fn draw(series: &[Series], kernel: &str) -> Result<String, fmt::Error> {
    let mut groups: Vec<&[Series]> = series.chunk_by(|a, b| a.what == b.what).collect();
    groups.retain(|group| !group.is_empty());
    let height = TOP + groups.len() * HEADING + series.len() * ROW + BOTTOM;
    let axis = Axis::of(series);
    let mut out = String::new();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"{INK}\">"
    )?;
    writeln!(out, "<title>Latency of faults, disable() and enable()</title>")?;
    writeln!(out, "<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>")?;
    text(&mut out, 24, 34, "start", "font-size=\"18\" font-weight=\"600\"", "How long revoking and restoring take")?;
    text(&mut out, WIDTH - 24, 34, "end", FAINT_TEXT, kernel)?;
    axis.grid(&mut out, TOP, height - BOTTOM)?;
    let mut y = TOP;
    for group in groups {
        y += HEADING;
        text(&mut out, 24, y - 10, "start", "font-weight=\"600\"", group[0].what.title())?;
        let columns = [("p50", WIDTH - 130), ("p99", WIDTH - 24)];
        for (name, x) in columns {
            text(&mut out, x, y - 10, "end", FAINT_TEXT, name)?;
        }
        for s in group {
            ridge(&mut out, &axis, s, y)?;
            y += ROW;
            text(&mut out, 24, y - 8, "start", "", &s.name)?;
            for ((_, x), share) in columns.into_iter().zip([0.5, 0.99]) {
                text(&mut out, x, y - 8, "end", "", &nanos(s.quantile(share)))?;
            }
        }
    }
    axis.labels(&mut out, height - BOTTOM + 20)?;
    writeln!(out, "</svg>")?;
    Ok(out)
}

const FAINT_TEXT: &str = "fill=\"#7b8794\"";

/// Durations along the width, a decade as wide as the next.
struct Axis {
    from: usize,
    to: usize,
}

impl Axis {
    fn of(series: &[Series]) -> Self {
        let (from, to) = decades(series);
        Self { from, to }
    }

    /// Where a power of ten of nanoseconds stands.
    fn x(&self, power: f64) -> f64 {
        let width = (WIDTH - LEFT - RIGHT) as f64;
        LEFT as f64 + (power - self.from as f64) / (self.to - self.from) as f64 * width
    }

    fn grid(&self, out: &mut String, top: usize, bottom: usize) -> fmt::Result {
        for power in self.from..=self.to {
            let x = self.x(power as f64);
            writeln!(out, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"{GRID}\"/>")?;
        }
        Ok(())
    }

    fn labels(&self, out: &mut String, y: usize) -> fmt::Result {
        for power in self.from..=self.to {
            let (x, label) = (self.x(power as f64), label(power));
            writeln!(out, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\" fill=\"{FAINT}\">{label}</text>")?;
        }
        Ok(())
    }
}

fn label(power: usize) -> String {
    let unit = ["ns", "µs", "ms", "s"][(power / 3).min(3)];
    format!("{} {unit}", 10_u64.pow(u32::try_from(power - 3 * (power / 3).min(3)).unwrap_or(0)))
}

/// The distribution of a row, standing on its line, with the median marked.
fn ridge(out: &mut String, axis: &Axis, s: &Series, top: usize) -> fmt::Result {
    let bins = (axis.to - axis.from) * BINS_PER_DECADE;
    let counts = s.histogram(axis.from as f64, axis.to as f64, bins);
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let base = (top + ROW) as f64 - 4.0;
    let room = ROW as f64 - 10.0;
    let mut path = format!("M{:.1} {base:.1}", axis.x(axis.from as f64));
    for (bin, n) in counts.iter().enumerate() {
        let power = axis.from as f64 + bin as f64 / BINS_PER_DECADE as f64;
        // The square root keeps a thin tail visible.
        let y = base - (*n as f64 / most).sqrt() * room;
        write!(path, "L{:.1} {y:.1}H{:.1}", axis.x(power), axis.x(power + 1.0 / BINS_PER_DECADE as f64))?;
    }
    let colour = colour(s.what);
    writeln!(out, "<path d=\"{path}V{base:.1}Z\" fill=\"{colour}\" fill-opacity=\"0.35\" stroke=\"{colour}\"/>")?;
    let x = axis.x(s.quantile(0.5).max(1.0).log10());
    writeln!(out, "<path d=\"M{x:.1} {:.1}V{base:.1}\" stroke=\"{INK}\" stroke-width=\"1.5\"/>", base - room)
}

fn text(out: &mut String, x: usize, y: usize, anchor: &str, style: &str, what: &str) -> fmt::Result {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" {style}>{what}</text>")
}
