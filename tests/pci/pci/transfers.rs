//! Accesses by call: buffers, widths, transfers that a revocation cuts, and parts that are out of reach.

use super::{BAR, EFAULT, EIO, OFF, ON, command, device};
use crate::support;
use revocable_mmio::pci::{Bar, BufferFault, PciDevice, Sink, Source, Space, Width};
use std::sync::Mutex;

/// A buffer that calls a function between two accesses.
struct Hooked<F: Fn(usize)>(usize, F);

impl<F: Fn(usize)> Sink for Hooked<F> {
    fn len(&self) -> usize {
        self.0
    }

    fn put(&mut self, at: usize, _: &[u8]) -> Result<(), BufferFault> {
        (self.1)(at);
        Ok(())
    }
}

impl<F: Fn(usize)> Source for Hooked<F> {
    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
        into.fill(0x5a);
        (self.1)(at);
        Ok(())
    }
}

#[test]
fn no_lock_is_held_while_the_callers_buffer_is_touched() {
    support::start();
    // The buffer revokes the memory that is being transferred. With the read lock held, the transfer would wait for
    // itself (bc93b9ae0151).
    let device = device();
    let toggle = |_| {
        command(&device, OFF);
        command(&device, ON);
    };
    assert_eq!(device.read(BAR, 0, &mut Hooked(64, toggle)).expect("enabled at each access"), 64);
    assert_eq!(device.write(BAR, 0, &Hooked(64, toggle)).expect("enabled at each access"), 64);
}

#[test]
fn a_transfer_that_a_revocation_cuts_is_eio_and_what_was_written_stays() {
    support::start();
    let device = device();
    let cut = |at| {
        if at == 16 {
            command(&device, OFF);
        }
    };
    let error = device.write(BAR, 0, &Hooked(64, cut)).expect_err("cut at byte 16");
    assert_eq!(error.errno(), EIO);
    let owner = device.owner(BAR).expect("memory");
    assert_eq!(owner.read::<u64>(8), Ok(0x5a5a_5a5a_5a5a_5a5a));
    assert_eq!(owner.read::<u64>(16), Ok(0), "taken from the buffer before the access was refused");
    command(&device, ON);
    assert_eq!(device.read(BAR, 0, &mut Hooked(64, cut)).expect_err("cut").errno(), EIO);
}

#[test]
fn accesses_are_as_wide_as_the_offset_allows() {
    support::start();
    let widths = |at: u64, len| {
        let seen = Mutex::new(Vec::new());
        let sink = Hooked(len, |at| seen.lock().expect("a list").push(at));
        let mut sink = sink;
        device().read(BAR, at, &mut sink).expect("enabled");
        seen.into_inner().expect("a list")
    };
    assert_eq!(widths(0, 16), [0, 8], "two of 8");
    assert_eq!(widths(1, 8), [0, 1, 3, 7], "1, 2, 4, 1");
    assert_eq!(widths(4, 13), [0, 4, 12], "4, 8, 1");
}

#[test]
fn the_msix_table_is_out_of_reach_of_calls_and_ioeventfds() {
    support::start();
    let bar = Bar::memory(4096).exclude(0x10..0x20);
    let device = PciDevice::builder(1, 2).command(2).bar(0, bar).build().expect("a device");
    assert_eq!(device.write(BAR, 8, &[1u8; 32][..]).expect("enabled"), 32);
    let mut bytes = [0; 32];
    device.read(BAR, 8, &mut bytes[..]).expect("enabled");
    assert_eq!((&bytes[..8], &bytes[8..24], &bytes[24..]), (&[1; 8][..], &[0xff; 16][..], &[1; 8][..]));
    assert_eq!(device.owner(BAR).expect("memory").read::<u64>(0x10), Ok(0), "the write was dropped");
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    for offset in [0xe, 0x10, 0x1c] {
        let refused = device.add_ioeventfd(0, offset, Width::Four, 1, std::os::fd::AsFd::as_fd(&event));
        assert_eq!(refused.expect_err("the table").errno(), 22);
    }
    device.add_ioeventfd(0, 0x20, Width::Four, 1, std::os::fd::AsFd::as_fd(&event)).expect("after the table");
}

#[test]
fn a_failing_buffer_is_efault_and_revokes_nothing() {
    support::start();
    struct Nowhere;
    impl Source for Nowhere {
        fn len(&self) -> usize {
            2
        }
        fn get(&self, _: usize, _: &mut [u8]) -> Result<(), BufferFault> {
            Err("nowhere".into())
        }
    }
    let device = device();
    assert_eq!(device.write(Space::Config, 4, &Nowhere).expect_err("no buffer").errno(), EFAULT);
    assert_eq!(device.write(BAR, 0, &Nowhere).expect_err("no buffer").errno(), EFAULT);
    assert!(device.is_memory_enabled());
}
