//! Copies that are not allowed, are of no bytes, or are cut short: not a byte beyond those that the error says is copied.

use crate::support;
use nix::unistd::gettid;
use revocable_mmio::{AccessError, CopyError, FaultAround, MapOptions, Monitor, Region, Strategy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

const PAGE: usize = 4096;

#[test]
fn a_copy_that_ends_one_byte_beyond_the_mapping_copies_nothing() {
    support::start();
    let region = Region::builder(4 * PAGE).build().expect("a region");
    let mapping = region.map(MapOptions::new().offset(PAGE).len(PAGE)).expect("a mapping");
    for enabled in [true, false] {
        if !enabled {
            region.disable().expect("disable");
        }
        // Around the lengths of which each is copied in its own way.
        for size in [1, 8, 9, 63, 64, 65, 128, 129, 256, 257, 1024, PAGE + 1] {
            let offset = PAGE + 1 - size;
            let refused = Err(CopyError { done: 0, error: AccessError::OutOfBounds { offset, size, len: PAGE } });
            let mut buffer = vec![0x77; size];
            assert_eq!(mapping.write_slice(offset, &buffer), refused);
            assert_eq!(mapping.fill(offset, 0x77, size), refused);
            assert_eq!(mapping.read_slice(offset, &mut buffer), refused);
            assert!(buffer.iter().all(|byte| *byte == 0x77), "{size} bytes: some were loaded");
        }
    }
    let mut all = [0xff; 4 * PAGE];
    region.owner().read_slice(0, &mut all).expect("the owner's view");
    assert!(all.iter().all(|byte| *byte == 0), "some were stored");
}

#[test]
fn a_copy_of_no_bytes_is_refused_where_none_could_be_copied_in_any_state() {
    support::start();
    let region = Region::builder(4 * PAGE).build().expect("a region");
    let mapping = region.map(MapOptions::new().offset(PAGE).len(PAGE)).expect("a mapping");
    let loads = region.map(MapOptions::new().offset(PAGE).len(PAGE).read_only()).expect("a mapping");
    for enabled in [true, false] {
        if !enabled {
            region.disable().expect("disable");
        }
        for offset in [0, 1, PAGE - 1, PAGE] {
            assert_eq!(mapping.read_slice(offset, &mut []), Ok(()));
            assert_eq!(mapping.write_slice(offset, &[]), Ok(()));
            assert_eq!(mapping.fill(offset, 1, 0), Ok(()));
            let refused = Err(CopyError { done: 0, error: AccessError::ReadOnly { offset } });
            assert_eq!(loads.read_slice(offset, &mut []), Ok(()));
            assert_eq!(loads.write_slice(offset, &[]), refused);
            assert_eq!(loads.fill(offset, 1, 0), refused);
        }
        for offset in [PAGE + 1, 2 * PAGE, isize::MAX as usize, usize::MAX] {
            let error = AccessError::OutOfBounds { offset, size: 0, len: PAGE };
            let refused = Err(CopyError { done: 0, error });
            assert_eq!(mapping.read_slice(offset, &mut []), refused);
            assert_eq!(mapping.write_slice(offset, &[]), refused);
            assert_eq!(loads.write_slice(offset, &[]), refused);
        }
    }
}

/// The first page's bytes are stored, and the region is revoked while the copy waits for the next page.
#[test]
#[cfg_attr(revocable_portable, ignore = "no copy waits for a page")]
fn what_a_copy_has_stored_when_it_is_revoked_is_in_its_count() {
    support::start();
    let mut short = 0;
    for len in [8, 32, 64, 66, 128, 200, 256, 400, 1000].repeat(4) {
        let Ok(monitor) = Monitor::manual() else { return support::skip("no userfaultfd", support::at_its_best()) };
        let builder = Region::builder(2 * PAGE).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1));
        let Ok(region) = builder.monitor(monitor.clone()).build() else {
            return support::skip("no userfaultfd with minor faults", support::at_its_best());
        };
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        let (tell, told) = mpsc::channel();
        // Not by a channel, in which it would sleep.
        let begin = &AtomicBool::new(false);
        let (offset, mapping) = (PAGE - len / 2, &mapping);
        thread::scope(|scope| {
            let copies = scope.spawn(move || {
                tell.send(gettid()).expect("the test listens");
                mapping.write(0, 1_u64).expect("enabled");
                while !begin.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                mapping.write_slice(offset, &vec![0x77; len])
            });
            let thread = told.recv().expect("a number");
            support::eventually("the first page is there", || {
                monitor.handle_ready(16).expect("it handles");
                region.owner().read::<u64>(0) == Ok(1)
            });
            begin.store(true, Ordering::Relaxed);
            support::sleeps_in_fault(thread);
            region.disable().expect("disable");
            while !copies.is_finished() {
                monitor.handle_ready(16).expect("it handles");
            }
            // What waits may get its page still, by whoever drives the monitor.
            let Err(CopyError { done, error }) = copies.join().expect("no panic") else { return };
            assert_eq!(error, AccessError::Disabled { offset: offset + done });
            let mut stored = vec![0; 2 * PAGE];
            region.owner().read_slice(0, &mut stored).expect("the owner's view");
            assert_eq!(
                stored.iter().filter(|byte| **byte == 0x77).count(),
                done,
                "{len} bytes: stored, and said to be"
            );
            short += u32::from(done > 0);
        });
    }
    assert!(short > 0, "no copy has stored some bytes and not the others");
}
