//! BARs of areas under the device model: the device's registers change them with everything else.

use crate::support;
use crate::support::memory_map::Map;
use revocable_mmio::bar::{self, BarError, DeviceIo};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::memslot::{Memslots, Retention};
use revocable_mmio::pci::{Bar, BarSlots, Bus, DmaAccess, DmaSpace, Iommu, PciDevice, PciError, Space, Width};
use revocable_mmio::{AccessError, MapOptions, Region, RegionBuilder, RevokeError};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const WINDOW: Space = Space::Bar(2);
const COMMAND: u64 = 4;
const POWER: usize = 0x40;
const SIZE: u64 = 0x10_0000;
const A: u32 = 0xe000_0000;
const B: u32 = 0xe800_0000;

fn memory() -> RegionBuilder {
    Region::builder(0x4000)
}

/// Counts what the device hears.
#[derive(Default)]
struct Doorbells(AtomicUsize);

impl DeviceIo for Doorbells {
    fn read(&self, _: u64, into: &mut [u8]) {
        into.fill(5);
    }
    fn write(&self, _: u64, _: &[u8]) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A GPU: registers in BAR 0, a window for blobs in BAR 2, whose first page is doorbells.
fn gpu(command: u16) -> (PciDevice, Arc<Doorbells>, Arc<Map>, BarSlots) {
    support::start();
    let (doorbells, map) = (Arc::new(Doorbells::default()), Arc::new(Map::default()));
    let slots = Memslots::new(Arc::clone(&map));
    let window = bar::Bar::builder(SIZE).trap(0..0x1000, Arc::clone(&doorbells) as _);
    let window = window.memslots(&slots, 8..16, Retention::AllOnes);
    let gpu = PciDevice::builder(0x1af4, 0x1050).command(command).power(POWER).on_reset(|_, _| Ok(()));
    let gpu = gpu.bar(0, Bar::memory(0x4000)).bar(2, Bar::areas(window).at(u64::from(A)));
    let gpu = gpu.build().expect("a device");
    let follows = BarSlots::new(WINDOW, slots).areas(gpu.areas(WINDOW).expect("areas").clone());
    (gpu, doorbells, map, follows)
}

fn set_memory(gpu: &PciDevice, on: bool) {
    gpu.write(Space::Config, COMMAND, &[if on { 2 } else { 0 }, 0][..]).expect("a register");
}

fn byte(gpu: &PciDevice, at: u64) -> Result<u8, i32> {
    let mut value = [0];
    gpu.read(WINDOW, at, &mut value[..]).map(|_| value[0]).map_err(|e| e.errno())
}

#[test]
fn the_memory_bit_gates_areas_and_traps_alike() {
    let (gpu, doorbells, ..) = gpu(0);
    let areas = gpu.areas(WINDOW).expect("areas");
    let blob = areas.insert(0x8000, memory()).expect("in any state");
    let mapping = blob.region().map(MapOptions::new()).expect("it maps");
    for at in [0, 0x8000, 0x1_0000] {
        assert_eq!(byte(&gpu, at), Err(5), "{at:#x}: EIO");
        assert_eq!(gpu.write(WINDOW, at, &[1][..]).unwrap_err().errno(), 5);
    }
    set_memory(&gpu, true);
    gpu.write(WINDOW, 0x8000, &[7][..]).expect("memory is on");
    assert_eq!(mapping.read::<u8>(0), Ok(7));
    gpu.write(WINDOW, 8, &[1, 0, 0, 0][..]).expect("memory is on");
    assert_eq!((byte(&gpu, 0), byte(&gpu, 0x8000), byte(&gpu, 0x1_0000)), (Ok(5), Ok(7), Ok(0xff)));
    assert_eq!(doorbells.0.load(Ordering::SeqCst), 1, "only the one while memory was on");

    // BAR 0 is pinned: no area is revoked either.
    let pin = gpu.region(Space::Bar(0)).expect("memory").pin(0..0x4000, FaultFlags::WAIT).expect("it is on");
    let busy = gpu.write_timeout(COMMAND, &[0, 0], Duration::from_millis(5)).expect_err("it is pinned");
    assert_eq!((busy.errno(), mapping.read::<u8>(0)), (16, Ok(7)));
    drop(pin);
    set_memory(&gpu, false);
    assert!(mapping.read::<u8>(0).is_err() && !blob.region().is_enabled());
    let later = areas.insert(0x1_0000, memory()).expect("in any state");
    set_memory(&gpu, true);
    assert!(later.region().is_enabled(), "it came while memory was off");

    drop(gpu);
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::Gone { offset: 0 }));
    assert!(matches!(later.region().enable(), Err(RevokeError::Gone)));
}

