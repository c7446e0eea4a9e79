//! A forked child has none of its parent's mappings, and does no harm with what it inherits.
#![expect(unsafe_code, reason = "forks, and maps memory in the child")]

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};
use revocable_mmio::{MapError, MapOptions, Mapping, Monitor, Region, RevokeError, Strategy};
use std::num::NonZeroUsize;

/// Runs `child` in a forked child; whether it answered true.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child allocates and locks, which glibc and musl allow for all that is used; if it hangs, an alarm ends it.
    match unsafe { fork() }.expect("it forks") {
        ForkResult::Child => {
            alarm::set(10);
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
            // SAFETY: ends the child without its parent's destructors.
            unsafe { nix::libc::_exit(if fine { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => waitpid(child, None).expect("it ends") == WaitStatus::Exited(child, 0),
    }
}

fn made(strategy: Strategy) -> (Region, Mapping) {
    // A monitor of its own, so that its end is the region's.
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let region = Region::builder(1 << 20).strategy(strategy).monitor(monitor).build().expect("the strategy is there");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write::<u64>(0, 7).expect("enabled");
    (region, mapping)
}

#[test]
fn a_child_that_drops_what_it_inherits_unmaps_nothing_of_its_own() {
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        let (region, mapping) = made(strategy);
        let mut inherited = Some((region, mapping));
        let fine = in_child(|| {
            let (region, mapping) = inherited.take().expect("inherited");
            let at = NonZeroUsize::new(mapping.as_ptr().addr());
            let len = NonZeroUsize::new(mapping.len()).expect("not 0");
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
            // SAFETY: replaces nothing.
            let own = unsafe { mmap_anonymous(at, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
            let own = own.expect("the child has nothing there").cast::<u64>();
            // SAFETY: just mapped.
            unsafe { own.write_volatile(42) };
            let refused = matches!(region.disable(), Err(RevokeError::Forked))
                && matches!(region.map(MapOptions::new()), Err(MapError::Forked));
            drop(region);
            drop(mapping);
            // SAFETY: mapped, if nobody has unmapped it.
            refused && unsafe { own.read_volatile() } == 42
        });
        assert!(fine, "{strategy}");
        let (region, mapping) = inherited.expect("still the parent's");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
        region.disable().expect("nobody is in the way");
        assert!(mapping.read::<u64>(0).is_err());
        region.enable().expect("comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{strategy}");
    }
}

#[test]
fn a_child_does_not_wait_for_its_parents_monitor() {
    let (region, mapping) = made(Strategy::Zap);
    drop(mapping);
    let mut inherited = Some(region);
    assert!(in_child(|| {
        drop(inherited.take());
        true
    }));
    let region = inherited.expect("still the parent's");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    assert_eq!(mapping.read::<u64>(0), Ok(7));
}
