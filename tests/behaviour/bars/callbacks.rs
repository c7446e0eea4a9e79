//! Users' code that calls back from inside of a change of the BAR: it is refused, and waits for nobody that waits for it.
#![expect(unsafe_code, reason = "an implementor of SetMemslot")]

use super::{LEN, SIZE, byte, memory};
use crate::support::memory_map::Map;
use crate::support::waiter::Waiter;
use crate::support::{self, forking};
use revocable_mmio::bar::{Area, Areas, Bar};
use revocable_mmio::memslot::{Exits, Memslots, Retention, SetMemslot, SlotMemory, WhenDisabled};
use revocable_mmio::pci::{self, PciDevice, PciError, Space};
use revocable_mmio::{AccessError, CancelToken, InvalidateNotifier, Monitor, NotifyError, Region};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

const HERE: u64 = 0xe000_0000;

/// Runs `work` in its own thread, which is left behind if it does not end.
fn ends<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    told.recv_timeout(Duration::from_secs(20)).expect("it ends, and does not panic")
}

type Callback = dyn Fn() + Send + Sync;

/// A virtual machine that calls back, once it is told what.
#[derive(Default)]
struct Calls {
    install: OnceLock<Box<Callback>>,
    remove: OnceLock<Box<Callback>>,
    log: Mutex<Vec<SlotMemory>>,
    refuses_log: AtomicBool,
    /// Its slot is not taken out.
    keeps: Mutex<Option<u32>>,
}

impl SetMemslot for Calls {
    // SAFETY: nothing is done with the address.
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        if memory.log_dirty && self.refuses_log.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.log.lock().expect("no panic").push(*memory);
        if let Some(callback) = self.install.get() {
            callback();
        }
        Ok(())
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        if *self.keeps.lock().expect("no panic") == Some(memory.slot) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.log.lock().expect("no panic").retain(|there| there.slot != memory.slot);
        if let Some(callback) = self.remove.get() {
            callback();
        }
        Ok(())
    }

    fn changes_in_place(&self) -> bool {
        false
    }
}

#[test]
fn a_virtual_machine_that_writes_the_devices_registers_does_not_wait_for_one_that_waits_for_it() {
    support::start();
    ends(|| {
        let vm = Arc::new(Calls::default());
        let window = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
        let gpu = PciDevice::builder(1, 2).command(2).bar(2, pci::Bar::areas(window)).build().expect("a device");
        let areas = gpu.areas(Space::Bar(2)).expect("areas").clone();
        areas.move_to(Some(HERE)).expect("there is no slot");
        let (heard, hears) = mpsc::channel();
        let (device, heard) = (gpu.clone(), Mutex::new(heard));
        let callback = move || {
            // It has the device's turn, and waits for the end of the insertion.
            let waiter = Waiter::default();
            let (other, begins) = (device.clone(), waiter.clone());
            thread::spawn(move || {
                begins.begins();
                other.write(Space::Config, 4, &[0, 0][..])
            });
            waiter.until_it_waits();
            let written = device.write(Space::Config, 4, &[0, 0][..]);
            let _ = heard.lock().expect("no panic").send(matches!(written, Err(PciError::Reentrant)));
        };
        let _ = vm.install.set(Box::new(callback));
        let _area = areas.insert(0, memory()).expect("it is free");
        assert!(hears.recv().expect("it was called"));
    });
}

#[test]
fn a_thread_that_helps_an_event_loop_counts_as_the_one_that_it_helps() {
    support::start();
    let Ok(monitor) = Monitor::manual() else { return support::skip("no userfaultfd", support::at_its_best()) };
    ends(move || {
        let vm = Arc::new(Calls::default());
        let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
        let bar = bar.build().expect("a BAR");
        bar.areas().move_to(Some(HERE)).expect("there is no slot");
        let (areas, refused) = (bar.areas().clone(), Arc::new(AtomicBool::new(false)));
        let hears = Arc::clone(&refused);
        let callback = move || {
            let calls = [areas.insert(0x8000, Region::builder(0x1000)).map(drop), areas.move_to(Some(2 * HERE))];
            hears.store(calls.iter().all(Result::is_err), Ordering::SeqCst);
        };
        let _ = vm.install.set(Box::new(callback));
        let area = bar.areas().insert(0, memory().monitor(monitor));
        if let Err(e) = area {
            return println!("a monitor for user-mode faults only: {e}");
        }
        assert!(refused.load(Ordering::SeqCst), "it is in the middle of the insertion");
    });
}

