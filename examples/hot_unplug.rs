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
use std::sync::Arc;
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

/// A driver runs until the memory is gone for good. It returns how many loads it made, how many were refused, and the last
/// id that it saw.
fn driver(mapping: &Mapping) -> (u64, u64, u32) {
    let (mut made, mut refused, mut last) = (0, 0, 0);
    loop {
        match mapping.read::<u32>(ID) {
            Ok(id) => (made, last) = (made + 1, id),
            Err(AccessError::Disabled { .. }) => {
                refused += 1;
                thread::sleep(Duration::from_micros(200));
            }
            // `Gone`: the region was dropped.
            Err(_) => return (made, refused, last),
        }
    }
}

/// Surprise removal: a thread that keeps a guard is named, not waited for without end.
fn unplug(bar: &Region) -> Result<(), RevokeError> {
    match bar.disable_timeout(Duration::from_millis(20)) {
        Err(RevokeError::TimedOut { holders, .. }) => {
            println!("  held up: {holders}");
            bar.disable().map(drop)
        }
        done => done.map(drop),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let backing = Backing::File { fd: plug(1)?, offset: 0, device: Some(OnRevoke::Drop) };
    let bar = Region::builder(LEN).name("bar0").backing(backing).build()?;
    let _iommu = bar.subscribe(0..LEN, Arc::new(Iommu));
    let mappings = [bar.map(MapOptions::new())?, bar.map(MapOptions::new())?];
    println!("plugged in: descriptors of the device: {}", open_descriptors());

    thread::scope(|scope| {
        let drivers = mappings.each_ref().map(|mapping| scope.spawn(|| driver(mapping)));
        thread::sleep(Duration::from_millis(20));
        // A thread that uses the memory by address for a while.
        let holder = scope.spawn(|| mappings[0].with_access(|_pages| thread::sleep(Duration::from_millis(60))));
        thread::sleep(Duration::from_millis(20));

        println!("pulled:");
        unplug(&bar)?;
        println!("  away; descriptors of the device: {}", open_descriptors());
        thread::sleep(Duration::from_millis(20));

        println!("plugged in again:");
        bar.supply(plug(2)?).map_err(|_| "the region has a file already")?;
        bar.enable()?;
        thread::sleep(Duration::from_millis(20));
        drop(bar);
        println!("removed for good; descriptors of the device: {}", open_descriptors());

        holder.join().map_err(|_| "the holder panicked")??;
        for driver in drivers {
            let (made, refused, last) = driver.join().map_err(|_| "a driver panicked")?;
            println!("a driver: {made} loads made, {refused} refused, the last from device {last}");
            if made == 0 || refused == 0 || last != 2 {
                return Err("a driver was to see both devices, and neither in between".into());
            }
        }
        Ok(())
    })
}
