//! Pins at the edges.
#![expect(unsafe_code, reason = "maps memory where a careless pin would point")]

use crate::support;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{Backing, OnRevoke, PinError, Region};
use std::num::NonZeroUsize;

#[test]
fn a_device_without_an_owners_view_cannot_be_pinned() {
    support::start();
    // The address of offset 32 MiB in a view at address 0.
    let low = NonZeroUsize::new(32 << 20).expect("not 0");
    let page = NonZeroUsize::new(4096).expect("not 0");
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let there = unsafe { mmap_anonymous(Some(low), page, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    there.expect("nothing is mapped so low");

    let fd = memfd_create(c"device", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&fd, 64 << 20).expect("it can grow");
    let backing = Backing::File { fd, offset: 0, device: Some(OnRevoke::Drop) };
    let region = Region::builder(64 << 20).backing(backing).build().expect("a region");
    let at = low.get();
    match region.pin(at..at + 4096, FaultFlags::WAIT) {
        Err(PinError::NoMemory(_)) => {}
        Err(e) => panic!("{e}"),
        Ok(pin) => panic!("pinned {:?}, which is not the region's memory", pin.as_ptr()),
    }
    assert!(region.disable().expect("nothing is pinned"));
}
