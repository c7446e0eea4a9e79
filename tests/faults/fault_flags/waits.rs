//! Waits that are cancelled, or end with the region.

use super::{LEN, LET_GO, Lock, RELEASED, busy, mapping, regions, waits_until};
use crate::support;
use nix::errno::Errno;
use revocable_mmio::fault::{CallerLock, FaultFlags, NoLock, NotResolved, Outcome};
use revocable_mmio::{AccessError, Caller, CancelToken, FaultError, OnDisabled, PinError, Region};
use std::thread;

#[test]
fn cancelling_ends_every_killable_wait_at_once() {
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = mapping(&region, OnDisabled::Block);
    let check = || {
        for flags in [FaultFlags::WAIT, FaultFlags::KILLABLE, FaultFlags::WAIT | FaultFlags::TRIED] {
            let token = CancelToken::new();
            let caller = Caller::new(flags).cancel(&token).on_disabled(OnDisabled::Block);
            let mut lock = Lock::default();
            let answer = waits_until(|| region.fault(0, caller, &mut lock), || assert!(token.cancel()));
            assert_eq!((answer, lock), (Ok(Outcome::Killed), LET_GO), "{flags}");
            let mut lock = Lock::default();
            let killed = Err(FaultError::NotResolved(NotResolved::Killed));
            assert_eq!(region.fault_in(0, caller, &mut lock).map(drop), killed, "cancelled is cancelled for good");
            assert!(lock.is_held());
        }
        let token = CancelToken::new();
        let caller = Caller::new(FaultFlags::WAIT).cancel(&token).on_disabled(OnDisabled::Block);
        let answers = waits_until(
            || {
                thread::scope(|scope| {
                    let read = scope.spawn(|| mapping.read_with::<u8>(1, caller));
                    let pin = scope.spawn(|| region.pin(0..1, caller).map(drop));
                    (read.join().expect("no panic"), pin.join().expect("no panic"))
                })
            },
            || assert!(token.cancel()),
        );
        assert_eq!(answers, (Err(AccessError::Cancelled { offset: 1 }), Err(PinError::Cancelled)));
    };
    busy(&region, |_end| check());
    assert!(region.disable().expect("nothing is in the way"));
    check();
}

#[test]
fn cancelling_does_not_end_a_wait_that_is_not_killable() {
    support::start();
    let region = Region::builder(LEN).build().expect("it builds");
    busy(&region, |end| {
        let token = CancelToken::new();
        assert!(token.cancel());
        let caller = Caller::new(FaultFlags::ALLOW_RETRY).cancel(&token);
        let answer = waits_until(|| region.fault(0, caller, &mut NoLock::default()), || drop(end));
        assert_eq!(answer, Ok(RELEASED));
    });
}

#[test]
fn dropping_the_region_ends_the_waits_of_its_mappings() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        assert!(region.disable().expect("nothing is in the way"));
        let answers = waits_until(
            || {
                thread::scope(|scope| {
                    let caller = scope.spawn(|| mapping.read_with::<u8>(1, FaultFlags::ALLOW_RETRY));
                    (mapping.read::<u8>(1), caller.join().expect("no panic"))
                })
            },
            || drop(region),
        );
        let gone = Err(AccessError::Gone { offset: 1 });
        assert_eq!(answers, (gone, gone));
    }
}

#[test]
fn system_calls_of_a_blocking_mapping_are_refused_before_and_after_its_region_is_dropped() {
    support::start();
    for region in regions() {
        let mapping = mapping(&region, OnDisabled::Block);
        assert!(region.disable().expect("nothing is in the way"));
        let into = mapping.as_ptr().expose_provenance();
        assert_eq!(stat_into(into), Err(Errno::EFAULT));
        drop(region);
        assert_eq!(stat_into(into), Err(Errno::EFAULT));
    }
}

/// A system call that writes to `address`. Not by the C library's function: musl's writes there itself, in user mode.
#[expect(unsafe_code, reason = "a system call's buffer is the mapping")]
fn stat_into(address: usize) -> Result<(), Errno> {
    let into = std::ptr::with_exposed_provenance_mut::<nix::libc::stat>(address);
    // SAFETY: the mapping outlives the call, and only the kernel writes to it.
    Errno::result(unsafe { nix::libc::syscall(nix::libc::SYS_fstat, 0, into) }).map(drop)
}
