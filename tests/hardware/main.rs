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
mod container;
mod dma;
mod guests;
mod ioas;
mod iommufd;
mod mappings;
mod measured;
mod passthrough;
mod races;
mod resets;
mod rig;
mod rows;
mod unplugged;
#[path = "../../examples/vfio_bar.rs"]
#[expect(dead_code, reason = "its main reads arguments")]
mod vfio_bar;

#[test]
fn the_example_runs_on_devices_with_and_without_a_reset() {
    let Some(rig) = rig::rig() else { return };
    // It opens the container by itself, also where the others are opened by an iommufd.
    for (device, bar) in [(rig::MEMORY, 2), (rig::NVME, 0)] {
        rig::bind(device);
        drop(rig.open(device));
        vfio_bar::run(device, bar).expect("what a VMM does");
    }
    let refused = vfio_bar::run("0000:00:1f.0", 0).expect_err("a bridge of the machine's own");
    println!("{refused}");
}
