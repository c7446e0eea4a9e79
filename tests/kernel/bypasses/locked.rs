//! Mappings that are locked in memory.

use super::calls::lock_on_fault;
use super::{SECRET, with_secret};
use crate::support::matrix::{Case, every_case};
use crate::support::raw;
use crate::support::{self, child, is_root};
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use revocable_mmio::OnDisabled;

#[test]
fn a_locked_mapping_is_revoked_all_the_same() {
    support::start();
    every_case(|case| {
        let (region, mapping, base) = with_secret(case);
        for lock in [lock_on_fault, raw::lock] {
            match lock(base, mapping.len()) {
                Ok(()) => {}
                // The limit on locked memory, or pages that only a userfaultfd for user-mode faults could give.
                Err(e) => return assert!(!is_root() || !case.kernel_waits(), "{case}: mlock: {e}"),
            }
            for _ in 0..2 {
                region.disable().expect("it revokes");
                if case.policy != OnDisabled::Block {
                    assert_ne!(raw::load64(base), Ok(SECRET), "{case}");
                    // The cover can be locked, too, or not at all.
                    let _ = lock(base, mapping.len());
                    assert_ne!(raw::load64(base), Ok(SECRET), "{case}");
                }
                region.enable().expect("it comes back");
                assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
            }
        }
    });
}

#[test]
fn mlockall_of_the_future_changes_nothing() {
    support::start();
    require!(is_root(), "mlockall needs a limit on locked memory that is root's");
    let ended = child::alone(|| {
        let future = MlockAllFlags::MCL_FUTURE;
        let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
        for flags in [future, future | on_fault, future | MlockAllFlags::MCL_CURRENT] {
            mlockall(flags).expect("root may");
            every_case(revoked_all_the_same);
        }
    });
    ended.well();
}

fn revoked_all_the_same(case: &Case) {
    let (region, mapping, base) = with_secret(case);
    for _ in 0..2 {
        region.disable().unwrap_or_else(|e| panic!("{case}: {e}"));
        if case.policy != OnDisabled::Block {
            assert_ne!(raw::load64(base), Ok(SECRET), "{case}");
        }
        region.enable().unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(mapping.read::<u64>(0), Ok(SECRET), "{case}");
        assert_eq!(raw::load64(base), Ok(SECRET), "{case}");
    }
}
