//! Pinned pages stay reachable by address, and a revocation tells the holders and waits for them.

use crate::support::waiter::Waiter;
use crate::support::{self, busy};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{Caller, MapOptions, OnDisabled, Pin, PinError, Region, RevokeError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const LEN: usize = 1 << 20;
const PAGE: usize = 4096;
const A_WHILE: Duration = Duration::from_millis(40);

fn region() -> Region {
    Region::builder(LEN).build().expect("it builds")
}

fn pin(region: &Region, range: std::ops::Range<usize>) -> Pin {
    region.pin(range, FaultFlags::WAIT).expect("enabled")
}

/// `disable()` in a thread, seen to wait.
fn disabling(region: &Arc<Region>) -> thread::JoinHandle<Result<bool, RevokeError>> {
    let waiter = Waiter::default();
    let (theirs, begins) = (Arc::clone(region), waiter.clone());
    let disabler = thread::spawn(move || {
        begins.begins();
        theirs.disable()
    });
    waiter.until_it_waits();
    assert!(!disabler.is_finished(), "it does not wait for the pin");
    disabler
}

#[test]
fn a_pins_range_is_rounded_out_to_pages_and_its_address_has_the_content() {
    support::start();
    let region = region();
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write(5 * PAGE, 0x1122_3344_5566_7788_u64).expect("enabled");
    let pin = pin(&region, 5 * PAGE + 7..6 * PAGE + 1);
    assert_eq!(pin.range(), 5 * PAGE..7 * PAGE);
    assert_eq!(load(&pin), 0x1122_3344_5566_7788);
    store(&pin, 99);
    assert_eq!(mapping.read::<u64>(5 * PAGE), Ok(99), "the same pages");
    assert_eq!(region.stats().pins, 1);
}

#[expect(unsafe_code, reason = "the address is what is tested")]
fn load(pin: &Pin) -> u64 {
    // SAFETY: pinned.
    unsafe { pin.as_ptr().cast::<u64>().read_volatile() }
}

#[expect(unsafe_code, reason = "the address is what is tested")]
fn store(pin: &Pin, value: u64) {
    // SAFETY: pinned.
    unsafe { pin.as_ptr().cast::<u64>().write_volatile(value) }
}

#[test]
fn ranges_that_are_empty_or_outside_are_errors() {
    support::start();
    let region = region();
    #[expect(clippy::reversed_empty_ranges, reason = "that is the case")]
    for range in [0..0, 9..8, LEN..LEN + 1, 0..LEN + 1, usize::MAX - 1..usize::MAX] {
        let error = region.pin(range.clone(), FaultFlags::WAIT).map(drop).expect_err("refused");
        assert_eq!(error, PinError::OutOfRange { start: range.start, end: range.end, len: LEN });
    }
    assert_eq!(pin(&region, 0..LEN).range(), 0..LEN);
}

#[test]
fn a_disabled_region_is_not_pinned_and_who_may_wait_for_it_does() {
    support::start();
    let region = region();
    assert!(region.disable().expect("nothing is in the way"));
    for flags in [FaultFlags::WAIT, FaultFlags::NOWAIT, FaultFlags::empty()] {
        assert_eq!(region.pin(0..1, flags).map(drop), Err(PinError::Disabled));
    }
    let block = |flags| Caller::new(flags).on_disabled(OnDisabled::Block);
    assert_eq!(region.pin(0..1, block(FaultFlags::NOWAIT)).map(drop), Err(PinError::WouldBlock));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| region.pin(0..1, block(FaultFlags::WAIT)).map(drop));
        thread::sleep(A_WHILE);
        assert!(!waiter.is_finished(), "it does not wait");
        assert!(region.enable().expect("it can be given back"));
        assert_eq!(waiter.join().expect("no panic"), Ok(()));
    });
    assert_eq!(region.stats().pins, 0);
}

#[test]
fn a_busy_region_is_not_pinned_without_waiting_and_nothing_is_left_behind() {
    support::start();
    let region = region();
    busy(&region, |end| {
        thread::scope(|scope| {
            for _ in 0..1000 {
                assert_eq!(region.pin(0..LEN, FaultFlags::NOWAIT).map(drop), Err(PinError::WouldBlock));
            }
            assert_eq!(region.stats().pins, 0, "nothing was queued");
            let waiter = scope.spawn(|| region.pin(0..1, FaultFlags::WAIT).map(drop));
            thread::sleep(A_WHILE);
            assert!(!waiter.is_finished(), "it does not wait");
            drop(end);
            assert_eq!(waiter.join().expect("no panic"), Ok(()));
        });
    });
}

