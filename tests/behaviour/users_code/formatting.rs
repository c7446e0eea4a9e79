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

type Uses = Arc<dyn Fn() + Send + Sync>;

/// Has the object used whenever a part of the text is written: by another thread, then by this one.
struct Writer {
    text: String,
    uses: Uses,
}

impl Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        let (uses, (done, is_done)) = (Arc::clone(&self.uses), mpsc::channel());
        // Another thread first: this one would wait for ever, where a lock is held.
        thread::spawn(move || {
            uses();
            done.send(()).expect("it is waited for");
        });
        let waited = is_done.recv_timeout(patience(Duration::from_secs(5)));
        waited.unwrap_or_else(|e| panic!("formatted under a lock: {}: {e}", self.text));
        (self.uses)();
        Ok(())
    }
}

fn written(object: &dyn Debug, uses: &Uses) {
    let mut writer = Writer { text: String::new(), uses: Arc::clone(uses) };
    write!(writer, "{object:?}").expect("it writes");
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
    let region = Arc::new(bar());
    let (mapping, used) = (ones(&region), Arc::clone(&region));
    let changes: Uses = Arc::new(move || {
        drop(ones(&used));
        used.disable().expect("nothing is in the way");
        used.enable().expect("it comes back");
    });
    written(&region, &changes);
    written(&mapping, &changes);
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let monitor = Monitor::with_threads(1).expect("a monitor");
    let zapped = Region::builder(LEN).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("a region");
    let _mapped = zapped.map(MapOptions::new()).expect("it maps");
    written(&monitor, &(Arc::new(move || drop(zapped.map(MapOptions::new()).expect("it maps"))) as _));
}

#[test]
fn memslots_and_ioeventfds_are_shown_under_no_lock() {
    support::start();
    let region = bar();
    let slots = Memslots::new(Arc::new(Code_(Arc::default())));
    let mut kept = slots.add(1, 0, ones(&region), Retention::AllOnes).expect("it is free");
    let (used, second) = (slots.clone(), ones(&region));
    let adds: Uses =
        Arc::new(move || drop(used.add(2, 1 << 30, Arc::clone(&second), Retention::AllOnes).expect("it is free")));
    written(&slots, &adds);
    written(&kept, &adds);
    kept.remove().expect("it goes");

    let bell = EventFd::new().expect("an eventfd");
    let doorbells = Arc::new(IoEventFds::new(Arc::new(Code_(Arc::default())), &region, 0).expect("it fits"));
    doorbells.add(0, Width::Four, None, bell.as_fd()).expect("it is free");
    let used = Arc::clone(&doorbells);
    let moves: Uses = Arc::new(move || {
        used.add(8, Width::Four, None, bell.as_fd()).expect("it is free");
        used.move_to(1 << 20).expect("it fits");
        used.remove(8, Width::Four, None).expect("it is there");
    });
    written(&doorbells, &moves);
    assert_eq!(format!("{doorbells:?}"), "IoEventFds { gpa: 0x100000, ioeventfds: 1, registered: 1 }");
}

#[test]
fn devices_and_their_dma_are_shown_under_no_lock() {
    support::start();
    let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(LEN as u64)).build().expect("a device");
    let mapping = Arc::new(nic.map(BAR, MapOptions::new().on_disabled(OnDisabled::AllOnes)).expect("it maps"));
    let slots = Memslots::new(Arc::new(Code_(Arc::default())));
    let slots = Arc::new(BarSlots::new(BAR, slots).memslot(1, mapping, Retention::AllOnes));
    let _following = nic.follow(Arc::clone(&slots) as _).expect("nothing is decoded");
    let used = nic.clone();
    let moves: Uses = Arc::new(move || {
        for at in [0xe000_0000_u32, 0xe800_0000] {
            used.write(Space::Config, 0x10, &at.to_le_bytes()[..]).expect("an address");
            used.write(Space::Config, 4, &[2, 0][..]).expect("on");
        }
    });
    moves();
    assert!(format!("{slots:?}").contains("0xe8000000"), "{slots:?}");
    written(&nic, &moves);
    written(&slots, &moves);

    let space = Arc::new(DmaSpace::new(Arc::new(Counts::default())));
    let (used, mapped) = (Arc::clone(&space), ones(&bar()));
    let map = move |space: &DmaSpace, iova| {
        let segment = DmaSegment::device(&mapped, 0..4096);
        space.map(iova, &[segment], DmaAccess::ReadWrite).expect("it is free");
    };
    map(&space, IOVA);
    let maps: Uses = Arc::new(move || {
        map(&used, IOVA + (1 << 20));
        assert_eq!(used.unmap(IOVA + (1 << 20), 4096), 4096);
    });
    written(&space, &maps);
}
