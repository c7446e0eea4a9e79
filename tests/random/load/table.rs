//! The table that a run prints.

use super::changer::Changes;
use super::rig::{Rig, Tally};
use crate::support::matrix::Case;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The run of one combination.
pub(crate) struct Row {
    case: Case,
    reached: u64,
    refused: u64,
    degraded: u64,
    changes: Changes,
}

impl Row {
    pub(crate) fn new(case: &Case, rig: &Rig, changes: Changes) -> Self {
        let all =
            |of: fn(&Tally) -> &AtomicU64| rig.tallies.iter().map(|tally| of(tally).load(Ordering::Relaxed)).sum();
        Self {
            case: *case,
            reached: all(|tally| &tally.accesses.reached),
            refused: all(|tally| &tally.accesses.refused),
            degraded: rig.devices.iter().map(|device| device.region.stats().degraded).sum(),
            changes,
        }
    }
}

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| strategy, policy, memory | reached | refused | resets | groups: done, busy | degraded ")?;
        for what in ["disable", "enable"] {
            write!(f, "| {what}: n | p50 | p99 | p99.9 | max ")?;
        }
        writeln!(f, "|\n|---{}|", "|---".repeat(15))?;
        for row in &self.rows {
            let Changes { resets, together, busy, .. } = row.changes;
            let case = format!("{} {:?} {:?}", row.case.strategy, row.case.policy, row.case.memory);
            write!(f, "| {case} | {} | {} | {resets} | {together}, {busy} ", row.reached, row.refused)?;
            write!(f, "| {} ", row.degraded)?;
            for times in [&row.changes.disable, &row.changes.enable] {
                let mut times = times.clone();
                times.sort_unstable();
                write!(f, "| {} ", times.len())?;
                for per_mille in [500, 990, 999, 1000] {
                    write!(f, "| {} ", quantile(&times, per_mille))?;
                }
            }
            writeln!(f, "|")?;
        }
        Ok(())
    }
}

/// The time that so many thousandths of the sorted times do not exceed.
fn quantile(times: &[Duration], per_mille: usize) -> String {
    let at = (times.len() * per_mille).div_ceil(1000);
    match times.get(at.saturating_sub(1)) {
        Some(time) if *time < Duration::from_millis(1) => format!("{} us", time.as_micros()),
        Some(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        None => "-".to_owned(),
    }
}