#[test]
fn a_revocation_waits_for_pins_or_refuses_or_gives_up_as_asked() {
    support::start();
    let region = Arc::new(region());
    let pins = [pin(&region, 0..1), pin(&region, PAGE..2 * PAGE)];
    match region.try_disable() {
        Err(RevokeError::Busy(holders)) => assert_eq!((holders.pins, holders.guards.len()), (2, 0)),
        other => panic!("{other:?}"),
    }
    match region.disable_timeout(A_WHILE) {
        Err(RevokeError::TimedOut { waited, holders }) => assert!(waited >= A_WHILE / 2 && holders.pins == 2),
        other => panic!("{other:?}"),
    }
    assert!(region.is_enabled() && !pins[0].is_wanted_back(), "given up: all is as before");
    drop(pin(&region, 0..1));
    let disabler = disabling(&region);
    assert!(pins.iter().all(Pin::is_wanted_back));
    let late = region.pin(0..1, FaultFlags::NOWAIT).map(drop);
    assert_eq!(late, Err(PinError::WouldBlock), "no new pins while it waits");
    let [first, last] = pins;
    drop(first);
    thread::sleep(A_WHILE);
    assert!(!disabler.is_finished(), "it does not wait for the last pin");
    drop(last);
    assert!(disabler.join().expect("no panic").expect("disabled"));
    assert!(!region.is_enabled());
}

#[test]
fn holders_are_told_each_time_and_may_drop_their_pin_in_the_callback() {
    support::start();
    let region = Arc::new(region());
    let told = Arc::new(AtomicUsize::new(0));
    for round in 1..=2 {
        let slot: Arc<Mutex<Option<Pin>>> = Arc::default();
        let (theirs, count) = (Arc::clone(&slot), Arc::clone(&told));
        let pin = pin(&region, 0..LEN).on_revoke(move || {
            count.fetch_add(1, Ordering::SeqCst);
            theirs.lock().expect("no panic").take();
        });
        *slot.lock().expect("no panic") = Some(pin);
        assert!(region.try_disable().is_err(), "a try tells no holder");
        assert_eq!(told.load(Ordering::SeqCst), round - 1);
        assert!(region.disable().expect("the pin is given up"));
        assert_eq!(told.load(Ordering::SeqCst), round);
        assert!(region.enable().expect("it can be given back"));
    }
}

#[test]
fn a_timeout_has_told_the_holders_and_a_panic_of_one_is_its_own() {
    support::start();
    let region = region();
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let _panics = pin(&region, 0..1).on_revoke(|| panic!("a holder's own"));
    let _counts = pin(&region, 0..1).on_revoke(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    assert!(matches!(region.disable_timeout(A_WHILE), Err(RevokeError::TimedOut { .. })));
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn the_last_callback_counts_and_none_after_the_pin() {
    support::start();
    let region = region();
    let (first, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counter = |of: &Arc<AtomicUsize>| {
        let of = Arc::clone(of);
        move || {
            of.fetch_add(1, Ordering::SeqCst);
        }
    };
    let gone = pin(&region, 0..1).on_revoke(counter(&first));
    drop(gone);
    let held = pin(&region, 0..1).on_revoke(counter(&first)).on_revoke(counter(&last));
    assert!(region.disable_timeout(A_WHILE).is_err());
    assert_eq!((first.load(Ordering::SeqCst), last.load(Ordering::SeqCst)), (0, 1));
    drop(held);
    assert!(region.disable().expect("no pin is left"));
}

#[test]
fn a_callback_that_changes_the_state_is_told_so() {
    support::start();
    let region = Arc::new(region());
    let (answer, answers) = mpsc::channel();
    let theirs = Arc::downgrade(&region);
    let _held = pin(&region, 0..1).on_revoke(move || {
        let region = theirs.upgrade().expect("it lives");
        answer.send(region.disable().map_err(|e| e.to_string())).expect("the test looks");
    });
    assert!(region.disable_timeout(A_WHILE).is_err());
    let told = answers.recv().expect("told").expect_err("refused");
    assert!(told.contains("from inside a notifier"), "{told}");
}

#[test]
fn dropping_a_region_keeps_its_pins_promises() {
    support::start();
    let region = region();
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write(0, 7u64).expect("enabled");
    let held = pin(&region, 0..1);
    drop(region);
    thread::sleep(A_WHILE);
    assert_eq!(load(&held), 7);
    drop(held);
}