#[test]
fn a_slot_whose_log_could_not_be_switched_on_is_not_left_there_without_it() {
    support::start();
    let vm = Arc::new(Calls::default());
    let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
    let bar = bar.trap(0x1000..0x1004, Arc::new(super::Registers::default())).build().expect("a BAR");
    bar.areas().log_dirty(true).expect("there is no slot");
    bar.areas().move_to(Some(HERE)).expect("nothing is there");
    let logs = || vm.log.lock().expect("no panic").iter().map(|slot| slot.log_dirty).collect::<Vec<_>>();

    // Of its two slots the second cannot be taken out.
    let mut area = bar.areas().insert(0, memory()).expect("it is free");
    *vm.keeps.lock().expect("no panic") = Some(1);
    assert!(area.remove().is_err());
    assert_eq!(logs(), [true]);
    *vm.keeps.lock().expect("no panic") = None;
    vm.refuses_log.store(true, Ordering::SeqCst);
    assert!(bar.areas().retry_memslots().is_err());
    assert_eq!(logs(), [true], "the first is not there, or is logged");
    vm.refuses_log.store(false, Ordering::SeqCst);
    bar.areas().retry_memslots().expect("the virtual machine agrees");
    assert_eq!(logs(), [true, true]);
}

/// Runs a callback when memory goes and when it comes.
struct Told(Box<Callback>);

impl InvalidateNotifier for Told {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        (self.0)();
        Ok(())
    }
    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        (self.0)();
        Ok(())
    }
}

#[test]
fn a_notifier_and_a_reset_that_move_the_bar_are_heard_or_refused() {
    support::start();
    ends(|| {
        let vm = Arc::new(Calls::default());
        let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
        let bar = bar.area(0, memory()).build().expect("a BAR");
        let told = bar.areas().insert(0x8000, memory()).expect("it is free");
        let areas: Areas = bar.areas().clone();
        let moves = move || {
            for place in [Some(HERE), Some(2 * HERE), Some(2 * HERE + 0x8000), None, Some(HERE)] {
                let _ = areas.move_to(place);
            }
        };
        let mover = moves.clone();
        let subscription = told.region().subscribe(0..LEN, Arc::new(Told(Box::new(mover))));
        bar.disable().expect("nothing is in the way");
        bar.enable().expect("it comes back");
        bar.reset(|_| moves()).expect("nothing is in the way");
        drop(subscription);
        bar.areas().move_to(Some(HERE)).expect("nothing is there");
        assert_eq!(vm.log.lock().expect("no panic").len(), 2);
        assert_eq!(byte(bar.areas(), 0), Ok(0));
        drop::<(Area, Bar)>((told, bar));
        assert!(vm.log.lock().expect("no panic").is_empty());
    });
}

#[test]
fn a_reset_that_panics_gives_the_turn_back() {
    support::start();
    ends(|| {
        let bar = Bar::builder(SIZE).area(0, memory()).build().expect("a BAR");
        let dropped = bar.areas().insert(0x8000, memory()).expect("it is free");
        let reset = std::panic::AssertUnwindSafe(|| {
            bar.reset(|_| {
                drop(dropped);
                panic!("by the test");
            })
        });
        assert!(std::panic::catch_unwind(reset).is_err());
        assert_eq!(bar.areas().ranges().len(), 1, "the mark was carried out");
        let _area = bar.areas().try_insert(0x8000, memory()).expect("the turn is free");
        assert_eq!(byte(bar.areas(), 0), Ok(0));
    });
}

