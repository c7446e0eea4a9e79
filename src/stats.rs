//! Counters and latencies, cheap enough to be always on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The number of buckets of a [`Latency`]. Bucket `i` counts durations below `2^i` ns (and at least `2^(i-1)`).
pub const BUCKETS: usize = 40;

#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(crate) fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - ns.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Latency {
        let buckets = std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        Latency { buckets, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

/// A histogram of durations, in powers of two of nanoseconds.
///
/// ```
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// for _ in 0..10 {
///     region.disable()?;
///     region.enable()?;
/// }
/// let latency = region.stats().disable;
/// assert_eq!(latency.count(), 10);
/// let (median, worst) = (latency.quantile(0.5), latency.quantile(1.0));
/// assert!(median <= worst); // upper bounds, in powers of two
/// println!("mean {} ns", latency.sum_ns / latency.count());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// How many durations fell into each bucket; bucket `i` counts those below `2^i` ns.
    pub buckets: [u64; BUCKETS],
    /// The sum of all durations, in nanoseconds.
    pub sum_ns: u64,
}

impl Latency {
    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// An upper bound for `share` (0 to 1) of all durations; `None` if nothing was recorded.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        #[expect(clippy::cast_possible_truncation, reason = "at most the count, which is a u64")]
        let mut left = (share.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        for (i, n) in self.buckets.iter().enumerate() {
            if *n >= left {
                return (count > 0).then(|| Duration::from_nanos(1 << i));
            }
            left -= n;
        }
        None
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latency")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .finish()
    }
}

/// Counters and latencies of a [`Monitor`](crate::Monitor).
///
/// ```
/// use revocable_mmio::Monitor;
///
/// # if !revocable_mmio::Support::current().userfaultfd() {
/// #     eprintln!("SKIP: no userfaultfd");
/// #     return Ok(());
/// # }
/// let stats = Monitor::shared()?.stats();
/// println!("{} faults, all but 1% in less than {:?}", stats.faults, stats.answer.quantile(0.99));
/// assert_eq!((stats.threads, stats.panics), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MonitorStats {
    /// Faults read: resolved, refused or left waiting.
    pub faults: u64,
    /// Faults of mappings that were gone when the fault was read.
    pub stale: u64,
    /// Faults whose handling panicked; the monitor went on.
    pub panics: u64,
    /// Mappings served now.
    pub mappings: usize,
    /// The monitor's threads; 0 if the caller's event loop drives it.
    pub threads: usize,
    /// The time from reading a fault to having handled it, for the first fault and every 16th after it.
    pub answer: Latency,
}

#[derive(Debug, Default)]
pub(crate) struct RegionCounters {
    pub(crate) disables: AtomicU64,
    pub(crate) enables: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) faults_mapped: AtomicU64,
    pub(crate) pages_mapped: AtomicU64,
    pub(crate) faults_parked: AtomicU64,
    pub(crate) faults_failed: AtomicU64,
    pub(crate) degraded: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) peer_waits: AtomicU64,
    pub(crate) disable: Histogram,
    pub(crate) enable: Histogram,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counters and latencies of a region; see [`Region::stats`](crate::Region::stats), and the guide's page on
/// [costs](crate::guide::costs).
///
/// ```
/// use revocable_mmio::{MapOptions, Region};
///
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = bar.map(MapOptions::new())?;
/// bar.disable()?;
/// let _ = mapping.write(0, 1_u32);
/// let stats = bar.stats();
/// assert_eq!((stats.disables, stats.refused, stats.mappings, stats.guards), (1, 1, 1, 0));
/// assert_eq!(stats.degraded, 0); // anything else is worth a look at the log
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RegionStats {
    /// Changes to disabled.
    pub disables: u64,
    /// Changes to enabled.
    pub enables: u64,
    /// Resets.
    pub resets: u64,
    /// Faults resolved by mapping pages.
    pub faults_mapped: u64,
    /// Pages mapped for those faults.
    pub pages_mapped: u64,
    /// Faults left waiting: the region was busy, or disabled under the policy Block.
    pub faults_parked: u64,
    /// Faults that could not be resolved (the backing file has no page there and gives none).
    pub faults_failed: u64,
    /// Accesses through this crate that were refused.
    pub refused: u64,
    /// How often a mapping could not be revoked in the intended way, and was revoked in a stricter way: see
    /// ARCHITECTURE.md.
    pub degraded: u64,
    /// Bytes of content that a peer had cut off a shared region's file when it was withdrawn: they are zeroes now.
    pub lost: u64,
    /// Changes that a peer held up: it was in a system call on a shared region's file.
    pub peer_waits: u64,
    /// Notifications that returned an error.
    pub notifier_errors: u64,
    /// Notifications that panicked.
    pub notifier_panics: u64,
    /// Mappings that exist now.
    pub mappings: usize,
    /// Guards held now, in all threads; only a hint while guards are taken and dropped.
    pub guards: u64,
    /// Pins held now.
    pub pins: usize,
    /// Address space used besides the mappings themselves (Detach), in bytes.
    pub alias_bytes: usize,
    /// Page tables that disabled mappings keep aside (Detach), in bytes: an upper bound.
    pub page_tables_kept: usize,
    /// How long disabling took, from the call to its return.
    pub disable: Latency,
    /// How long enabling took.
    pub enable: Latency,
}