#[test]
fn what_is_left_of_a_removed_area_is_waited_for() {
    let (gpu, ..) = gpu(2);
    let blob = gpu.areas(WINDOW).expect("areas").insert(0x8000, memory()).expect("it is free");
    let mapping = blob.region().map(MapOptions::new()).expect("it maps");
    let pin = blob.region().pin(0..0x4000, FaultFlags::WAIT).expect("it is on");
    drop(blob);
    let busy = gpu.write_timeout(COMMAND, &[0, 0], Duration::from_millis(5)).expect_err("it is pinned");
    assert_eq!((busy.errno(), gpu.is_memory_enabled(), mapping.read::<u8>(0)), (16, true, Ok(0)));
    assert_eq!(gpu.reset_timeout(Duration::from_millis(5)).unwrap_err().errno(), 16, "pinned");
    assert_eq!(Bus::new([gpu.clone()]).hot_reset(|_| true, |_| Ok(())).unwrap_err().errno(), 16, "pinned");
    drop(pin);
    set_memory(&gpu, false);
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::Gone { offset: 0 }));
}

#[test]
fn low_power_revokes_mappings_and_calls_work() {
    let (gpu, ..) = gpu(2);
    let blob = gpu.areas(WINDOW).expect("areas").insert(0x8000, memory()).expect("it is free");
    let mapping = blob.region().map(MapOptions::new()).expect("it maps");
    gpu.enter_low_power().expect("it is awake");
    assert!(mapping.read::<u8>(0).is_err());
    assert_eq!((byte(&gpu, 0), byte(&gpu, 0x8000), byte(&gpu, 0x1_0000)), (Ok(5), Ok(0), Ok(0xff)));
    let later = gpu.areas(WINDOW).expect("areas").insert(0x1_0000, memory()).expect("in any state");
    assert!(!later.region().is_enabled());
    assert_eq!(byte(&gpu, 0x1_0000), Ok(0));
    gpu.exit_low_power().expect("it wakes");
    assert!(later.region().is_enabled() && mapping.read::<u8>(0).is_ok());
}

#[test]
fn resets_of_function_and_bus_reach_areas_and_hold_insertions_up() {
    let (gpu, ..) = gpu(2);
    let areas = gpu.areas(WINDOW).expect("areas").clone();
    let blob = areas.insert(0x8000, memory()).expect("it is free");
    let mapping = blob.region().map(MapOptions::new()).expect("it maps");
    let bus = Bus::new([gpu.clone()]);
    let pin = blob.region().pin(0..0x4000, FaultFlags::WAIT).expect("it is on");
    assert_eq!(bus.hot_reset(|_| true, |_| Ok(())).unwrap_err().errno(), 16, "pinned");
    assert_eq!(gpu.reset_timeout(Duration::from_millis(5)).unwrap_err().errno(), 16, "pinned");
    drop(pin);
    let reset = |_: &[PciDevice]| {
        assert_eq!(mapping.try_read::<u8>(0), Err(AccessError::WouldBlock { offset: 0 }));
        assert!(matches!(areas.insert(0x1_0000, memory()), Err(BarError::State(RevokeError::Reentrant))));
        thread::scope(|threads| {
            threads.spawn(|| assert!(areas.try_insert(0x1_0000, memory()).expect_err("a reset").is_busy()));
            threads.spawn(|| {
                for at in [0, 0x8000, 0x1_0000] {
                    let busy = gpu.read_with(WINDOW, at, &mut [0][..], FaultFlags::NOWAIT);
                    assert!(matches!(busy, Err(PciError::WouldBlock { .. })), "{at:#x}: {busy:?}");
                }
            });
        });
        Ok(())
    };
    bus.hot_reset(|_| true, reset).expect("nothing is in the way");
    assert_eq!(mapping.read::<u8>(0), Ok(0));
    let mut worked = Err(());
    gpu.privileged(|_| {
        worked = Ok(thread::scope(|threads| {
            threads.spawn(|| areas.try_insert(0x1_0000, memory()).expect_err("locked out").is_busy()).join()
        }));
    })
    .expect("no change is under way");
    assert!(worked.expect("it ran").expect("no panic"));
}

