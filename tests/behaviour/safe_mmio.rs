//! Drivers written for safe-mmio survive a revocation.
#![expect(unsafe_code, reason = "safe-mmio's pointers are made from raw ones")]

use crate::support;
use revocable_mmio::{MapOptions, Region, RevocableOps};
use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::ReadWrite;
use std::ptr::NonNull;

safe_mmio::set_mmio_ops!(RevocableOps);

#[test]
fn a_revoked_register_reads_all_ones_and_loses_stores() {
    support::start();
    let region = Region::builder(4096).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    let at = NonNull::new(mapping.as_ptr().cast::<ReadWrite<u32>>()).expect("not null");
    // SAFETY: the mapping outlives the pointer, and nothing else uses its first four bytes by reference.
    let mut register = unsafe { UniqueMmioPointer::new(at) };
    register.write(7);
    assert_eq!(register.read(), 7);
    region.disable().expect("nothing is in the way");
    register.write(8);
    assert_eq!(register.read(), u32::MAX);
    region.enable().expect("it comes back");
    assert_eq!(register.read(), 7);
}
