//! The output of a stress run: progress on the standard error, the summary on the standard output.

use super::hand::Way;
use super::{Shared, Tally};
use crate::Verdict;
use crate::figures;
use crate::output::{self, Failed};
use crate::prometheus;
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A line that is rewritten each half second in a terminal, and a new line every five seconds elsewhere.
pub(super) struct Progress {
    rewrites: bool,
    next: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let rewrites = io::stderr().is_terminal();
        Self { rewrites, next: Instant::now() + Self::pause(rewrites) }
    }

    fn pause(rewrites: bool) -> Duration {
        if rewrites { Duration::from_millis(500) } else { Duration::from_secs(5) }
    }

    pub(super) fn show(&mut self, shared: &Shared, at: Duration, of: u64) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + Self::pause(self.rewrites);
        let stats = shared.region.stats();
        let all = |of: fn(&Tally) -> &AtomicU64| {
            figures::rounded(shared.tallies.iter().map(|t| of(t).load(Ordering::Relaxed)).sum())
        };
        let line = format!(
            "{:>3} of {of} s: {} revocations, {} resets; accesses: {} reached, {} refused",
            at.as_secs(),
            figures::count(stats.disables),
            figures::count(stats.resets),
            all(|t| &t.reached),
            all(|t| &t.refused),
        );
        // The run goes on if the reader has gone away.
        let _ = if self.rewrites { write!(io::stderr(), "\r\x1b[K{line}") } else { writeln!(io::stderr(), "{line}") };
    }

    pub(super) fn end(&mut self) {
        if self.rewrites {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The end of a run.
pub(super) struct Report<'a> {
    pub(super) shared: &'a Shared,
    pub(super) ways: &'a [Way],
    pub(super) took: Duration,
    pub(super) seed: u64,
}

impl Report<'_> {
    pub(super) fn print(&self, as_json: bool, as_prometheus: bool) -> Result<Verdict, Failed> {
        let first = self.shared.violation.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let violation = first.or_else(|| self.nothing_tested());
        let mut out = io::stdout().lock();
        let printed = if as_json {
            output::json(&mut out, &self.document(violation.as_deref()))
        } else if as_prometheus {
            prometheus::text(&self.shared.region).map_err(Failed::from).and_then(|text| Ok(write!(out, "{text}")?))
        } else {
            self.text(&mut out).map_err(Failed::from)
        };
        let Some(violation) = violation else {
            if !as_json && !as_prometheus {
                printed?;
                writeln!(out, "no violation: revoked meant revoked, and nothing was lost")?;
                return Ok(Verdict::Good);
            }
            return printed.map(|()| Verdict::Good);
        };
        // A violation counts even if the output is no longer read.
        let _ = writeln!(io::stderr(), "VIOLATION {violation} (seed {})", self.seed);
        Ok(Verdict::Broken)
    }

    /// A run without a revocation, or without an access that got through, has tested nothing.
    fn nothing_tested(&self) -> Option<String> {
        let reached = |t: &Tally| t.reached.load(Ordering::Relaxed) > 0;
        if self.shared.region.stats().disables == 0 || !self.shared.tallies.iter().any(reached) {
            return Some("nothing was tested: no revocation, or no access at all".to_owned());
        }
        None
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let region = &self.shared.region;
        let stats = region.stats();
        writeln!(
            out,
            "{} revoked by {}: {} revocations, {} resets in {:.1} s, seed {}\n",
            figures::bytes(region.len()),
            region.strategy(),
            figures::count(stats.disables),
            figures::count(stats.resets),
            self.took.as_secs_f64(),
            self.seed
        )?;
        writeln!(out, "{:>2}  {:<22} {:>15} {:>15} {:>15}", "", "worker", "reached", "refused", "while revoked")?;
        for (number, (way, tally)) in self.ways.iter().zip(&self.shared.tallies).enumerate() {
            let n = |counter: &AtomicU64| figures::count(counter.load(Ordering::Relaxed));
            let (reached, refused, inside) = (n(&tally.reached), n(&tally.refused), n(&tally.inside_disabled));
            writeln!(out, "{number:>2}  {:<22} {reached:>15} {refused:>15} {inside:>15}", way.name())?;
        }
        writeln!(out)?;
        for (what, took) in [("disable()", &self.shared.disables), ("enable()", &self.shared.enables)] {
            let within = |share| took.quantile(share).map_or_else(|| "-".to_owned(), figures::duration);
            writeln!(out, "{what:<10} median {:>8}   99% within {:>8}", within(0.5), within(0.99))?;
        }
        writeln!(
            out,
            "{} faults mapped {} pages, {} waited, {} failed; {} revocations degraded\n",
            figures::count(stats.faults_mapped),
            figures::count(stats.pages_mapped),
            figures::count(stats.faults_parked),
            figures::count(stats.faults_failed),
            figures::count(stats.degraded)
        )
    }

    fn document(&self, violation: Option<&str>) -> serde_json::Value {
        let region = &self.shared.region;
        let s = region.stats();
        let workers = self.ways.iter().zip(&self.shared.tallies).map(|(way, tally)| {
            json!({
                "way": way.name(),
                "reached": tally.reached.load(Ordering::Relaxed),
                "refused": tally.refused.load(Ordering::Relaxed),
                "wholly_while_revoked": tally.inside_disabled.load(Ordering::Relaxed),
            })
        });
        json!({
            "kernel": crate::probe::kernel(),
            "size": region.len(),
            "strategy": region.strategy().to_string(),
            "seconds": self.took.as_secs_f64(),
            "seed": self.seed,
            "violation": violation,
            "disables": s.disables,
            "enables": s.enables,
            "resets": s.resets,
            "faults_mapped": s.faults_mapped,
            "pages_mapped": s.pages_mapped,
            "faults_parked": s.faults_parked,
            "faults_failed": s.faults_failed,
            "degraded": s.degraded,
            "disable": self.shared.disables.json(),
            "enable": self.shared.enables.json(),
            "workers": workers.collect::<Vec<_>>(),
        })
    }
}
