//! The table, each row with its histogram on one logarithmic axis.

use super::measure::{QUANTILES, Series};
use crate::figures::nanos;
use std::io::{self, IsTerminal, Write};

/// Characters of the histogram for a factor of ten.
const PER_DECADE: usize = 5;
const NAME: usize = 26;
/// Columns of a row before its histogram.
const WITHOUT_BARS: usize = 2 + NAME + 8 + 4 * 9 + 2;
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub(super) fn print(out: &mut impl Write, series: &[Series]) -> io::Result<()> {
    let (from, to) = decades(series);
    let bins = (to - from) * PER_DECADE;
    let draws = has_room(WITHOUT_BARS + bins);
    let mut last = None;
    for s in series {
        if last != Some(s.what) {
            let gap = if last.is_some() { "\n" } else { "" };
            writeln!(out, "{gap}{}", s.what.title())?;
            let quantiles: String = QUANTILES.iter().map(|(name, _)| format!("{name:>9}")).collect();
            writeln!(
                out,
                "  {:<NAME$}{:>8}{quantiles}{:>9}  {}",
                "",
                "samples",
                "max",
                if draws { axis(from, to) } else { String::new() }
            )?;
            last = Some(s.what);
        }
        let quantiles: String = QUANTILES.iter().map(|(_, q)| format!("{:>9}", nanos(s.quantile(*q)))).collect();
        let bars = if draws { bars(&s.histogram(from as f64, to as f64, bins)) } else { String::new() };
        let most = nanos(s.most());
        writeln!(out, "  {:<NAME$}{:>8}{quantiles}{most:>9}  {bars}", s.name, s.samples.len())?;
    }
    if !draws {
        writeln!(out, "\n(a terminal of {} columns shows histograms too)", WITHOUT_BARS + bins)?;
    }
    Ok(())
}

/// Lines that wrap are hard to read; a pipe or a file has room for anything.
fn has_room(columns: usize) -> bool {
    !io::stdout().is_terminal()
        || ratatui::crossterm::terminal::size().is_ok_and(|(width, _)| columns <= usize::from(width))
}

/// The powers of ten, in nanoseconds, that all samples lie between.
pub(super) fn decades(series: &[Series]) -> (usize, usize) {
    let least = series.iter().map(|s| s.samples[0]).min().unwrap_or(1).max(1);
    let most = series.iter().filter_map(|s| s.samples.last()).max().copied().unwrap_or(1);
    let from = least.ilog10() as usize;
    (from, (most.max(1).ilog10() as usize + 1).max(from + 1))
}

/// A tick at each power of ten.
fn axis(from: usize, to: usize) -> String {
    let tick =
        |power: usize| ["1n", "10n", "100n", "1µ", "10µ", "100µ", "1m", "10m", "100m", "1s", "10s"][power.min(10)];
    (from..to).map(|power| format!("|{:<width$}", tick(power), width = PER_DECADE - 1)).collect()
}

fn bars(counts: &[usize]) -> String {
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    // Rounded up, so that a single sample is visible.
    let bars: String = counts.iter().map(|n| BARS[(n * (BARS.len() - 1)).div_ceil(most)]).collect();
    bars.trim_end().to_owned()
}
