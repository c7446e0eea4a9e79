//! No call waits for its own thread. A callback of a change of state, or a signal handler that interrupts the changer,
//! may call the region: each call returns at once, and one that would have to wait returns `Reentrant`.
//!
//! During a reset's callback the changer holds everything. The rest is tested by a handler that interrupts the changer
//! at random moments.

use crate::support;
use crate::support::matrix::{POLICIES, STRATEGIES};
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::{FaultFlags, NoLock, NotResolved, Outcome};
use revocable_mmio::{
    AccessError, Caller, FaultError, MapError, MapOptions, Mapping, OnDisabled, PinError, Region, ResetGroup,
    RevokeError, Strategy,
};
use std::time::Duration;

fn reentrant<T: std::fmt::Debug>(what: &str, result: Result<T, AccessError>) {
    assert!(matches!(result, Err(AccessError::Reentrant { .. })), "{what}: {result:?}");
}

/// Every kind of access that may wait.
fn every_access_is_refused(mapping: &Mapping) {
    let mut bytes = [0; 64];
    reentrant("read", mapping.read::<u64>(8));
    reentrant("write", mapping.write(8, 1_u64));
    reentrant("compare_exchange", mapping.compare_exchange(8, 0_u64, 1));
    reentrant("swap", mapping.swap(8, 1_u64));
    reentrant("fetch_add", mapping.fetch_add(8, 1_u32));
    reentrant("fetch_or", mapping.fetch_or(8, 1_u8));
    reentrant("read_slice", mapping.read_slice(8, &mut bytes).map_err(|e| e.error));
    reentrant("write_slice", mapping.write_slice(8, &bytes).map_err(|e| e.error));
    reentrant("fill", mapping.fill(8, 1, 64).map_err(|e| e.error));
    reentrant("read_with", mapping.read_with::<u64>(8, FaultFlags::DEFAULT));
    reentrant("write_with", mapping.write_with(8, 1_u64, FaultFlags::DEFAULT));
    reentrant("with_access", mapping.with_access(|_| ()));
    let register = mapping.register::<u32>(8).expect("it is inside");
    reentrant("Register::read", register.read());
    reentrant("Register::write", register.write(1));
    let faulted = mapping.fault(8, FaultFlags::DEFAULT, &mut NoLock::default());
    assert!(matches!(faulted, Ok(Outcome::Reentrant)), "fault: {faulted:?}");
    // Calls that never wait are not refused as reentrant.
    assert_eq!(mapping.try_read::<u64>(8), Err(AccessError::WouldBlock { offset: 8 }));
    assert_eq!(mapping.try_write(8, 1_u64), Err(AccessError::WouldBlock { offset: 8 }));
    assert!(matches!(mapping.try_access(), Err(AccessError::WouldBlock { .. })));
}

fn every_verb_is_refused(region: &Region) {
    let faulted = region.fault_in(8, FaultFlags::DEFAULT, &mut NoLock::default());
    assert!(matches!(faulted, Err(FaultError::NotResolved(NotResolved::Reentrant))), "fault_in: {faulted:?}");
    assert_eq!(region.pin(0..8, FaultFlags::WAIT).err(), Some(PinError::Reentrant));
    assert_eq!(region.pin(0..8, FaultFlags::NOWAIT).err(), Some(PinError::WouldBlock));
    assert!(matches!(region.map(MapOptions::new()), Err(MapError::Reentrant)));
    assert!(matches!(region.disable(), Err(RevokeError::Reentrant)));
    assert!(matches!(region.enable(), Err(RevokeError::Reentrant)));
    assert!(matches!(region.reset(|_| ()), Err(RevokeError::Reentrant)));
}

