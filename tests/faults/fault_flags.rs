//! A fault does what its caller's flags allow, on regions that are enabled, busy and disabled.

mod table;
mod waits;

use crate::support::{self, busy};
use revocable_mmio::fault::{CallerLock, FaultFlags, LockAfter, NotResolved, Outcome, Resolved};
use revocable_mmio::{AccessError, Caller, FaultError, MapOptions, Mapping, OnDisabled, PinError, Region, Strategy};
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
/// A thread that has not gone on by then is waiting.
const A_WHILE: Duration = Duration::from_millis(40);
/// A woken thread has gone on by then, on any machine. One that is not woken would wait for ever.
const AT_ONCE: Duration = Duration::from_secs(5);
const RELEASED: Outcome = Outcome::Retry { lock: LockAfter::Released };
const HELD: Outcome = Outcome::Retry { lock: LockAfter::Held };

/// A lock that counts what is done to it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lock {
    away: bool,
    released: usize,
    acquired: usize,
}

impl CallerLock for Lock {
    fn release(&mut self) {
        assert!(self.is_held(), "released twice");
        self.away = true;
        self.released += 1;
    }

    fn acquire(&mut self) {
        assert!(!self.is_held(), "taken twice");
        self.away = false;
        self.acquired += 1;
    }

    fn is_held(&self) -> bool {
        !self.away
    }
}

const UNTOUCHED: Lock = Lock { away: false, released: 0, acquired: 0 };
const LET_GO: Lock = Lock { away: true, released: 1, acquired: 0 };
const TAKEN_AGAIN: Lock = Lock { away: false, released: 1, acquired: 1 };

/// A region of every strategy that can be had here.
fn regions() -> impl Iterator<Item = Region> {
    [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw].into_iter().filter_map(|strategy| {
        let region = Region::builder(LEN).strategy(strategy).build();
        if let Err(e) = &region {
            support::skip(&format!("{strategy}: {e}"), support::at_its_best());
        }
        region.ok()
    })
}

/// Runs `waits` in a thread, sees that it waits, runs `wakes`, and returns the thread's result.
fn waits_until<R: Send>(waits: impl FnOnce() -> R + Send, wakes: impl FnOnce()) -> R {
    thread::scope(|scope| {
        let (begins, begun) = std::sync::mpsc::channel();
        let waiter = scope.spawn(move || {
            begins.send(()).expect("the test listens");
            waits()
        });
        begun.recv().expect("the thread runs");
        thread::sleep(A_WHILE);
        assert!(!waiter.is_finished(), "it did not wait");
        wakes();
        let since = Instant::now();
        let result = waiter.join().expect("no panic");
        assert!(since.elapsed() < AT_ONCE, "woken after {:?}", since.elapsed());
        result
    })
}

fn mapping(region: &Region, policy: OnDisabled) -> Mapping {
    region.map(MapOptions::new().on_disabled(policy)).expect("it maps")
}

#[test]
fn an_enabled_region_maps_for_every_legal_set_of_flags_and_keeps_the_callers_lock() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Sigbus);
        let sets = (0..1 << 10).map(FaultFlags::from_bits_retain).filter(|flags| flags.validate().is_ok());
        let mut legal = 0;
        for (nth, flags) in sets.enumerate() {
            let offset = nth * 4096 % LEN + 8;
            let mut lock = Lock::default();
            assert_eq!(region.fault(offset, flags, &mut lock), Ok(Outcome::Mapped), "{flags}");
            assert_eq!(mapping.fault(offset, flags, &mut lock), Ok(Outcome::Mapped), "{flags}");
            assert_eq!(region.fault_in(offset, flags, &mut lock), Ok(Resolved { unlocked: false }), "{flags}");
            assert_eq!(lock, UNTOUCHED);
            mapping.write_with(offset, nth as u64, flags).expect("enabled");
            assert_eq!(mapping.read_with::<u64>(offset, flags), Ok(nth as u64), "{flags}");
            legal = nth + 1;
        }
        assert_eq!(legal, 80, "of 128 sets, those with NOWAIT or TRIED and without ALLOW_RETRY are illegal");
    }
}

