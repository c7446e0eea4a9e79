//! The devices of the recording, as far as the library models them, and the text form of outcomes.

use crate::suite::Suite;
use crate::support::raw::{BUS_ADRERR, Hit};
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::{Bar, PciBuilder, PciDevice, PciError, PortIo, Space};
use revocable_mmio::{MapOptions, Mapping};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) const BAR0: Space = Space::Bar(0);
pub(crate) const BAR2: Space = Space::Bar(2);
pub(crate) const BAR3: Space = Space::Bar(3);
pub(crate) const COMMAND: u64 = 4;
pub(crate) const MEMORY: u16 = 2;
pub(crate) const BIG: usize = 16 << 20;

/// Inter-VM shared memory: a register BAR of 256 bytes and 16 MiB of memory.
pub(crate) fn ivshmem_builder(suite: &Suite) -> PciBuilder {
    PciDevice::builder(0x1af4, 0x1110)
        .command(0x0103)
        .bar(0, Bar::memory(256))
        .bar(2, Bar::memory(BIG as u64).wide().prefetchable())
        .strategy(suite.strategy)
}

pub(crate) fn ivshmem(suite: &Suite) -> PciDevice {
    ivshmem_builder(suite).build().expect("an ivshmem")
}

/// A NIC with register memory, I/O ports, MSI-X in BAR 3, power management, and no function-level reset.
pub(crate) fn e1000e(suite: &Suite) -> PciDevice {
    PciDevice::builder(0x8086, 0x10d3)
        .command(0x0103)
        .bar(0, Bar::memory(128 << 10))
        .bar(2, Bar::io(32, Arc::new(Ports(AtomicU64::new(0)))))
        .bar(3, Bar::memory(16 << 10).exclude(0..0x50))
        .power(0xc8)
        .strategy(suite.strategy)
        .on_reset(|_, _| Ok(()))
        .build()
        .expect("an e1000e")
}

/// An NVMe controller with function-level reset.
pub(crate) fn nvme(suite: &Suite) -> PciDevice {
    PciDevice::builder(0x1b36, 0x0010)
        .command(0x0103)
        .bar(0, Bar::memory(16 << 10).wide())
        .express(0x80)
        .strategy(suite.strategy)
        .on_reset(|_, _| Ok(()))
        .build()
        .expect("an nvme")
}

struct Ports(AtomicU64);

impl PortIo for Ports {
    fn read(&self, _: u64, into: &mut [u8]) {
        let value = self.0.load(Ordering::Relaxed).to_le_bytes();
        into.copy_from_slice(&value[..into.len()]);
    }

    fn write(&self, _: u64, bytes: &[u8]) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.0.store(u64::from_le_bytes(value), Ordering::Relaxed);
    }
}

pub(crate) fn map(device: &PciDevice, bar: Space) -> Mapping {
    device.map(bar, MapOptions::new()).expect("a mapping")
}

/// Clears the memory bit, and returns what the system call would.
pub(crate) fn off(device: &PciDevice) -> String {
    rc(device.write(Space::Config, COMMAND, &(device.command() & !MEMORY).to_le_bytes()[..]))
}

/// Sets the memory bit.
pub(crate) fn on(device: &PciDevice) -> String {
    rc(device.write(Space::Config, COMMAND, &(device.command() | MEMORY).to_le_bytes()[..]))
}

pub(crate) fn command(device: &PciDevice) -> String {
    format!("{:#06x}", device.command())
}

pub(crate) fn rc<T: std::fmt::Display>(result: Result<T, PciError>) -> String {
    result.map_or_else(|e| format!("-1 {}", errno(&e)), |value| value.to_string())
}

/// For calls that return 0.
pub(crate) fn zero(result: Result<(), PciError>) -> String {
    rc(result.map(|()| 0))
}

/// For calls that return an address.
pub(crate) fn ok<T>(result: Result<T, PciError>) -> String {
    rc(result.map(|_| "ok"))
}

pub(crate) fn errno(e: &PciError) -> String {
    format!("{:?}", Errno::from_raw(e.errno()))
}

/// A system call's result.
pub(crate) fn sys(answer: isize) -> String {
    if answer < 0 { format!("-1 {:?}", Errno::last()) } else { answer.to_string() }
}

/// The signal, its code, and its address, as the data writes them.
pub(crate) fn show(hit: Hit, base: *const u8) -> String {
    let (name, code) = match (hit.signal, hit.code) {
        (libc::SIGBUS, BUS_ADRERR) => ("SIGBUS", "BUS_ADRERR"),
        (libc::SIGSEGV, 1) => ("SIGSEGV", "SEGV_MAPERR"),
        (libc::SIGSEGV, 2) => ("SIGSEGV", "SEGV_ACCERR"),
        _ => ("signal", "code"),
    };
    let offset = hit.addr.wrapping_sub(base.addr());
    format!("{name} {code}({}) si_addr=base+{offset:#x}", hit.code)
}

/// The signal's name alone.
pub(crate) fn short(hit: Hit) -> String {
    if hit.signal == libc::SIGBUS { "SIGBUS".into() } else { "SIGSEGV".into() }
}

/// `ok 0x..`, or the signal.
pub(crate) fn loaded(result: Result<u64, Hit>, base: *const u8) -> String {
    result.map_or_else(|hit| show(hit, base), |value| format!("ok {value:#x}"))
}

/// `0x..`, or the signal's name.
pub(crate) fn value(result: Result<u64, Hit>) -> String {
    result.map_or_else(short, |value| format!("{value:#x}"))
}

/// `ok`, or the signal.
pub(crate) fn done(result: Result<(), Hit>, base: *const u8) -> String {
    result.map_or_else(|hit| show(hit, base), |()| "ok".into())
}

pub(crate) fn pread(device: &PciDevice, space: Space, at: u64, len: usize) -> String {
    rc(device.read(space, at, &mut vec![0; len][..]))
}

pub(crate) fn pwrite(device: &PciDevice, space: Space, at: u64, bytes: &[u8]) -> String {
    rc(device.write(space, at, bytes))
}

pub(crate) fn config<const N: usize>(device: &PciDevice, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    device.read(Space::Config, at, &mut bytes[..]).expect("configuration space");
    bytes
}

/// How often mappings of a space have been revoked or held. This shows a zap, whatever faults it costs later.
pub(crate) fn zaps(device: &PciDevice, space: Space) -> u64 {
    let stats = device.region(space).expect("a memory BAR").stats();
    stats.disables + stats.resets
}

/// Tells a zap as the recording does, which saw it by a refault.
pub(crate) fn zapped(before: u64, after: u64) -> &'static str {
    if after > before { "minor faults 1: it had been zapped" } else { "minor faults 0: it had not been zapped" }
}
