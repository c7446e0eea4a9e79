//! One state for all areas, and areas that come and go in any of its states.

use super::{LEN, Registers, SIZE, byte, memory, offset};
use crate::support::{self, forking};
use revocable_mmio::bar::{Area, Areas, Bar, BarError};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{
    AccessError, Caller, CancelToken, InvalidateNotifier, MapOptions, NotifyError, OnDisabled, RevokeError, Strategy,
};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn together_or_not_at_all_with_any_strategy() {
    support::start();
    for strategy in [None, Some(Strategy::Replace), Some(Strategy::Detach)] {
        let described = || strategy.map_or_else(memory, |strategy| memory().strategy(strategy));
        let bar = Bar::builder(SIZE).area(0, described()).build().expect("a BAR");
        let blob = bar.areas().insert(0x8000, described().name("blob")).expect("it is free");
        let mapping = blob.region().map(MapOptions::new()).expect("it maps");
        let pin = blob.region().pin(0..LEN, FaultFlags::WAIT).expect("it is enabled");
        let busy = bar.try_disable().expect_err("it is pinned");
        assert!(busy.is_busy() && busy.member == "blob", "{busy}");
        assert_eq!((byte(bar.areas(), 0), bar.is_enabled()), (Ok(0), true));
        drop(pin);
        assert!(bar.try_disable().expect("nothing is in the way"));
        assert!(!bar.disable().expect("it is disabled already"));
        assert!(mapping.read::<u32>(0).is_err());
        assert!(bar.enable().expect("it comes back"));
        assert_eq!(mapping.read::<u32>(0), Ok(0));
    }
}

#[test]
fn an_area_gets_the_state_that_the_bar_has() {
    support::start();
    let bar = Bar::builder(SIZE).disabled().build().expect("a BAR");
    let while_disabled = bar.areas().insert(0, memory()).expect("in any state");
    assert!(!while_disabled.region().is_enabled());
    bar.enable().expect("it comes back");
    let while_enabled = bar.areas().insert(0x8000, memory().disabled()).expect("in any state");
    assert!(while_disabled.region().is_enabled() && while_enabled.region().is_enabled());
    let mapping = while_enabled.region().map(MapOptions::new()).expect("it maps");
    drop(while_enabled);
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Gone { offset: 0 }));
}

#[test]
fn while_it_is_busy_areas_wait_or_say_so_and_accesses_too() {
    support::start();
    let bar = Bar::builder(SIZE).trap(0x100..0x200, Arc::new(Registers::default())).area(0, memory()).build();
    let bar = bar.expect("a BAR");
    let (areas, token) = (bar.areas(), CancelToken::new());
    let reset = AtomicBool::new(true);
    let area = thread::scope(|threads| {
        let waiting = bar.reset(|memories| {
            assert_eq!(memories.len(), 1);
            assert!(matches!(areas.insert(0x8000, memory()), Err(BarError::State(RevokeError::Reentrant))));
            for at in [0, 0x100, 0x8000] {
                let nowait = areas.read_with(at, &mut [0], FaultFlags::NOWAIT);
                assert_eq!(nowait, Err(AccessError::WouldBlock { offset: offset(at) }), "{at:#x}");
                assert_eq!(byte(areas, at), Err(AccessError::Reentrant { offset: offset(at) }), "{at:#x}");
            }
            let insert = threads.spawn(|| {
                let area = areas.insert(0x8000, memory()).expect("once the reset is over");
                assert!(!reset.load(Ordering::SeqCst), "it waits for the end");
                area
            });
            let load = threads.spawn(|| byte(areas, 0x100).map(|_| assert!(!reset.load(Ordering::SeqCst))));
            let killed = threads.spawn(|| {
                let caller = Caller::new(FaultFlags::WAIT).cancel(&token);
                areas.read_with(0x100, &mut [0], caller)
            });
            let others = threads.spawn(|| {
                assert!(areas.try_insert(0x8000, memory()).expect_err("busy").is_busy());
                let late = areas.insert_timeout(0x8000, memory(), Duration::from_millis(5)).expect_err("busy");
                assert!(matches!(late, BarError::State(RevokeError::TimedOut { .. })), "{late}");
                assert!(bar.try_disable().expect_err("busy").is_busy());
            });
            others.join().expect("no panic");
            token.cancel();
            assert_eq!(killed.join().expect("no panic"), Err(AccessError::Cancelled { offset: 0x100 }));
            thread::sleep(Duration::from_millis(20));
            reset.store(false, Ordering::SeqCst);
            (insert, load)
        });
        let (insert, load) = waiting.expect("nothing is in the way");
        load.join().expect("no panic").expect("the trap answers after the reset");
        insert.join().expect("no panic")
    });
    assert!(area.region().is_enabled());
}

