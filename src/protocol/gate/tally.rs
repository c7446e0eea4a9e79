//! Counters for many threads, and for signal handlers.
//!
//! UNSAFETY: one addition in assembly.
#![cfg_attr(all(target_arch = "x86_64", not(miri)), expect(unsafe_code, reason = "an addition in assembly"))]

// Not from `crate::sync`: signal handlers count, and the model checks nothing of it.
use super::threads;
use core::sync::atomic::{AtomicU64, Ordering};

/// How many threads have a part of their own: those with the lowest numbers.
const OWN: usize = 16;
/// How many parts the others share: threads that count at the same time mostly use different ones.
const SHARED: usize = 4;

/// One number in parts, which are added up when it is read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    own: [OwnTally; OWN],
    shared: [SharedTally; SHARED],
}

impl Tally {
    /// Adds one. Async-signal-safe, and never waits.
    #[inline]
    pub(super) fn count(&self) {
        let me = threads::current();
        match self.own.get(me.place.first_bucket()) {
            Some(own) if me.is_known() => own.count(),
            _ => self.shared[SharedTally::of_this_thread()].count(),
        }
    }

    pub(super) fn sum(&self) -> u64 {
        let own = self.own.iter().map(|part| &part.0);
        // Relaxed: the parts are only ever added up.
        own.chain(self.shared.iter().map(|part| &part.0)).map(|part| part.load(Ordering::Relaxed)).sum()
    }
}

/// What one thread counts, and the handlers of its signals: the thread that has this number, which goes to the next when it has
/// ended. A locked addition, with which other threads could count too, takes four times as long.
#[derive(Debug, Default)]
#[repr(align(64))]
struct OwnTally(AtomicU64);

impl OwnTally {
    #[inline]
    fn count(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a live and aligned u64. Its other writers are handlers of this thread's signals, which interrupt it before or
        // after an instruction; other threads read it by one load, and find it with or without this one.
        unsafe {
            core::arch::asm!("add qword ptr [{}], 1", in(reg) self.0.as_ptr(), options(nostack));
        }
        // Relaxed: only ever added up. Elsewhere a handler could come between a load and its store.
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What several threads count.
#[derive(Debug, Default)]
#[repr(align(64))]
struct SharedTally(AtomicU64);

thread_local! {
    // Its address tells threads apart. No destructor and no lazy initialisation: signal handlers use it.
    static HERE: u8 = const { 0 };
}

impl SharedTally {
    fn of_this_thread() -> usize {
        // Thread-local blocks are pages apart; the multiplication spreads the differing bits over the top bits (Fibonacci
        // hashing).
        let here = HERE.with(|here| (&raw const *here).addr());
        ((here >> 6).wrapping_mul(0x9E37_79B9) >> (u32::BITS - SHARED.ilog2())) % SHARED
    }

    fn count(&self) {
        // Relaxed: only ever added up. A read-modify-write, as other threads and handlers may count here.
        self.0.fetch_add(1, Ordering::Relaxed);
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
        let used = tally.shared.iter().filter(|part| part.0.load(Ordering::Relaxed) > 0).count();
        assert!(used > 1, "all threads count in one part");
    }

    /// A signal after each instruction of a count, whose handler counts too.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[test]
    fn a_handler_that_counts_between_any_two_instructions_of_a_count_loses_neither() {
        use nix::libc::c_int;

        static TALLY: OwnTally = OwnTally(AtomicU64::new(0));
        static SIGNALS: AtomicU64 = AtomicU64::new(0);
        extern "C" fn count(_: c_int) {
            TALLY.count();
            SIGNALS.fetch_add(1, Ordering::Relaxed);
        }

        super::super::stepped::stepped(count, || TALLY.count());
        let signals = SIGNALS.load(Ordering::Relaxed);
        assert!(signals > 2, "{signals} instructions");
        assert_eq!(TALLY.0.load(Ordering::Relaxed), signals + 1);
    }
}