#[test]
fn memslots_of_areas_follow_the_bar() {
    let (gpu, _, map, follows) = gpu(0);
    let following = gpu.follow(Arc::new(follows.stays_while_off())).expect("nothing is decoded");
    let areas = gpu.areas(WINDOW).expect("areas");
    let _first = areas.insert(0, memory()).expect("it is free");
    let blob = areas.insert(0x8000, memory()).expect("it is free");
    assert_eq!(map.places(), [] as [u64; 0]);
    set_memory(&gpu, true);
    let [a, b] = [A, B].map(u64::from);
    assert_eq!(map.places(), [a + 0x1000, a + 0x8000], "without the page of doorbells");
    gpu.write(Space::Config, 0x18, &B.to_le_bytes()[..]).expect("a register");
    assert_eq!(map.places(), [b + 0x1000, b + 0x8000]);
    set_memory(&gpu, false);
    assert_eq!(map.places(), [b + 0x1000, b + 0x8000], "ones stand in them");
    drop(blob);
    let second = areas.insert(0x1_0000, memory()).expect("it is free");
    assert_eq!(map.places(), [b + 0x1000, b + 0x1_0000]);
    gpu.write(Space::Config, 0x18, &A.to_le_bytes()[..]).expect("a register");
    set_memory(&gpu, true);
    assert_eq!(map.places(), [a + 0x1000, a + 0x1_0000]);

    // The new place is refused: the BAR is decoded nowhere until it is tried again.
    map.refuses.store(1, Ordering::SeqCst);
    let refused = gpu.write(Space::Config, 0x18, &B.to_le_bytes()[..]).expect_err("it is refused");
    assert!(matches!(refused, PciError::Place { .. }), "{refused}");
    assert_eq!((map.places(), areas.guest_address()), (vec![], None));
    gpu.retry_places().expect("the virtual machine agrees");
    assert_eq!(map.places(), [b + 0x1000, b + 0x1_0000]);
    drop(following);
    assert_eq!(map.places(), [] as [u64; 0]);
    drop(second);
}

#[test]
fn without_staying_they_go_with_the_memory() {
    let (gpu, _, map, follows) = gpu(0);
    let _following = gpu.follow(Arc::new(follows)).expect("nothing is decoded");
    let _blob = gpu.areas(WINDOW).expect("areas").insert(0x8000, memory()).expect("it is free");
    for _ in 0..3 {
        set_memory(&gpu, true);
        assert_eq!(map.places(), [u64::from(A) + 0x8000]);
        set_memory(&gpu, false);
        assert_eq!(map.places(), [] as [u64; 0]);
    }
}