#[test]
fn a_caller_that_waits_at_disabled_memory_waits_at_a_trap_too() {
    support::start();
    let bar = Bar::builder(SIZE).rest(Arc::new(Registers::default())).disabled().build().expect("a BAR");
    thread::scope(|threads| {
        let waits = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
        let mut value = [0];
        let areas = bar.areas();
        let reader = threads.spawn(move || areas.read_with(0x42, &mut value, waits).map(|()| value));
        thread::sleep(Duration::from_millis(20));
        assert!(!reader.is_finished());
        bar.enable().expect("it comes back");
        assert_eq!(reader.join().expect("no panic"), Ok([0x42]));
    });
}

/// Drops an area inside of a change.
struct DropsInside(Mutex<Option<Area>>);

impl InvalidateNotifier for DropsInside {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        let area = self.0.lock().expect("no panic").take();
        drop(area);
        Ok(())
    }
    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

#[test]
fn an_area_that_is_dropped_inside_of_a_change_goes_at_its_end() {
    support::start();
    let bar = Bar::builder(SIZE).build().expect("a BAR");
    let told = bar.areas().insert(0, memory()).expect("it is free");
    let dropped = bar.areas().insert(0x8000, memory()).expect("it is free");
    let _subscription = told.region().subscribe(0..LEN, Arc::new(DropsInside(Mutex::new(Some(dropped)))));
    bar.disable().expect("the notifier does not hold it up");
    assert_eq!(bar.areas().ranges(), std::iter::once(0..LEN as u64).collect::<Vec<_>>());
    bar.enable().expect("it comes back");

    // And by another thread meanwhile.
    let dropped = bar.areas().insert(0x8000, memory()).expect("it is free again");
    bar.reset(|_| thread::scope(|threads| threads.spawn(|| drop(dropped)).join().expect("it does not wait")))
        .expect("nothing is in the way");
    assert_eq!(bar.areas().ranges().len(), 1);
}

#[test]
fn the_holder_of_a_guard_is_not_waited_for_by_itself() {
    support::start();
    let bar = Bar::builder(SIZE).area(0, memory()).build().expect("a BAR");
    let mut area = bar.areas().insert(0x8000, memory()).expect("it is free");
    let mapping = area.region().map(MapOptions::new()).expect("it maps");
    let guard = mapping.try_access().expect("it is enabled");
    let (begun, began) = mpsc::channel();
    thread::scope(|threads| {
        let other = threads.spawn(|| {
            begun.send(()).expect("it is heard");
            bar.disable_timeout(Duration::from_secs(10))
        });
        began.recv().expect("it begins");
        // Until the other thread has the turn, and waits for the guard.
        let since = Instant::now();
        let refused = loop {
            match bar.areas().try_insert(0x1_0000, memory()) {
                Ok(inserted) => drop(inserted),
                Err(e) => break e,
            }
            assert!(since.elapsed() < crate::support::patience(Duration::from_secs(10)), "it does not begin");
        };
        assert!(matches!(refused, BarError::State(RevokeError::WouldDeadlock { .. })), "{refused}");
        let removed = area.remove().expect_err("it would wait for this thread");
        assert!(matches!(removed, BarError::State(RevokeError::WouldDeadlock { .. })), "{removed}");
        drop(guard);
        assert!(other.join().expect("no panic").expect("the guard is gone"));
    });
    area.remove().expect("nothing is in the way");
}

