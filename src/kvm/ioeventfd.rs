//! KVM's ioeventfds.
//!
//! UNSAFETY: an ioctl with a structure of its own.
#![expect(unsafe_code, reason = "kvm-ioctls takes an eventfd of another crate's by value")]

use crate::ioeventfd::{IoEvent, SetIoEventFd};
use kvm_bindings::{kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign};
use kvm_ioctls::VmFd;
use std::io;
use std::os::fd::AsRawFd;

nix::ioctl_write_ptr!(set_ioeventfd, 0xae, 0x79, kvm_ioeventfd);

impl SetIoEventFd for VmFd {
    fn assign(&self, event: &IoEvent<'_>) -> io::Result<()> {
        set(self, event, 0)
    }

    fn withdraw(&self, event: &IoEvent<'_>) -> io::Result<()> {
        set(self, event, 1 << kvm_ioeventfd_flag_nr_deassign)
    }
}

/// `KVM_IOEVENTFD`.
fn set(vm: &VmFd, event: &IoEvent<'_>, flags: u32) -> io::Result<()> {
    let matched = if event.value.is_some() { 1 << kvm_ioeventfd_flag_nr_datamatch } else { 0 };
    let argument = kvm_ioeventfd {
        datamatch: event.value.unwrap_or(0),
        addr: event.gpa,
        len: u32::from(event.width),
        fd: event.eventfd.as_raw_fd(),
        flags: flags | matched,
        ..Default::default()
    };
    // SAFETY: a live structure of this ioctl's, which KVM reads and nothing else writes. KVM takes a reference to the
    // eventfd, and no memory.
    unsafe { set_ioeventfd(vm.as_raw_fd(), &raw const argument) }?;
    Ok(())
}
