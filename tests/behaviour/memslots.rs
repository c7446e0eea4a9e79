//! Memslots and exits of a hypervisor that is not KVM: no changes in place, and exits that the tests make up.
#![expect(unsafe_code, reason = "an implementor of SetMemslot")]

mod refused;

use crate::support::memory_map::Map;
use crate::support::{self, forking};
use revocable_mmio::memslot::{
    Answer, ExitError, Exits, Memslot, MemslotError, Memslots, Retention, SetMemslot, SlotMemory, WhenDisabled,
};
use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{CancelToken, MapOptions, Mapping, OnDisabled, Region};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LEN: usize = 0x4000;
const HERE: u64 = 0x10_0000;
const THERE: u64 = 0x20_0000;
const NOWHERE: [u64; 0] = [];

fn bar() -> Region {
    Region::builder(LEN).build().expect("a region")
}

fn mapped(bar: &Region, policy: OnDisabled) -> Arc<Mapping> {
    Arc::new(bar.map(MapOptions::new().on_disabled(policy)).expect("it maps"))
}

fn exits(slots: &Memslots, when: WhenDisabled) -> Exits {
    Exits::new(slots.clone(), when, CancelToken::new())
}

#[test]
fn a_move_that_fails_leaves_the_slot_where_it_was_or_says_that_it_is_out() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let slot = slots.add(1, HERE, mapped(&bar, OnDisabled::AllOnes), Retention::AllOnes).expect("it is installed");
    slot.move_to(THERE).expect("it moves");
    assert_eq!((map.places(), slot.range().start), (vec![THERE], THERE));
    map.refuses.store(1, Ordering::SeqCst);
    assert!(matches!(slot.move_to(HERE), Err(MemslotError::Vm { gpa: HERE, .. })));
    assert_eq!((map.places(), slot.range().start, slot.is_installed()), (vec![THERE], THERE, true), "it is back");
    map.refuses_removals.store(1, Ordering::SeqCst);
    assert!(slot.move_to(HERE).is_err());
    assert_eq!((map.places(), slot.is_installed()), (vec![THERE], true), "it has not been touched");
    map.refuses.store(2, Ordering::SeqCst);
    assert!(slot.move_to(HERE).is_err());
    assert_eq!((map.places(), slot.is_installed()), (vec![], false), "it is out, and says so");
    // The guest's accesses exit, and are made.
    let mut data = [1; 4];
    assert_eq!(exits(&slots, WhenDisabled::Fail).mmio_read(slot.range().start, &mut data), Ok(Answer::Reenter));
    assert_eq!(data, [0; 4]);
    slot.retry().expect("nothing refuses any more");
    assert!(slot.is_installed());
    bar.disable().expect("nothing is in the way");
    assert!(slot.is_installed(), "it stays");
}

#[test]
fn a_slot_that_cannot_be_removed_stays_and_follows_its_region() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let mut slot = slots.add(1, HERE, mapped(&bar, OnDisabled::Sigbus), Retention::Remove).expect("it is installed");
    map.refuses_removals.store(1, Ordering::SeqCst);
    assert!(matches!(slot.remove(), Err(MemslotError::Vm { slot: 1, .. })));
    bar.disable().expect("nothing is in the way");
    assert_eq!(map.places(), NOWHERE, "it follows");
    bar.enable().expect("it comes back");
    assert_eq!(map.places(), [HERE]);
    slot.remove().expect("nothing refuses any more");
    assert_eq!(map.places(), NOWHERE);
    bar.disable().expect("nothing is in the way");
    bar.enable().expect("it comes back");
    assert_eq!(map.places(), NOWHERE, "gone for good");
    let _again: Memslot = slots.add(1, HERE, mapped(&bar, OnDisabled::Sigbus), Retention::Keep).expect("it is free");
}

#[test]
fn a_reset_takes_no_slot_out() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let slot = slots.add(1, HERE, mapped(&bar, OnDisabled::Sigbus), Retention::Remove).expect("it is installed");
    bar.reset(|_| assert_eq!(map.places(), [HERE])).expect("nothing is in the way");
    assert_eq!(slot.stats().removals, 0);
    bar.disable().expect("nothing is in the way");
    assert_eq!(map.places(), NOWHERE);
    bar.reset(|_| ()).expect("a reset of a disabled region");
    assert_eq!(map.places(), NOWHERE);
}

