//! Dropping a region takes its memory away at once, even while its last fault is still being resolved. The same holds
//! for a mapping.

use crate::support;
use crate::support::waiter::while_loaded;
use crate::support::{child, raw};
use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region, Strategy};
use std::thread;
use std::time::Duration;

#[test]
fn nothing_is_reachable_once_the_region_is_dropped_right_after_a_fault() {
    support::start();
    for _ in 0..300 {
        let built = Region::builder(1 << 16).strategy(Strategy::Zap).build();
        let region = match built {
            Ok(region) => region,
            Err(e) => {
                return support::skip(&format!("no Zap: {e}"), support::at_its_best());
            }
        };
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        // The monitor has resolved the fault, and holds the read side of the memory lock for a moment longer.
        assert_eq!(mapping.read::<u64>(0), Ok(0));
        drop(region);
        assert_eq!(mapping.read::<u64>(0), Err(AccessError::Gone { offset: 0 }));
    }
}

/// G1 for a mapping that another thread is dropping: `disable()` returns when it is revoked or unmapped, not in between.
#[test]
fn a_mapping_that_is_being_dropped_is_revoked_or_gone() {
    const LEN: usize = 16 << 20;
    const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
    support::start();
    // In a process of its own: what is mapped there once the mapping is gone is no other test's.
    let ended = child::alone(|| {
        for strategy in support::matrix::STRATEGIES {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else { continue };
            region.owner().fill(0, 1, LEN).expect("there is room");
            // The page that is unmapped last.
            region.owner().write(LEN - 8, SECRET).expect("it is there");
            for round in 0..50 {
                let mapping = region.map(MapOptions::new()).expect("it maps");
                let base = mapping.as_ptr().expose_provenance();
                // Touches every page, so that unmapping takes its time.
                let mut all = vec![0; LEN];
                mapping.read_slice(0, &mut all).expect("enabled");
                let dropping = thread::spawn(move || drop(mapping));
                thread::sleep(Duration::from_micros(20 * round));
                region.disable().expect("it revokes");
                assert_ne!(raw::load64(base + LEN - 8), Ok(SECRET), "{strategy}, round {round}");
                dropping.join().expect("no panic");
                region.enable().expect("it comes back");
            }
        }
    });
    ended.well();
}

/// Who still uses a pointer to a dropped mapping may meet what the crate prepares there for another one, and moves away again:
/// the wait ends with the move.
#[test]
fn a_pointer_to_a_dropped_mapping_waits_in_nothing_that_moves_away() {
    support::start();
    let ended = child::alone(|| {
        const LEN: usize = 1 << 16;
        let region = Region::builder(LEN).strategy(Strategy::Replace).build().expect("a region");
        // Where nothing can wait under Block, faults still wait in a reset.
        let options = |policy| MapOptions::new().on_disabled(policy);
        let held =
            [OnDisabled::Block, OnDisabled::Sigbus].into_iter().find_map(|policy| region.map(options(policy)).ok());
        let _held = held.expect("a mapping");
        // Its address is the first that the kernel gives out again.
        let dropped = region.map(MapOptions::new()).expect("a mapping");
        let base = dropped.as_ptr().expose_provenance();
        while_loaded(base, || {
            drop(dropped);
            for _ in 0..2000 {
                region.reset(|_| ()).expect("nothing is in the way");
                region.disable().expect("nothing is in the way");
                region.enable().expect("it comes back");
            }
        });
    });
    ended.well();
}
