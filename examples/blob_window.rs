//! A GPU's host-visible window: blobs are mapped into a BAR and unmapped while the guest runs, as virtio-gpu does it
//! (and virtio-fs with files of its DAX cache).
//!
//! `cargo run --example blob_window`. The hypervisor prints what it is told; with feature `kvm` it is a `kvm_ioctls::VmFd`.
#![expect(unsafe_code, reason = "a hypervisor takes addresses")]

use nix::sys::memfd::{MFdFlags, memfd_create};
use revocable_mmio::bar::{self, Area, BarError, DeviceIo};
use revocable_mmio::memslot::{Memslots, Retention, SetMemslot, SlotMemory};
use revocable_mmio::pci::{Bar, BarSlots, PciDevice, Space};
use revocable_mmio::{Backing, Region};
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

const WINDOW: Space = Space::Bar(2);

struct Hypervisor;

impl SetMemslot for Hypervisor {
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        println!("    memslot {} at {:#x}, {:#x} bytes", memory.slot, memory.gpa, memory.size);
        Ok(())
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        println!("    memslot {} is out", memory.slot);
        Ok(())
    }
}

/// The first page of the window is the device's.
struct Registers;

impl DeviceIo for Registers {
    fn read(&self, _offset: u64, into: &mut [u8]) {
        into.fill(0);
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        println!("    the device hears {bytes:?} at {offset:#x}");
    }
}

struct Gpu {
    pci: PciDevice,
    /// By resource id. Dropping one unmaps it.
    mapped: BTreeMap<u32, Area>,
}

impl Gpu {
    fn new(slots: &Memslots) -> Result<Self, Box<dyn Error>> {
        let window = bar::Bar::builder(256 << 20).trap(0..0x1000, Arc::new(Registers));
        let window = Bar::areas(window.memslots(slots, 8..64, Retention::AllOnes)).wide().prefetchable();
        let pci = PciDevice::builder(0x1af4, 0x1050).name("gpu").bar(2, window).build()?;
        Ok(Self { pci, mapped: BTreeMap::new() })
    }

    /// VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB. In any state of the device.
    fn map_blob(&mut self, id: u32, offset: u64, file: impl AsFd, len: usize) -> Result<(), BarError> {
        let Some(areas) = self.pci.areas(WINDOW) else { return Ok(()) };
        let backing = Backing::file(file.as_fd(), 0)?;
        let blob = Region::builder(len).name(format!("blob {id}")).backing(backing);
        self.mapped.insert(id, areas.insert(offset, blob)?);
        Ok(())
    }

    /// VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB. An error leaves it mapped.
    fn unmap_blob(&mut self, id: u32) -> Result<(), BarError> {
        self.mapped.get_mut(&id).map_or(Ok(()), Area::remove)?;
        self.mapped.remove(&id);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let slots = Memslots::new(Arc::new(Hypervisor));
    let mut gpu = Gpu::new(&slots)?;
    let areas = gpu.pci.areas(WINDOW).ok_or("a BAR of areas")?.clone();
    let _following = gpu.pci.follow(Arc::new(BarSlots::new(WINDOW, slots).areas(areas.clone()).stays_while_off()))?;
    let blob = memfd_create("blob", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&blob, 1 << 20)?;

    println!("the guest places the window and turns memory on");
    gpu.pci.write(Space::Config, 0x18, &[0, 0, 0, 0xe0, 0, 0, 0, 0][..])?;
    gpu.pci.write(Space::Config, 4, &[2, 0][..])?;
    println!("a blob is mapped, and seen by the guest");
    gpu.map_blob(1, 0x10_0000, &blob, 1 << 20)?;
    gpu.pci.write(WINDOW, 0x10_0000, &7u32.to_le_bytes()[..])?;
    gpu.pci.write(WINDOW, 8, &[1][..])?;

    println!("memory off: the window reads ones, also where a blob is mapped meanwhile");
    gpu.pci.write(Space::Config, 4, &[0, 0][..])?;
    gpu.map_blob(2, 0x20_0000, &blob, 1 << 20)?;
    let mut value = [0; 4];
    assert!(gpu.pci.read(WINDOW, 0x20_0000, &mut value[..]).is_err());

    println!("memory on: both blobs are the same file");
    gpu.pci.write(Space::Config, 4, &[2, 0][..])?;
    gpu.pci.read(WINDOW, 0x20_0000, &mut value[..])?;
    assert_eq!(u32::from_le_bytes(value), 7);
    println!("the guest moves the window, and the first blob is unmapped");
    gpu.pci.write(Space::Config, 0x18, &[0, 0, 0, 0xf0, 0, 0, 0, 0][..])?;
    gpu.unmap_blob(1)?;
    assert_eq!(areas.ranges(), std::iter::once(0x20_0000..0x30_0000).collect::<Vec<_>>());
    println!("the GPU goes");
    Ok(())
}
