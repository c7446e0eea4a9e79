//! A device that is pulled while threads use its memory, and plugged in again. Nothing of the region pins the device's file
//! meanwhile, and no thread is killed. Needs Linux and no privilege.
//!
//! `cargo run --example hot_unplug`

use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::{
    AccessError, Backing, InvalidateNotifier, MapOptions, Mapping, NotifyError, OnRevoke, Region, RevokeError,
};
use std::error::Error;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const LEN: usize = 64 << 10;
const ID: usize = 0x08;

/// Stands for opening the device: a BAR of a vfio device, say. Any file that can be mapped shared will do.
fn plug(id: u32) -> Result<OwnedFd, Box<dyn Error>> {
    let device = File::from(memfd_create(c"device", MFdFlags::MFD_CLOEXEC)?);
    device.set_len(LEN as u64)?;
    device.write_all_at(&id.to_ne_bytes(), ID as u64)?;
    Ok(device.into())
}

/// How many descriptors of the device this process has.
fn open_descriptors() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let is_device = |path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:device"));
    links.filter(|fd| is_device(fd.path())).count()
}

/// Whatever else keeps the memory reachable is told before it goes: memslots, an IOMMU.
struct Iommu;

impl InvalidateNotifier for Iommu {
    fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError> {
        println!("  IOMMU: unmap {range:#x?}");
        Ok(())
    }

    fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError> {
        println!("  IOMMU: map {range:#x?}");
        Ok(())
    }
}

/// A driver's last load: the device's id, or that it was refused.
const REFUSED: u32 = 0;

/// A driver runs until the memory is gone for good, and returns how many loads were made and refused.
fn driver(mapping: &Mapping, last: &AtomicU32) -> [u64; 2] {
    let mut loads = [0; 2];
    loop {
        let id = match mapping.read::<u32>(ID) {
            Ok(id) => id,
            Err(AccessError::Disabled { .. }) => REFUSED,
            // `Gone`: the region was dropped.
            Err(_) => return loads,
        };
        loads[usize::from(id == REFUSED)] += 1;
        last.store(id, SeqCst);
        thread::sleep(Duration::from_micros(100));
    }
}

/// Waits until every driver has loaded this.
fn until(last: &[AtomicU32; 2], is: u32) {
    while last.iter().any(|last| last.load(SeqCst) != is) {
        thread::yield_now();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let backing = Backing::File { fd: plug(1)?, offset: 0, device: Some(OnRevoke::Drop) };
    let bar = Region::builder(LEN).name("bar0").backing(backing).build()?;
    let _iommu = bar.subscribe(0..LEN, Arc::new(Iommu));
    let mappings = [bar.map(MapOptions::new())?, bar.map(MapOptions::new())?];
    let last = [AtomicU32::new(REFUSED), AtomicU32::new(REFUSED)];

    thread::scope(|scope| {
        let started = mappings.iter().zip(&last).map(|(mapping, last)| scope.spawn(move || driver(mapping, last)));
        let drivers: Vec<_> = started.collect();
        until(&last, 1);
        println!("plugged in: descriptors of the device: {}", open_descriptors());

        // A thread uses the memory by address, under a guard, until it is told to end.
        let ((holds, held), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let user = &mappings[0];
        scope.spawn(move || user.with_access(|_pages| holds.send(()).map(|()| ended.recv())));
        held.recv()?;
        println!("pulled:");
        if let Err(RevokeError::TimedOut { holders, .. }) = bar.disable_timeout(Duration::from_millis(20)) {
            println!("  held up: {holders}");
        }
        drop(end);
        bar.disable()?;
        until(&last, REFUSED);
        println!("  away; descriptors of the device: {}", open_descriptors());

        println!("plugged in again:");
        bar.supply(plug(2)?).map_err(|_| "the region has a file already")?;
        bar.enable()?;
        until(&last, 2);
        println!("removed for good:");
        drop(bar);
        for driver in drivers {
            let [made, refused] = driver.join().map_err(|_| "a driver panicked")?;
            println!("  a driver ends: {made} loads made, {refused} refused");
        }
        Ok(())
    })
}