#[test]
fn a_bar_that_is_dropped_refuses_for_good() {
    support::start();
    let bar = Bar::builder(SIZE).area(0, memory()).build().expect("a BAR");
    let area = bar.areas().insert(0x8000, memory()).expect("it is free");
    let mapping = area.region().map(MapOptions::new()).expect("it maps");
    let areas = bar.areas().clone();
    drop(bar);
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Gone { offset: 0 }));
    assert!(matches!(areas.insert(0, memory()), Err(BarError::State(RevokeError::Gone))));
    assert_eq!(byte(&areas, 0), Err(AccessError::Gone { offset: 0 }));
    assert!(areas.ranges().is_empty());
    drop(area);
}

#[test]
fn a_forked_child_has_none_of_it() {
    support::start();
    let bar = Bar::builder(SIZE).area(0, memory()).build().expect("a BAR");
    let area = bar.areas().insert(0x8000, memory()).expect("it is free");
    assert!(forking::is_fine(move || {
        let forked = matches!(bar.areas().insert(0x1_0000, memory()), Err(BarError::State(RevokeError::Forked)))
            && matches!(byte(bar.areas(), 0), Err(AccessError::Forked { .. }))
            && bar.disable().is_err();
        drop(area);
        drop(bar);
        forked
    }));
}

/// Threads insert, use and drop areas while others change the state. What was dropped while another thread had the turn is
/// removed by that thread, so at the end nothing is left.
#[test]
fn marks_are_carried_out_by_a_holder_of_the_turn() {
    support::start();
    let bar = Bar::builder(SIZE).build().expect("a BAR");
    let (stop, inserted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let work = |areas: &Areas, at: u64| {
        while !stop.load(Ordering::Relaxed) {
            let Ok(area) = areas.try_insert(at, memory()) else { continue };
            inserted.fetch_add(1, Ordering::Relaxed);
            let enabled = area.region().is_enabled();
            match areas.write(at, &[1]) {
                Ok(()) | Err(AccessError::Disabled { .. }) => {}
                Err(e) => panic!("{e}, enabled: {enabled}"),
            }
            drop(area);
        }
    };
    thread::scope(|threads| {
        for i in 0..3 {
            let areas = bar.areas();
            threads.spawn(move || work(areas, i * 0x8000));
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(2) || inserted.load(Ordering::Relaxed) < 50 {
            bar.disable().expect("nothing is in the way");
            bar.enable().expect("it comes back");
            assert!(since.elapsed() < crate::support::patience(Duration::from_secs(60)), "no area is ever inserted");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(bar.areas().ranges(), [] as [Range<u64>; 0], "after {inserted:?}");
}

/// An area that is removed while it is pinned is in no list any more, and its memory is there until the pin goes.
#[test]
fn what_is_left_of_a_removed_area_is_waited_for() {
    support::start();
    let bar = Bar::builder(SIZE).area(0, memory()).build().expect("a BAR");
    let area = bar.areas().insert(0x8000, memory().name("blob")).expect("it is free");
    let mapping = area.region().map(MapOptions::new()).expect("it maps");
    let pin = area.region().pin(0..LEN, FaultFlags::WAIT).expect("it is enabled");
    drop(area);
    assert_eq!((bar.areas().ranges().len(), mapping.read::<u32>(0)), (1, Ok(0)), "the pin keeps what it promises");
    let busy = bar.try_disable().expect_err("it is pinned");
    assert!(busy.is_busy() && busy.member == "blob", "{busy}");
    assert!(bar.disable_timeout(Duration::from_millis(5)).expect_err("it is pinned").is_busy());
    assert!(bar.try_reset(|_| ()).expect_err("it is pinned").is_busy());
    assert_eq!((byte(bar.areas(), 0), byte(bar.areas(), 0x8000)), (Ok(0), Ok(0xff)), "nothing is revoked");
    thread::scope(|threads| {
        let disabled = threads.spawn(|| bar.disable());
        thread::sleep(Duration::from_millis(20));
        assert!(!disabled.is_finished());
        drop(pin);
        assert!(disabled.join().expect("no panic").expect("nothing is in the way"));
    });
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Gone { offset: 0 }));
    bar.enable().expect("it comes back");
    bar.reset(|_| ()).expect("nothing is in the way");
}