#[test]
fn a_bar_that_is_dropped_by_the_virtual_machine_goes_at_the_end_of_the_change() {
    support::start();
    for moved in [false, true] {
        ends(move || {
            let vm = Arc::new(Calls::default());
            let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
            let bar = bar.area(0, memory()).build().expect("a BAR");
            let areas = bar.areas().clone();
            if !moved {
                areas.move_to(Some(HERE)).expect("nothing is there");
            }
            let bar = Mutex::new(Some(bar));
            let _ = vm.install.set(Box::new(move || drop(bar.lock().expect("no panic").take())));
            let area =
                if moved { areas.move_to(Some(HERE)).map(|()| None) } else { areas.insert(0x8000, memory()).map(Some) };
            assert!(areas.ranges().is_empty() && vm.log.lock().expect("no panic").is_empty());
            if let Ok(Some(area)) = &area {
                let since = std::time::Instant::now();
                while area.region().owner().read::<u8>(0).is_ok() && area.region().is_enabled() {
                    assert!(since.elapsed() < Duration::from_secs(10), "its memory stays");
                }
            }
        });
    }
}

/// A vCPU's exit takes a slot out, outside of any change of the BAR.
#[test]
fn an_area_that_is_dropped_inside_of_its_own_slots_removal_keeps_the_number_until_it_is_out() {
    /// Drops the area before it takes the slot out, and has another thread insert one.
    struct Removes(Map, Mutex<Option<Area>>, OnceLock<Areas>, Mutex<Option<Area>>);

    impl SetMemslot for Removes {
        // SAFETY: nothing is done with the address.
        unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
            // SAFETY: as the caller's.
            unsafe { self.0.install(memory) }
        }
        fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
            let area = self.1.lock().expect("no panic").take();
            if let (Some(area), Some(areas)) = (area, self.2.get()) {
                drop(area);
                *self.3.lock().expect("no panic") = areas.insert(0x8000, super::memory()).ok();
            }
            self.0.remove(memory)
        }
    }

    support::start();
    ends(|| {
        let vm = Arc::new(Removes(Map::default(), Mutex::default(), OnceLock::new(), Mutex::default()));
        let slots = Memslots::new(Arc::clone(&vm));
        let bar = Bar::builder(SIZE).memslots(&slots, 0..8, Retention::AllOnes).build().expect("a BAR");
        bar.areas().move_to(Some(HERE)).expect("there is no slot");
        let area = bar.areas().insert(0, memory()).expect("it is free");
        *vm.1.lock().expect("no panic") = Some(area);
        let _ = vm.2.set(bar.areas().clone());
        bar.disable().expect("nothing is in the way");
        let mut exits = Exits::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
        // An instruction without an address.
        let _ = exits.efault();
        assert!(vm.1.lock().expect("no panic").is_none(), "the slot is taken out");
        let inserted = vm.3.lock().expect("no panic").take().expect("it is not in the middle of a change of the BAR");
        assert_eq!(vm.0.places(), [HERE + 0x8000]);
        drop(inserted);
        assert_eq!(vm.0.places(), [] as [u64; 0]);
    });
}

#[test]
fn a_child_that_is_forked_while_another_thread_changes_the_areas_does_not_wait_for_it() {
    support::start();
    let device = PciDevice::builder(1, 2).command(2).bar(2, pci::Bar::areas(Bar::builder(SIZE))).build();
    let device = device.expect("a device");
    let areas = device.areas(Space::Bar(2)).expect("areas");
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = areas.ranges();
                }
            });
        }
        let forked = (0..100).all(|_| {
            forking::is_fine(|| {
                let by_device = device.read(Space::Bar(2), 0, &mut [0][..]);
                matches!(by_device, Err(PciError::Forked))
                    && matches!(byte(areas, 0), Err(AccessError::Forked { .. }))
                    && areas.ranges().is_empty()
            })
        });
        stop.store(true, Ordering::Relaxed);
        assert!(forked);
    });
}

/// Of two areas the second is being removed, and the first, which was looked at already, is dropped meanwhile.
#[test]
fn an_area_that_is_dropped_while_marks_are_carried_out_goes_too() {
    support::start();
    let vm = Arc::new(Calls::default());
    let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
    let bar = bar.build().expect("a BAR");
    bar.areas().move_to(Some(HERE)).expect("there is no slot");
    let first = Mutex::new(Some(bar.areas().insert(0, memory()).expect("it is free")));
    let second = bar.areas().insert(0x8000, memory()).expect("it is free");
    let _ = vm.remove.set(Box::new(move || {
        let first = first.lock().expect("no panic").take();
        drop(first);
    }));
    drop(second);
    assert!(bar.areas().ranges().is_empty());
    assert!(vm.log.lock().expect("no panic").is_empty());
}
