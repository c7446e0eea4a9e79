//! A virtio block device whose guest has it read straight into another device's BAR. The BAR is taken away, and the request
//! fails with an I/O error that the guest sees; without a revocable region the VMM would die of SIGBUS. Needs Linux and no
//! privilege.
//!
//! `cargo run --features vm-memory --example virtio_bar`

use revocable_mmio::vm_memory::{AnyRegion, RevocableRegion};
use revocable_mmio::{MapOptions, Region};
use std::error::Error;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestRegionCollection, GuestRegionMmap};

type Memory = GuestRegionCollection<AnyRegion<GuestRegionMmap>>;

/// Guest physical addresses: the parts of a split virtqueue, a request's header and status in RAM; the BAR.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const BAR: u64 = 0xe000_0000;

const QUEUE: u16 = 8;
const SECTOR: u32 = 512;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

fn at(start: u64, offset: u64) -> GuestAddress {
    GuestAddress(start + offset)
}

/// The device: reads sectors of its disk into the guest's buffers.
struct Disk {
    content: Vec<u8>,
    next: u16,
}

impl Disk {
    /// Serves every request that is available. An error is the queue's own: the guest has put it where it has no RAM.
    fn serve(&mut self, memory: &Memory) -> Result<(), GuestMemoryError> {
        while self.next != memory.read_obj::<u16>(at(AVAILABLE, 2))? {
            let slot = u64::from(self.next % QUEUE);
            let head = memory.read_obj::<u16>(at(AVAILABLE, 4 + 2 * slot))?;
            let written = self.request(memory, head)?;
            memory.write_obj([u32::from(head), written], at(USED, 4 + 8 * slot))?;
            self.next = self.next.wrapping_add(1);
            memory.write_obj(self.next, at(USED, 2))?;
        }
        Ok(())
    }

    /// One request: a header, the buffer, the status. Returns how many bytes were written.
    fn request(&self, memory: &Memory, head: u16) -> Result<u32, GuestMemoryError> {
        let mut parts = [(GuestAddress(0), 0u32); 3];
        let mut index = head;
        for part in &mut parts {
            let descriptor = at(DESCRIPTORS, 16 * u64::from(index % QUEUE));
            *part = (GuestAddress(memory.read_obj(descriptor)?), memory.read_obj(at(descriptor.0, 8))?);
            index = memory.read_obj(at(descriptor.0, 14))?;
        }
        let [(header, _), (buffer, len), (status, _)] = parts;
        let start = memory.read_obj::<u64>(at(header.0, 8))?.checked_mul(u64::from(SECTOR));
        let start = start.and_then(|start| usize::try_from(start).ok());
        let from = start.and_then(|start| self.content.get(start..)?.get(..len as usize));
        let refused = |error| println!("  device: {error}");
        let done = match from.map(|data| memory.write_slice(data, buffer).map_err(refused)) {
            Some(Ok(())) => OK,
            _ => IO_ERROR,
        };
        memory.write_obj(done, status)?;
        Ok(if done == OK { len + 1 } else { 1 })
    }
}

/// The guest's driver asks for sector 1, into its other device's BAR.
fn ask(memory: &Memory, turn: u16) -> Result<(), GuestMemoryError> {
    memory.write_obj(1u64, at(HEADER, 8))?;
    let chain = [(HEADER, 16u32, NEXT), (BAR, SECTOR, NEXT | WRITE), (STATUS, 1, WRITE)];
    for (index, (addr, len, flags)) in (0u16..).zip(chain) {
        let descriptor = at(DESCRIPTORS, 16 * u64::from(index));
        memory.write_obj(addr, descriptor)?;
        memory.write_obj(len, at(descriptor.0, 8))?;
        memory.write_obj([flags, index + 1], at(descriptor.0, 12))?;
    }
    memory.write_obj(0u16, at(AVAILABLE, 4 + 2 * u64::from(turn % QUEUE)))?;
    memory.write_obj(turn + 1, at(AVAILABLE, 2))
}

fn main() -> Result<(), Box<dyn Error>> {
    let bar = Region::builder(64 << 10).name("bar0").build()?;
    let window = RevocableRegion::new(GuestAddress(BAR), Arc::new(bar.map(MapOptions::new())?))?;
    let ram = GuestRegionMmap::from_range(GuestAddress(0), 0x1_0000, None)?;
    let memory = Memory::from_regions(vec![AnyRegion::Ram(ram), AnyRegion::Revocable(window)])?;
    let mut disk = Disk { content: vec![0; 2048], next: 0 };

    for (turn, content, expected) in [(0, 0x50, OK), (1, 0x51, IO_ERROR), (2, 0x52, OK)] {
        if expected == OK {
            bar.enable()?
        } else {
            bar.disable()?
        };
        println!("BAR {}:", if bar.is_enabled() { "enabled" } else { "disabled" });
        disk.content.fill(content);
        ask(&memory, turn)?;
        disk.serve(&memory)?;
        let status = memory.read_obj::<u8>(GuestAddress(STATUS))?;
        println!("  guest: status {status}, and the BAR's first byte is {:#x}", bar.owner().read::<u8>(0)?);
        if status != expected {
            return Err("another status was expected".into());
        }
    }
    Ok(())
}
