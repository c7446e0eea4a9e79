//! Devices of the real vfio-pci: the driver revokes, and the crate revokes, each in its own way and in any order.
//!
//! `tools/vm/hardware KERNEL` boots the machine that has these devices; elsewhere each test prints that it is skipped. One
//! test has the devices at a time.
#![cfg(all(feature = "vfio", feature = "kvm", target_arch = "x86_64"))]

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;
#[path = "../support/guest/mod.rs"]
mod guest;

mod accesses;
mod dma;
mod guests;
mod mappings;
mod measured;
mod passthrough;
mod races;
mod resets;
mod rig;
mod unplugged;
