//! A region's counters and latencies in Prometheus' text exposition format.

use revocable_mmio::{BUCKETS, Latency, Region};
use std::fmt::{self, Write};

/// All counters of [`Region::stats`], labelled with the region's name and strategy.
pub(crate) fn text(region: &Region) -> Result<String, fmt::Error> {
    let s = region.stats();
    // The caller chooses the name, and the format needs three characters escaped.
    let name = region.name().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = format!("region=\"{name}\",strategy=\"{}\"", region.strategy());
    let mut out = String::new();
    for (metric, value, help) in [
        ("disables_total", s.disables, "Changes to disabled."),
        ("enables_total", s.enables, "Changes to enabled."),
        ("resets_total", s.resets, "Resets."),
        ("faults_mapped_total", s.faults_mapped, "Faults resolved by mapping pages."),
        ("pages_mapped_total", s.pages_mapped, "Pages mapped by faults."),
        ("faults_parked_total", s.faults_parked, "Faults left waiting for the region."),
        ("faults_failed_total", s.faults_failed, "Faults that could not be resolved."),
        ("refused_total", s.refused, "Accesses through the crate that were refused."),
        ("degraded_total", s.degraded, "Mappings revoked in a stronger way than intended."),
    ] {
        head(&mut out, metric, "counter", help)?;
        writeln!(out, "revocable_mmio_{metric}{{{labels}}} {value}")?;
    }
    for (metric, value, help) in [
        ("mappings", s.mappings, "Mappings now."),
        ("alias_bytes", s.alias_bytes, "Address space kept besides the mappings."),
        ("enabled", usize::from(region.is_enabled()), "1 while the memory is reachable."),
    ] {
        head(&mut out, metric, "gauge", help)?;
        writeln!(out, "revocable_mmio_{metric}{{{labels}}} {value}")?;
    }
    histogram(&mut out, "disable_seconds", "How long disabling took.", &labels, &s.disable)?;
    histogram(&mut out, "enable_seconds", "How long enabling took.", &labels, &s.enable)?;
    Ok(out)
}

fn head(out: &mut String, metric: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP revocable_mmio_{metric} {help}\n# TYPE revocable_mmio_{metric} {kind}")
}

fn histogram(out: &mut String, metric: &str, help: &str, labels: &str, latency: &Latency) -> fmt::Result {
    head(out, metric, "histogram", help)?;
    let mut below = 0;
    // The last bucket has no upper bound of its own.
    for (i, n) in latency.buckets[..BUCKETS - 1].iter().enumerate() {
        below += n;
        let bound = (1_u64 << i) as f64 / 1e9;
        writeln!(out, "revocable_mmio_{metric}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
    }
    let (count, sum) = (latency.count(), latency.sum_ns as f64 / 1e9);
    writeln!(out, "revocable_mmio_{metric}_bucket{{{labels},le=\"+Inf\"}} {count}")?;
    writeln!(out, "revocable_mmio_{metric}_sum{{{labels}}} {sum}")?;
    writeln!(out, "revocable_mmio_{metric}_count{{{labels}}} {count}")
}
