//! Made-up messages to a monitor open and close nothing: the memory is as the region's state says.
#![expect(unsafe_code, reason = "loads from the mapping's memory")]
// UNSAFETY: recoverable accesses inside of mappings that live.

use crate::monitor::tests::hostile::{answer, decoded, hostile, monitor};
use crate::protocol::policy::OnDisabled;
use crate::raw::{self, Faulted};
use crate::region::Region;
use crate::region::mapping::{MapOptions, Mapping};
use crate::sys::page_size;
use crate::view::Strategy as Way;
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Made-up messages open nothing, close nothing, and stop no thread.
    #[test]
    fn made_up_messages_change_nothing(
        rounds in prop::collection::vec((any::<bool>(), prop::collection::vec(hostile(), 0..40)), 1..6),
        way in prop_oneof![Just(Way::Zap), Just(Way::Detach), Just(Way::Replace)],
        policy in prop_oneof![Just(OnDisabled::Sigbus), Just(OnDisabled::AllOnes), Just(OnDisabled::Block)],
    ) {
        let Some(monitor) = monitor(1) else { return Ok(()) };
        let Ok(region) = Region::builder(4 * page_size()).strategy(way).monitor(monitor.clone()).build() else {
            return Ok(());
        };
        region.owner().write(8, 0x1122_3344_u32).expect("the owner writes");
        let options = MapOptions::new().on_disabled(policy);
        let mappings = [(); 2].map(|()| region.map(options.clone()).expect("it maps"));
        let dropped = region.map(options).expect("it maps");
        let ranges: Vec<_> = mappings.iter().chain([&dropped]).map(|m| m.served.view.range).collect();
        drop(dropped);
        for (disable, messages) in &rounds {
            let changed = if *disable { region.disable() } else { region.enable() };
            changed.expect("no guard and no pin");
            prop_assert_eq!(region.is_enabled(), !disable);
            for fault in messages.iter().filter_map(|message| decoded(message, &ranges)) {
                answer(&monitor, fault);
            }
            for mapping in &mappings {
                reached(mapping, region.is_enabled())?;
            }
        }
        region.enable().expect("it comes back");
        for mapping in &mappings {
            reached(mapping, true)?;
        }
        prop_assert_eq!(region.stats().degraded, 0);
        prop_assert_eq!(monitor.stats().panics, 0);
    }
}

/// The memory itself is as the region's state and the mapping's policy require.
fn reached(mapping: &Mapping, enabled: bool) -> Result<(), TestCaseError> {
    let at = mapping.as_ptr().wrapping_add(8).cast::<u32>();
    // SAFETY: aligned, inside a mapping that lives; an access that may be refused is made only where it is recovered from.
    let load = || unsafe { raw::load(at) };
    match (enabled, mapping.on_disabled()) {
        (true, _) => prop_assert_eq!(load(), Ok(0x1122_3344)),
        (false, OnDisabled::AllOnes) => prop_assert_eq!(load(), Ok(u32::MAX)),
        (false, OnDisabled::Sigbus) if raw::RECOVERABLE => prop_assert_eq!(load(), Err(Faulted)),
        // A load would wait, or kill.
        (false, OnDisabled::Sigbus | OnDisabled::Block) => prop_assert!(!is_present(at.addr())),
    }
    Ok(())
}

/// True if there is a page at this address: `/proc/self/pagemap` has 8 bytes per page; bit 63 is "present"
/// (proc_pid_pagemap(5)).
fn is_present(address: usize) -> bool {
    let pagemap = File::open("/proc/self/pagemap").expect("procfs");
    let mut entry = [0; 8];
    let at = address / page_size() * entry.len();
    pagemap.read_exact_at(&mut entry, at as u64).expect("an entry");
    u64::from_ne_bytes(entry) >> 63 == 1
}
