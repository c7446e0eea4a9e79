//! Durations that several threads record, kept in parts narrow enough that a quantile is exact to 2 %.

use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// An octave (from a power of two to the next) has `1 << FINE` parts.
const FINE: u32 = 5;
const PARTS: usize = ((u64::BITS - FINE) << FINE) as usize + (1 << FINE);

/// Durations of one operation.
pub(crate) struct Spread(Box<[AtomicU64]>);

impl Spread {
    pub(crate) fn new() -> Self {
        Self((0..PARTS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0[part(ns)].fetch_add(1, Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// The middle of the part that has the least duration which `share` of all do not exceed. `None` without durations.
    #[expect(clippy::cast_possible_truncation, reason = "not above the number of durations")]
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.0.iter().map(|n| n.load(Relaxed)).collect();
        let mut left = ((share * counts.iter().sum::<u64>() as f64).ceil() as u64).max(1);
        for (part, n) in counts.into_iter().enumerate() {
            if n >= left {
                let (from, wide) = bounds(part);
                return Some(Duration::from_nanos(from + wide / 2));
            }
            left -= n;
        }
        None
    }

    /// How many, the median and the tail, for a JSON document.
    pub(crate) fn json(&self) -> Value {
        let ns = |share| crate::output::json_nanos(self.quantile(share));
        json!({ "count": self.count(), "p50_ns": ns(0.5), "p99_ns": ns(0.99) })
    }
}

/// The part that a duration falls into. Below `1 << FINE` each nanosecond has its own.
#[expect(clippy::cast_possible_truncation, reason = "below 2 << FINE")]
fn part(ns: u64) -> usize {
    let octave = u64::BITS - ns.leading_zeros();
    let shift = octave.saturating_sub(FINE + 1);
    ((shift as usize) << FINE) + (ns >> shift) as usize
}

/// Where a part begins, and how wide it is.
fn bounds(part: usize) -> (u64, u64) {
    let shift = (part >> FINE).saturating_sub(1);
    (((part - (shift << FINE)) as u64) << shift, 1 << shift)
}