#[test]
fn an_ioeventfd_writes_to_a_trap_and_to_an_area() {
    let (gpu, doorbells, ..) = gpu(2);
    let blob = gpu.areas(WINDOW).expect("areas").insert(0x8000, memory()).expect("it is free");
    let kick = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    gpu.add_ioeventfd(2, 4, Width::Four, 1, kick.as_fd()).expect("a doorbell");
    gpu.add_ioeventfd(2, 0x8004, Width::Two, 0x1234, kick.as_fd()).expect("memory");
    kick.write(1).expect("it is signalled");
    let since = Instant::now();
    while doorbells.0.load(Ordering::SeqCst) == 0 || blob.region().owner().read::<u16>(4) != Ok(0x1234) {
        assert!(since.elapsed() < crate::support::patience(Duration::from_secs(20)), "nothing is written");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_bar_of_areas_does_not_have_is_refused() {
    let (gpu, ..) = gpu(2);
    assert_eq!(gpu.map(WINDOW, MapOptions::new()).unwrap_err().errno(), 22);
    assert!(gpu.region(WINDOW).is_none() && gpu.areas(Space::Bar(0)).is_none() && gpu.areas(Space::Rom).is_none());
    assert_eq!((gpu.info(WINDOW).size, gpu.info(WINDOW).map), (SIZE, false));
    let build = |bar: Bar| PciDevice::builder(1, 2).bar(2, bar).build().expect_err("it is wrong").to_string();
    let window = || bar::Bar::builder(0x1000);
    assert!(build(Bar::areas(window()).exclude(0..4)).contains("trap"));
    assert!(build(Bar::areas(window()).backing(revocable_mmio::Backing::Memfd)).contains("backing"));
    assert!(build(Bar::areas(window()).shared(revocable_mmio::OnDisabled::Sigbus)).contains("shared"));
    assert!(build(Bar::areas(bar::Bar::builder(0x1800))).contains("power of two"));
    assert!(build(Bar::areas(window().area(0x800, memory()))).contains("page size"));
}

/// An IOMMU that agrees, and keeps what is mapped.
#[derive(Default)]
struct Table(std::sync::Mutex<Vec<u64>>);

impl Iommu for Table {
    fn map(&self, at: u64, _: *mut u8, _: usize, _: DmaAccess) -> std::io::Result<()> {
        self.0.lock().expect("no panic").push(at);
        Ok(())
    }
    fn unmap(&self, at: u64, _: usize) {
        self.0.lock().expect("no panic").retain(|known| *known != at);
    }
}

#[test]
fn dma_of_an_area_follows_the_bar_and_its_state() {
    let (gpu, ..) = gpu(2);
    let blob = gpu.areas(WINDOW).expect("areas").insert(0x8000, memory()).expect("it is free");
    let table = Arc::new(Table::default());
    let space = Arc::new(DmaSpace::new(Arc::clone(&table) as _));
    let map = |options| blob.region().map(options).expect("it maps");
    let part = space.follow_bar(&gpu, WINDOW, map(MapOptions::new().len(0x1000)), DmaAccess::ReadWrite);
    assert_eq!(part.map(drop).expect_err("a part").errno(), 22);
    let following =
        space.follow_bar(&gpu, WINDOW, map(MapOptions::new()), DmaAccess::ReadWrite).expect("it is decoded");
    let mapped = || table.0.lock().expect("no panic").clone();
    assert_eq!(mapped(), [u64::from(A) + 0x8000]);
    gpu.write(Space::Config, 0x18, &B.to_le_bytes()[..]).expect("a register");
    assert_eq!(mapped(), [u64::from(B) + 0x8000]);
    set_memory(&gpu, false);
    assert_eq!(mapped(), [] as [u64; 0]);
    set_memory(&gpu, true);
    assert_eq!(mapped(), [u64::from(B) + 0x8000]);
    drop(following);
    assert_eq!(mapped(), [] as [u64; 0]);
}

/// Ends the other thread, whatever becomes of this one.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device whose areas come and go, whose memory bit is toggled, and which is reset, all at once. No area is ever in
/// another state than the device when nothing is under way, and no access through a mapping gets through while memory is
/// off.
#[test]
fn areas_come_and_go_while_the_device_changes() {
    let (gpu, _, map, follows) = gpu(2);
    let _following = gpu.follow(Arc::new(follows)).expect("the place is free");
    let areas = gpu.areas(WINDOW).expect("areas").clone();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let churn = threads.spawn(|| {
            let mut rounds = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let area = areas.insert(0x8000, memory()).expect("it is free");
                let mapping = area.region().map(MapOptions::new()).expect("it maps");
                let _ = mapping.write(0, rounds);
                rounds += 1;
                drop(area);
                // At the end of the change that is under way, if there is one.
                let since = Instant::now();
                while mapping.read::<u32>(0) != Err(AccessError::Gone { offset: 0 }) {
                    assert!(since.elapsed() < crate::support::patience(Duration::from_secs(20)), "the memory stays");
                }
            }
            rounds
        });
        let ends = Ends(&stop);
        let fixed = areas.insert(0x1_0000, memory()).expect("it is free");
        let mapping = fixed.region().map(MapOptions::new()).expect("it maps");
        let since = Instant::now();
        let mut round = 0;
        while since.elapsed() < Duration::from_secs(2) || round < 20 {
            set_memory(&gpu, false);
            assert!(mapping.read::<u32>(0).is_err());
            set_memory(&gpu, true);
            assert!(mapping.read::<u32>(0).is_ok());
            gpu.reset().expect("nothing is in the way");
            round += 1;
        }
        drop(ends);
        assert!(churn.join().expect("no panic") > 0);
    });
    assert_eq!((areas.ranges().len(), map.places().len()), (0, 0));
}
