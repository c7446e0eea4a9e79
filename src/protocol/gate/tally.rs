//! A counter for many threads, and for signal handlers.

// Not from `crate::sync`: signal handlers count, and the model checks nothing of it.
use core::sync::atomic::{AtomicU64, Ordering};

/// How many parts it has: threads that count at the same time mostly use different parts.
const PARTS: usize = 8;

/// One number in parts, each with a cache line, and its prefetched neighbour, to itself.
#[derive(Debug, Default)]
pub(super) struct Tally([TallyPart; PARTS]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct TallyPart(AtomicU64);

thread_local! {
    // Its address tells threads apart. No destructor and no lazy initialisation: signal handlers use it.
    static HERE: u8 = const { 0 };
}

impl Tally {
    /// Adds one. Async-signal-safe, and never waits.
    #[inline]
    pub(super) fn count(&self) {
        // Thread-local blocks are pages apart; the multiplication spreads the differing bits over the top bits (Fibonacci
        // hashing).
        let here = HERE.with(|here| (&raw const *here).addr());
        let part = (here >> 6).wrapping_mul(0x9E37_79B9) >> (u32::BITS - PARTS.ilog2());
        // Relaxed: the parts are only ever summed up. A read-modify-write, as other threads and handlers may count here.
        self.0[part % PARTS].0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|part| part.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_whoever_counts() {
        let each: u64 = if cfg!(miri) { 100 } else { 10_000 };
        let tally = Tally::default();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..each).for_each(|_| tally.count()));
            }
        });
        assert_eq!(tally.sum(), 16 * each);
        let used = tally.0.iter().filter(|part| part.0.load(Ordering::Relaxed) > 0).count();
        assert!(used > 1, "all threads count in one part");
    }
}
