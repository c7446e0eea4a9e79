//! G2: content before `disable()` is there after `enable()`. Stores that returned before it are in it, and a store that
//! failed is not.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{every_case, every_case_with};
use crate::support::waiter::Waiter;
use crate::support::{AtTheEnd, a_moment, raw, stress_time};
use revocable_mmio::fault::{FaultFlags, NoLock, Outcome};
use revocable_mmio::{AccessError, CopyError, FaultAround, MapOptions, Monitor, OnDisabled, Region, Strategy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

#[test]
fn content_survives_any_number_of_revocations() {
    support::start();
    every_case(|case| {
        let region = case.region(4);
        let mapping = case.map(&region);
        let words = region.len() / 8;
        let step = (words / 512).max(1);
        let value = |word: usize, round: u64| (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round;
        for round in 0..10 {
            for word in (0..words).step_by(step) {
                mapping.write(8 * word, value(word, round)).expect("enabled");
            }
            region.disable().expect("it revokes");
            region.enable().expect("it comes back");
            for word in (0..words).step_by(step) {
                assert_eq!(mapping.read(8 * word), Ok(value(word, round)), "{case} round {round}");
                assert_eq!(region.owner().read(8 * word), Ok(value(word, round)), "{case} round {round}");
            }
        }
    });
}

/// Counts up in memory until a store is refused, and returns the last number that was stored.
fn count_up(store: impl Fn(u64) -> bool, last: u64) -> u64 {
    (last + 1..).take_while(|n| store(*n)).last().unwrap_or(last)
}

#[test]
fn a_store_that_returned_is_in_and_one_that_failed_is_not() {
    support::start();
    let time = stress_time(60);
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let slots = [0, 8, case.page(), case.page() + 8];
        let mut counted = [0u64; 4];
        let since = std::time::Instant::now();
        let mut rounds = 0;
        while rounds < 8 || since.elapsed() < time {
            counted = thread::scope(|scope| {
                let mapping = &mapping;
                let counters: Vec<_> = slots
                    .iter()
                    .enumerate()
                    .map(|(i, slot)| {
                        let last = counted[i];
                        scope.spawn(move || match i {
                            0 | 2 => count_up(|n| mapping.write(*slot, n).is_ok(), last),
                            _ => count_up(|n| raw::store64(base + slot, n).is_ok(), last),
                        })
                    })
                    .collect();
                thread::yield_now();
                region.disable().expect("it revokes");
                let ends: Vec<u64> = counters.into_iter().map(|c| c.join().expect("no panic")).collect();
                ends.try_into().expect("four")
            });
            for (slot, last) in slots.iter().zip(counted) {
                assert_eq!(region.owner().read::<u64>(*slot), Ok(last), "{case} slot {slot:#x}, disabled");
            }
            region.enable().expect("it comes back");
            for (slot, last) in slots.iter().zip(counted) {
                assert_eq!(mapping.read::<u64>(*slot), Ok(last), "{case} slot {slot:#x}, enabled again");
            }
            rounds += 1;
        }
    });
}

#[test]
fn a_copy_that_ends_early_says_exactly_how_far_it_came() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let len = region.len().min(64 << 10);
        let mut early = 0;
        for round in 1..=30u8 {
            region.owner().fill(0, 0, len).expect("the owner writes");
            let pattern = vec![round; len];
            let copied = thread::scope(|scope| {
                let copy = scope.spawn(|| {
                    for _ in 0..1000 {
                        if let Err(e) = mapping.write_slice(0, &pattern) {
                            return Some(e);
                        }
                        // Cleared after each whole copy, so that the end of a cut one can be seen.
                        region.owner().fill(0, 0, len).expect("the owner writes");
                    }
                    None
                });
                thread::yield_now();
                region.disable().expect("it revokes");
                copy.join().expect("no panic")
            });
            if let Some(error) = copied {
                early += usize::from(error.done > 0);
                assert_eq!(error.error, AccessError::Disabled { offset: error.done }, "{case}");
                let mut is = vec![0xee; len];
                region.owner().read_slice(0, &mut is).expect("the owner reads");
                assert!(is[..error.done].iter().all(|b| *b == round), "{case}: the bytes that were done are there");
                assert!(is[error.done..].iter().all(|b| *b == 0), "{case}: nothing after it");
            }
            region.enable().expect("it comes back");
        }
        println!("{case}: {early} copies ended in their middle");
    });
}