#[test]
fn a_busy_region_sends_who_may_not_wait_away_with_its_lock() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        let again = FaultFlags::NOWAIT | FaultFlags::TRIED | FaultFlags::KILLABLE;
        busy(&region, |_end| {
            for flags in [FaultFlags::NOWAIT, again] {
                let mut lock = Lock::default();
                assert_eq!(region.fault(0, flags, &mut lock), Ok(HELD));
                assert_eq!(mapping.fault(0, flags, &mut lock), Ok(HELD));
                assert_eq!(region.fault_in(0, flags, &mut lock), Err(FaultError::NotResolved(NotResolved::WouldBlock)));
                assert_eq!(lock, UNTOUCHED);
                assert_eq!(mapping.read_with::<u8>(3, flags), Err(AccessError::WouldBlock { offset: 3 }));
                assert_eq!(region.pin(0..1, flags).map(drop), Err(PinError::WouldBlock));
            }
            assert_eq!(mapping.try_read::<u32>(4), Err(AccessError::WouldBlock { offset: 4 }));
            assert_eq!(mapping.try_write(4, 1u32), Err(AccessError::WouldBlock { offset: 4 }));
        });
        assert_eq!(mapping.try_read::<u32>(4), Ok(0), "{:?}: nothing was stored", region.strategy());
    }
}

#[test]
fn a_busy_region_has_who_may_wait_wait_and_says_what_became_of_its_lock() {
    support::start();
    let tried = FaultFlags::WAIT | FaultFlags::TRIED;
    let cases = [
        (FaultFlags::WAIT, RELEASED, LET_GO),
        (FaultFlags::ALLOW_RETRY, RELEASED, LET_GO),
        (tried, Outcome::Mapped, UNTOUCHED),
        (FaultFlags::empty(), Outcome::Mapped, UNTOUCHED),
        (FaultFlags::KILLABLE, Outcome::Mapped, UNTOUCHED),
    ];
    for region in regions() {
        for (flags, outcome, after) in &cases {
            busy(&region, |end| {
                let mut lock = Lock::default();
                let answer = waits_until(|| region.fault(0, *flags, &mut lock), || drop(end));
                assert_eq!((answer, &lock), (Ok(*outcome), after), "{flags}");
            });
        }
        busy(&region, |end| {
            let mut lock = Lock::default();
            let answer = waits_until(|| region.fault_in(0, FaultFlags::WAIT, &mut lock), || drop(end));
            assert_eq!((answer, lock), (Ok(Resolved { unlocked: true }), TAKEN_AGAIN));
        });
    }
}

#[test]
fn a_reset_refuses_no_access() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Sigbus);
        mapping.write(8, 5u64).expect("enabled");
        busy(&region, |end| assert_eq!(waits_until(|| mapping.read::<u64>(8), || drop(end)), Ok(5)));
        busy(&region, |end| {
            let flags = FaultFlags::WAIT;
            assert_eq!(waits_until(|| mapping.read_with::<u64>(8, flags), || drop(end)), Ok(5));
        });
    }
}

#[test]
fn a_disabled_region_answers_sigbus_or_has_the_caller_wait_as_its_policy_says() {
    support::start();
    for region in regions() {
        assert!(region.disable().expect("nothing is in the way"));
        let sets = [FaultFlags::DEFAULT, FaultFlags::NOWAIT, FaultFlags::WAIT, FaultFlags::empty()];
        for flags in sets {
            let mut lock = Lock::default();
            assert_eq!(region.fault(0, flags, &mut lock), Ok(Outcome::Sigbus), "{flags}");
            assert_eq!(region.fault_in(0, flags, &mut lock), Err(FaultError::NotResolved(NotResolved::Sigbus)));
            assert_eq!(lock, UNTOUCHED, "{flags}");
        }
        let block = |flags| Caller::new(flags).on_disabled(OnDisabled::Block);
        let mut lock = Lock::default();
        assert_eq!(region.fault(0, block(FaultFlags::NOWAIT), &mut lock), Ok(HELD));
        assert_eq!(lock, UNTOUCHED);
        let enable = || assert!(region.enable().expect("it can be given back"));
        let answer = waits_until(|| region.fault(0, block(FaultFlags::WAIT), &mut lock), enable);
        assert_eq!((answer, lock), (Ok(RELEASED), LET_GO));
    }
}

#[test]
fn accesses_at_a_disabled_region_meet_the_mappings_policy() {
    support::start();
    for region in regions() {
        let [sigbus, ones, block] =
            [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block].map(|policy| mapping(&region, policy));
        assert!(region.disable().expect("nothing is in the way"));
        assert_eq!(sigbus.read_with::<u16>(2, FaultFlags::DEFAULT), Err(AccessError::Disabled { offset: 2 }));
        assert_eq!(ones.read_with::<u16>(2, FaultFlags::DEFAULT), Ok(0xffff));
        assert_eq!(ones.write_with(2, 7u16, FaultFlags::DEFAULT), Ok(()), "dropped, as a PCI Unsupported Request is");
        assert_eq!(block.try_read::<u16>(2), Err(AccessError::WouldBlock { offset: 2 }));
        let enable = || assert!(region.enable().expect("it can be given back"));
        assert_eq!(waits_until(|| block.read_with::<u16>(2, FaultFlags::WAIT), enable), Ok(0));
    }
}
