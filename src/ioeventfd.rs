//! Ioeventfds of a BAR: guest stores that the hypervisor turns into signals of an eventfd, without an exit of the VMM's.
//!
//! [`IoEventFds`] registers them while the BAR's region is enabled, and withdraws them while it is disabled: a doorbell of a
//! device that decodes no memory is not heard. They move with the BAR. Knows no hypervisor: a VMM implements
//! [`SetIoEventFd`] for its own, and feature `kvm` does for `VmFd`.
//!
//! | the region | a guest store to the doorbell |
//! |---|---|
//! | enabled | signals the eventfd |
//! | disabled | exits with its address, as without an ioeventfd: an Unsupported Request |
//! | being reset | signals the eventfd, whose count is the device's to see after the reset |
//!
//! The hypervisor sees only stores to addresses that are no guest memory: a doorbell is in a part of the BAR that no
//! memslot maps. The other direction, an eventfd whose signal makes a store to a BAR, needs no hypervisor:
//! [`PciDevice::add_ioeventfd`](crate::pci::PciDevice::add_ioeventfd).

mod core;
mod error;
mod set;
mod vm;

pub use error::IoEventFdError;
pub use set::IoEventFds;
pub use vm::{IoEvent, SetIoEventFd, Width};