#[test]
fn whatever_a_reset_callback_asks_of_its_own_region_is_answered_at_once() {
    support::start();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
        for policy in POLICIES {
            for accessors_only in [false, true] {
                let options = MapOptions::new().on_disabled(policy);
                let options = if accessors_only { options.accessors_only() } else { options };
                let Ok(mapping) = region.map(options) else { continue };
                let _watchdog =
                    Watchdog::new(&format!("{strategy} {policy:?} {accessors_only}"), Duration::from_secs(20));
                // With its pages mapped, and without.
                for touched in [false, true] {
                    if touched {
                        mapping.write(8, 7_u64).expect("it is enabled");
                    }
                    let reset = region.reset(|_| {
                        every_access_is_refused(&mapping);
                        every_verb_is_refused(&region);
                    });
                    reset.expect("it resets");
                }
                assert_eq!(mapping.read(8), Ok(7_u64), "nothing that was refused was done");
            }
        }
    }
}

/// The group's change waits for the end of this callback, as it would wait for a guard of another member. The callback
/// is looked at first, so each call returns `Reentrant`.
#[test]
fn a_groups_callback_is_answered_so_for_each_member() {
    support::start();
    for strategy in STRATEGIES {
        let build = || Region::builder(64 << 10).strategy(strategy).build();
        let (Ok(one), Ok(other)) = (build(), build()) else { continue };
        let _watchdog = Watchdog::new(&format!("a group's reset, {strategy}"), Duration::from_secs(20));
        let mappings = [&one, &other].map(|region| region.map(MapOptions::new()).expect("it maps"));
        let group = ResetGroup::new([&one, &other]);
        let reset = group.try_reset(|_| {
            mappings.iter().for_each(every_access_is_refused);
            [&one, &other].into_iter().for_each(every_verb_is_refused);
        });
        reset.expect("nothing is in the way");
    }
}

#[test]
fn another_region_is_waited_for_in_a_callback() {
    support::start();
    let [own, other] = [(); 2].map(|()| Region::builder(4096).build().expect("it builds"));
    let mapping = other.map(MapOptions::new()).expect("it maps");
    mapping.write(0, 5_u32).expect("it is enabled");
    let (begun, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reset = other.reset(|_| {
                begun.send(()).expect("it is waited for");
                std::thread::sleep(Duration::from_millis(50));
            });
            reset.expect("it resets");
        });
        wait.recv().expect("it begins");
        assert_eq!(own.reset(|_| mapping.read::<u32>(0)).expect("it resets"), Ok(5));
    });
}

#[test]
fn a_guard_or_a_pin_of_the_changers_own_waits_for_nothing_in_on_revoke() {
    support::start();
    let region = Region::builder(64 << 10).build().expect("it builds");
    let mapping = std::sync::Arc::new(region.map(MapOptions::new()).expect("it maps"));
    let _watchdog = Watchdog::new("on_revoke", Duration::from_secs(20));
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let pin = region.pin(0..8, FaultFlags::DEFAULT).expect("it is enabled");
    let (mapping_, seen_) = (std::sync::Arc::clone(&mapping), std::sync::Arc::clone(&seen));
    let _pin = pin.on_revoke(move || {
        seen_.lock().expect("no panic").push((mapping_.with_access(|_| ()), mapping_.read::<u8>(0)));
    });
    assert!(matches!(region.disable_timeout(Duration::from_millis(20)), Err(RevokeError::TimedOut { .. })));
    let seen = seen.lock().expect("no panic");
    assert_eq!(
        *seen,
        [(Err(AccessError::Reentrant { offset: AccessError::WHOLE }), Ok(0))],
        "accesses go on while pins are waited for"
    );
}

#[test]
fn a_disabled_region_whose_faults_wait_is_not_waited_for_by_the_thread_that_enables_it() {
    support::start();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
        let Ok(mapping) = region.map(MapOptions::new().on_disabled(OnDisabled::Block)) else { continue };
        let _watchdog = Watchdog::new("a disabled region", Duration::from_secs(20));
        assert!(region.disable().expect("nothing is in the way"));
        let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
        region
            .reset(|_| {
                reentrant("read", mapping.read::<u64>(8));
                assert_eq!(region.pin(0..8, caller).err(), Some(PinError::Reentrant));
            })
            .expect("it resets");
        let _ = Strategy::Zap;
    }
}
