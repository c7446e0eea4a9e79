//! `Debug` writes to what may be a user's: no lock of the crate is held meanwhile.

use super::{BAR, Code_, Counts, IOVA, LEN};
use crate::support::{self, patience};
use nix::sys::eventfd::EventFd;
use revocable_mmio::ioeventfd::{IoEventFds, Width};
use revocable_mmio::memslot::{Memslots, Retention};
use revocable_mmio::pci::{Bar, BarSlots, DmaAccess, DmaSegment, DmaSpace, PciDevice, Space};
use revocable_mmio::{MapOptions, Mapping, Monitor, OnDisabled, Region, Strategy, Support};
use std::fmt::{self, Debug, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// Text that, when the first of it is written, has the object used: by another thread, then by this one.
struct Writer<'a> {
    text: String,
    uses: &'a (dyn Fn() + Sync),
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        if self.text.len() > text.len() {
            return Ok(());
        }
        // Another thread first: this one would wait for ever, where the lock is held.
        let (uses, (done, is_done)) = (self.uses, mpsc::channel());
        thread::scope(|scope| {
            scope.spawn(move || {
                uses();
                let _ = done.send(());
            });
            if is_done.recv_timeout(patience(Duration::from_secs(5))).is_err() {
                // The thread goes on when this one has let go of the lock.
                self.text.insert_str(0, "WAITED ");
            }
        });
        if !self.text.starts_with("WAITED") {
            uses();
        }
        Ok(())
    }
}

fn written(object: &dyn Debug, uses: &(dyn Fn() + Sync)) {
    for pretty in [false, true] {
        let mut writer = Writer { text: String::new(), uses };
        let wrote = if pretty { write!(writer, "{object:#?}") } else { write!(writer, "{object:?}") };
        wrote.expect("it writes");
        assert!(!writer.text.starts_with("WAITED"), "formatted under a lock: {}", writer.text);
    }
}

fn bar() -> Region {
    Region::builder(LEN).build().expect("a region")
}

fn ones(region: &Region) -> Arc<Mapping> {
    Arc::new(region.map(MapOptions::new().on_disabled(OnDisabled::AllOnes)).expect("it maps"))
}

#[test]
fn regions_mappings_and_monitors_are_shown_under_no_lock() {
    support::start();
    let region = bar();
    let mapping = ones(&region);
    let changes = || {
        drop(ones(&region));
        region.disable().expect("nothing is in the way");
        region.enable().expect("it comes back");
    };
    written(&region, &changes);
    written(&mapping, &changes);
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let monitor = Monitor::with_threads(1).expect("a monitor");
    let zapped = Region::builder(LEN).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("a region");
    let _mapped = zapped.map(MapOptions::new()).expect("it maps");
    written(&monitor, &|| drop(zapped.map(MapOptions::new()).expect("it maps")));
}

#[test]
fn memslots_and_ioeventfds_are_shown_under_no_lock() {
    support::start();
    let region = bar();
    let slots = Memslots::new(Arc::new(Code_(Arc::default())));
    let mut kept = slots.add(1, 0, ones(&region), Retention::AllOnes).expect("it is free");
    let adds = || drop(slots.add(2, 1 << 30, ones(&region), Retention::AllOnes).expect("it is free"));
    written(&slots, &adds);
    written(&kept, &adds);
    kept.remove().expect("it goes");

    let bell = EventFd::new().expect("an eventfd");
    let doorbells = IoEventFds::new(Arc::new(Code_(Arc::default())), &region, 0).expect("it fits");
    doorbells.add(0, Width::Four, None, bell.as_fd()).expect("it is free");
    assert_eq!(format!("{doorbells:?}"), "IoEventFds { gpa: 0x0, ioeventfds: 1, registered: 1 }");
    let moves = || {
        doorbells.add(8, Width::Four, None, bell.as_fd()).expect("it is free");
        doorbells.move_to(1 << 20).expect("it fits");
        doorbells.remove(8, Width::Four, None).expect("it is there");
    };
    written(&doorbells, &moves);
}

#[test]
fn devices_and_their_dma_are_shown_under_no_lock() {
    support::start();
    let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(LEN as u64)).build().expect("a device");
    let mapping = Arc::new(nic.map(BAR, MapOptions::new().on_disabled(OnDisabled::AllOnes)).expect("it maps"));
    let slots = Memslots::new(Arc::new(Code_(Arc::default())));
    let slots = Arc::new(BarSlots::new(BAR, slots).memslot(1, mapping, Retention::AllOnes));
    let _following = nic.follow(Arc::clone(&slots) as _).expect("nothing is decoded");
    let moves = || {
        for at in [0xe000_0000_u32, 0xe800_0000] {
            nic.write(Space::Config, 0x10, &at.to_le_bytes()[..]).expect("an address");
            nic.write(Space::Config, 4, &[2, 0][..]).expect("on");
        }
    };
    moves();
    assert!(format!("{slots:?}").contains("0xe8000000"), "{slots:?}");
    written(&nic, &moves);
    written(&slots, &moves);

    let space = DmaSpace::new(Arc::new(Counts::default()));
    let region = bar();
    let mapped = ones(&region);
    let map = |iova| {
        let segment = DmaSegment::device(&mapped, 0..4096);
        space.map(iova, &[segment], DmaAccess::ReadWrite).expect("it is free");
    };
    map(IOVA);
    let maps = || {
        map(IOVA + (1 << 20));
        assert_eq!(space.unmap(IOVA + (1 << 20), 4096), 4096);
    };
    written(&space, &maps);
}
