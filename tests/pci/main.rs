//! The PCI device model: its promises, its BARs together, and its descriptors across a fork.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod areas;
mod bar_slots;
mod dma;
mod forked_devices;
mod giving_up;
mod moves;
mod pci;
mod pci_bars_together;
mod saved;
mod shared_bars;
mod vfio_user;