#[test]
fn a_slot_follows_the_memory_bit_and_the_resets_of_its_device() {
    support::start();
    let map = Arc::new(Map::default());
    let slots = Memslots::new(Arc::clone(&map));
    let seen = Arc::clone(&map);
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(LEN as u64));
    let in_reset = move |_: &PciDevice, _| {
        assert_eq!(seen.places(), [HERE], "a reset takes no slot out");
        Ok(())
    };
    let device = device.on_reset(in_reset).build().expect("a device");
    let mapping = Arc::new(device.map(Space::Bar(0), MapOptions::new()).expect("it maps"));
    let slot = slots.add(1, HERE, mapping, Retention::Remove).expect("it is installed");
    device.reset().expect("nothing is in the way");
    assert_eq!((slot.stats().removals, map.places()), (0, vec![HERE]));
    // A change that is told as one whose outcome is open.
    device.write(Space::Config, 4, &[0, 0][..]).expect("COMMAND");
    assert_eq!(map.places(), NOWHERE, "the memory bit is off");
    device.write(Space::Config, 4, &[2, 0][..]).expect("COMMAND");
    assert_eq!(map.places(), [HERE], "and on again");
    assert_eq!(slot.stats().removals, 1);
}

#[test]
fn a_forked_child_leaves_its_parents_memory_map_alone() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let slot = slots.add(1, HERE, mapped(&bar, OnDisabled::AllOnes), Retention::Remove).expect("it is installed");
    let mut inherited = Some(slot);
    let leaves_it = || {
        let mut slot = inherited.take().expect("inherited");
        let refused = slot.remove().is_err() && slot.move_to(THERE).is_err() && slot.log_dirty(true).is_err();
        drop(slot);
        refused && map.places() == [HERE]
    };
    assert!(forking::is_fine(leaves_it), "the child has changed it");
    let slot = inherited.expect("the child had a copy");
    slot.move_to(THERE).expect("its own process may");
}

#[test]
fn an_exit_without_an_address_waits_for_any_suspect_and_blames_none_of_several() {
    support::start();
    let (map, first, second) = (Arc::new(Map::default()), bar(), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let _first = slots.add(1, HERE, mapped(&first, OnDisabled::Sigbus), Retention::Keep).expect("it is installed");
    let _second = slots.add(2, THERE, mapped(&second, OnDisabled::Sigbus), Retention::Keep).expect("it is installed");
    let ones = slots.add(3, 2 * THERE, mapped(&bar(), OnDisabled::AllOnes), Retention::default());
    let _gone = ones.expect("it is installed; its region is gone, and has ones");
    first.disable().expect("nothing is in the way");
    let failed = exits(&slots, WhenDisabled::Fail).efault();
    assert_eq!(failed, Err(ExitError::Disabled { slot: Some(1), gpa: None }), "the only one");
    second.disable().expect("nothing is in the way");
    let failed = exits(&slots, WhenDisabled::Fail).efault();
    assert_eq!(failed, Err(ExitError::Disabled { slot: None, gpa: None }), "either");
    let known = exits(&slots, WhenDisabled::Fail).memory_fault(THERE + 8);
    assert_eq!(known, Err(ExitError::Disabled { slot: Some(2), gpa: Some(THERE + 8) }));

    // The guest's access is to the second one; the first stays disabled.
    let mut waits = exits(&slots, WhenDisabled::Wait);
    thread::scope(|scope| {
        let waiting = scope.spawn(move || waits.efault());
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished(), "it waits");
        second.enable().expect("it comes back");
        assert_eq!(waiting.join().expect("no panic"), Ok(Answer::Reenter), "it does not wait for the first as well");
    });
}

#[test]
fn an_instruction_that_cannot_be_emulated_is_a_suspect() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let mut vcpu = exits(&slots, WhenDisabled::UnsupportedRequest);
    assert_eq!(vcpu.internal_error(), Ok(Answer::NotOurs), "without slots it belongs to no slot");
    let slot = slots.add(1, HERE, mapped(&bar, OnDisabled::AllOnes), Retention::Remove).expect("it is installed");
    let tries = (0..100).take_while(|_| vcpu.internal_error() == Ok(Answer::Reenter)).count();
    assert!((1..100).contains(&tries), "enabled: not ours, after {tries} tries");
    bar.disable().expect("nothing is in the way");
    assert_eq!(map.places(), NOWHERE);
    assert_eq!(vcpu.internal_error(), Ok(Answer::Reenter));
    assert_eq!(map.places(), [HERE], "back, with ones in it");
    bar.enable().expect("it comes back");
    bar.disable().expect("nothing is in the way");
    assert_eq!((map.places(), slot.is_installed()), (vec![], false), "out again");
    drop(slot);
    let _sigbus = slots.add(1, HERE, mapped(&bar, OnDisabled::Sigbus), Retention::Remove).expect("it is free");
    assert_eq!(vcpu.internal_error(), Err(ExitError::NotEmulated { slot: Some(1) }));
    // Without memory for the ones, an exit of each kind in turn does not go on for ever.
    let broken = slots.add(2, THERE, mapped(&bar, OnDisabled::AllOnes), Retention::AllOnes).expect("it is free");
    let turns = (0..1000).take_while(|_| vcpu.efault().is_ok_and(|a| a == Answer::Reenter)).count();
    assert!(turns < 100, "{turns}");
    drop(broken);
}