#[test]
fn a_store_that_waits_is_done_once_and_after_enable() {
    support::start();
    every_case_with(&[OnDisabled::Block], |case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        region.disable().expect("it revokes");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let adder = scope.spawn(|| mapping.fetch_or(0, 1u64));
            let store = scope.spawn(|| raw::store64(base + 8, 7));
            a_moment();
            assert_eq!(region.owner().read::<u64>(0), Ok(0), "{case}");
            assert_eq!(region.owner().read::<u64>(8), Ok(0), "{case}");
            region.owner().write(0, 2u64).expect("the owner writes");
            region.enable().expect("it comes back");
            assert_eq!(adder.join().expect("no panic"), Ok(2), "{case}: it found what the owner left");
            assert_eq!(store.join().expect("no panic"), Ok(()), "{case}");
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(region.owner().read::<u64>(0), Ok(3), "{case}");
        assert_eq!(region.owner().read::<u64>(8), Ok(7), "{case}");
    });
}

#[test]
fn a_copy_that_failed_stored_what_it_says_and_nothing_beyond() {
    support::start();
    let time = stress_time(60);
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(3);
        let mapping = case.map(&region);
        let over = AtomicBool::new(false);
        let page = case.page();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    region.disable().expect("it revokes");
                    region.enable().expect("it comes back");
                }
            });
            let _end = AtTheEnd(&over);
            let since = std::time::Instant::now();
            let (mut refused, mut byte) = (0, 0u8);
            while since.elapsed() < time {
                // Across a page's edge, by each way to copy.
                for (before, len) in
                    [(64, 100), (64, 128), (70, 128), (5, 8), (32, 64), (100, 300), (256, 700), (page, 2 * page)]
                {
                    let at = page - before;
                    byte = byte.wrapping_add(1);
                    let mut earlier = vec![0; len];
                    region.owner().read_slice(at, &mut earlier).expect("the owner's view stays");
                    let Err(failed) = mapping.write_slice(at, &vec![byte; len]) else { continue };
                    refused += 1;
                    let mut now = vec![0; len];
                    region.owner().read_slice(at, &mut now).expect("the owner's view stays");
                    let stored = (failed.done..len).find(|at| now[*at] != earlier[*at]);
                    assert_eq!(stored, None, "{case}: {before} before the edge, {len} bytes, {failed:?}");
                }
            }
            println!("{case}: {refused} copies were refused");
        });
    });
}

/// The first page's bytes are stored, and the region is revoked while the copy waits for the next page. A processor may make a wide
/// store in parts (emulated ones do): one across the edge of the two would store bytes that no count has. So none is made, and
/// all bytes before the edge are stored, and counted, before the first beyond it faults.
#[test]
#[cfg_attr(revocable_portable, ignore = "no copy waits for a page")]
fn what_a_copy_has_stored_when_it_is_revoked_is_in_its_count() {
    support::start();
    let page = support::page_size();
    for len in [8, 32, 64, 66, 128, 200, 256, 400, 1000] {
        let Ok(monitor) = Monitor::with_threads(1) else {
            return support::skip("no userfaultfd", support::at_its_best());
        };
        // The monitor serves no fault before the end of this.
        let (end, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        monitor.on_thread_start(move || {
            let _ = ended.lock().expect("one thread").recv();
        });
        let builder = Region::builder(2 * page).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1));
        let Ok(region) = builder.monitor(monitor).build() else {
            return support::skip("no userfaultfd with minor faults", support::at_its_best());
        };
        let mapping = region.map(MapOptions::new()).expect("a mapping");
        let there = mapping.fault(0, FaultFlags::WAIT | FaultFlags::WRITE, &mut NoLock::default());
        assert_eq!(there, Ok(Outcome::Mapped), "the first page, without the monitor");
        let offset = page - len / 2;
        let bytes = vec![0x77; len];
        let waiter = Waiter::default();
        thread::scope(|scope| {
            let _end = end;
            let copies = scope.spawn(|| {
                waiter.begins();
                mapping.write_slice(offset, &bytes)
            });
            waiter.until_it_faults();
            region.disable().expect("disable");
            let done = len / 2;
            let cut_short = CopyError { done, error: AccessError::Disabled { offset: offset + done } };
            assert_eq!(copies.join().expect("no panic"), Err(cut_short), "{len} bytes");
        });
        let mut stored = vec![0; 2 * page];
        region.owner().read_slice(0, &mut stored).expect("the owner's view");
        let at: Vec<usize> = (0..2 * page).filter(|at| stored[*at] != 0).collect();
        assert_eq!(at, (offset..page).collect::<Vec<_>>(), "{len} bytes: what is stored");
    }
}
