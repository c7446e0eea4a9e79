//! A reset makes faults wait, whatever the strategy, and waiting costs nothing.

use crate::support::{self, raw};
use revocable_mmio::{MapError, MapOptions, Monitor, Region, Strategy, Support};
use std::thread;
use std::time::Duration;

#[test]
fn a_load_that_waits_for_the_end_of_a_reset_keeps_no_monitor_busy() {
    support::start();
    require!(Support::current().userfaultfd(), "nothing waits without a userfaultfd");
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    // A mapping of another region keeps the monitor running.
    let other = Region::builder(1 << 20).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("a region");
    let _kept = other.map(MapOptions::new()).expect("it maps");
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let region = Region::builder(1 << 20).strategy(strategy).monitor(monitor.clone()).build().expect("a region");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.write::<u64>(0, 7).expect("enabled");
        let address = mapping.as_ptr().expose_provenance();
        let before = monitor.stats().faults;
        let load = region.reset(|_| {
            let load = thread::spawn(move || raw::load64(address));
            thread::sleep(Duration::from_millis(100));
            assert!(!load.is_finished(), "{strategy}: it read something during a reset");
            load
        });
        assert_eq!(load.expect("nothing is in the way").join().expect("it ends"), Ok(7), "{strategy}");
        let faults = monitor.stats().faults - before;
        assert!(faults < 20, "{strategy}: the monitor saw {faults} faults of one waiting load");
    }
}

#[test]
fn mapping_a_region_from_its_own_reset_callback_is_an_error() {
    support::start();
    let region = Region::builder(1 << 20).build().expect("a region");
    let mapped = region.reset(|_| region.map(MapOptions::new())).expect("nothing is in the way");
    assert!(matches!(mapped, Err(MapError::Reentrant)), "{mapped:?}");
    assert_eq!(region.stats().mappings, 0);
    region.map(MapOptions::new()).expect("it maps").write::<u64>(0, 7).expect("enabled");
}