/// Refuses one address.
struct Refuses(u64);

impl SetMemslot for Refuses {
    // SAFETY: nothing is done with the address.
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        if memory.gpa == self.0 { Err(io::Error::from_raw_os_error(nix::libc::EEXIST)) } else { Ok(()) }
    }

    fn remove(&self, _: &SlotMemory) -> io::Result<()> {
        Ok(())
    }

    fn changes_in_place(&self) -> bool {
        true
    }
}

#[test]
fn a_move_that_fails_takes_no_other_threads_move_back() {
    support::start();
    let slots = Memslots::new(Arc::new(Refuses(2 * THERE)));
    let slot = slots.add(1, HERE, mapped(&bar(), OnDisabled::AllOnes), Retention::AllOnes).expect("it is installed");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    slot.move_to(2 * THERE).expect_err("it is refused");
                }
            });
        }
        let places = (0..20_000).map(|round| if round % 2 == 0 { THERE } else { HERE });
        // The place that is refused shows while it is being tried.
        let lost = places.filter(|place| {
            slot.move_to(*place).expect("it is not refused");
            let now = slot.range().start;
            now != *place && now != 2 * THERE
        });
        let lost = lost.count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "moves that were made, and are not");
    });
}

#[test]
fn an_access_that_crosses_the_end_of_a_slot_reaches_nothing_beyond_it() {
    support::start();
    let (map, bar) = (Arc::new(Map::default()), bar());
    let slots = Memslots::new(Arc::clone(&map));
    let half = MapOptions::new().len(LEN / 2).on_disabled(OnDisabled::AllOnes);
    let mapping = Arc::new(bar.map(half).expect("it maps"));
    let _slot = slots.add(1, HERE, mapping, Retention::AllOnes).expect("it is installed");
    bar.owner().write(LEN / 2, 0x5ec2e7_u32).expect("the half that the guest is not to see");
    let mut vcpu = exits(&slots, WhenDisabled::default());
    let across = HERE + LEN as u64 / 2 - 4;
    let mut data = [0; 8];
    assert_eq!(vcpu.mmio_read(across, &mut data), Ok(Answer::Reenter));
    assert_eq!(data, [0xff; 8], "an Unsupported Request");
    assert_eq!(vcpu.mmio_write(across, &[7; 8]), Ok(Answer::Reenter));
    assert_eq!(bar.owner().read::<u32>(LEN / 2), Ok(0x5ec2e7), "untouched");
    assert_eq!(bar.owner().read::<u32>(LEN / 2 - 4), Ok(0), "dropped as a whole");
}

/// Drops a memslot from inside its own installation, and refuses to take it out.
#[derive(Default)]
struct DropsInside {
    slot: Mutex<Option<Memslot>>,
    refuses: AtomicBool,
}

impl SetMemslot for DropsInside {
    // SAFETY: nothing is done with the address.
    unsafe fn install(&self, _: &SlotMemory) -> io::Result<()> {
        let slot = self.slot.lock().expect("no panic").take();
        self.refuses.store(slot.is_some(), Ordering::SeqCst);
        drop(slot);
        Ok(())
    }

    fn remove(&self, _: &SlotMemory) -> io::Result<()> {
        match self.refuses.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(nix::libc::EINVAL)),
            false => Ok(()),
        }
    }
}

#[test]
fn a_slot_that_is_dropped_inside_its_installation_and_stays_keeps_its_mapping() {
    support::start();
    let (vm, bar) = (Arc::new(DropsInside::default()), bar());
    let slots = Memslots::new(Arc::clone(&vm));
    let mapping = mapped(&bar, OnDisabled::Sigbus);
    let alive = Arc::downgrade(&mapping);
    let slot = slots.add(1, HERE, mapping, Retention::Remove).expect("it is installed");
    bar.disable().expect("nothing is in the way");
    *vm.slot.lock().expect("no panic") = Some(slot);
    // What the hypervisor says is the notifier's business.
    let _ = bar.enable();
    assert!(vm.refuses.load(Ordering::SeqCst), "it was dropped inside");
    assert!(alive.upgrade().is_some(), "the hypervisor still has its address");
}
