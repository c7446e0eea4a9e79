//! A device's state: its parts, the conditions for its memory to be reachable, and the turn to change it.

use super::address_map::Followers;
use super::begun::BegunWrites;
use super::command_hook::CommandFn;
use super::config::ConfigSpace;
use super::dma::DmaSpace;
use super::error::PciError;
use super::hardware::Real;
use super::ioeventfd_table::IoEventFds;
use super::space::Space;
use crate::protocol::State;
use crate::region::Region;
use crate::region::shared::RegionShared;
use crate::sync::current_tid;
use crate::sync::inside::Mutex;
use crate::sync::wait::Patience;
use crate::users::Theirs;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A PCI device whose memory is revoked and given back as vfio-pci does it; see the [module](crate::pci).
///
/// A clone is the same device. When the last one is dropped, the memory goes for good: mappings refuse.
///
/// ```
/// use revocable_mmio::pci::{Bar, DmaSpace, IoEventLoop, PciBuilder, PciDevice, PciError, Space};
/// use revocable_mmio::{MapOptions, Monitor, Strategy};
/// use std::sync::Arc;
///
/// /// A NIC of PCI Express. Its reset clears the first register.
/// fn describe() -> PciBuilder {
///     PciDevice::builder(0x8086, 0x10d3)
///         .name("nic")
///         .subsystem(0x8086, 0xa01f)
///         .class(0x02_00_00, 1)
///         .bar(0, Bar::memory(0x20000))
///         .rom(b"\x55\xaa")
///         .power(0x40) // or `power_with_d1_d2`
///         .express(0x50)
///         .extended()
///         .config(0x100, &[0x03, 0, 1, 0], &[]) // a capability, read-only
///         .on_reset(|nic, _| nic.owner(Space::Bar(0)).map_or(Ok(()), |owner| owner.write(0, 0_u32)).map_err(std::io::Error::other))
///         .revoked_after_failed_reset()
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nic = describe().strategy(Strategy::Replace).command(2).build()?; // memory on
/// let mapping = nic.map(Space::Bar(0), MapOptions::new())?;
/// mapping.write(0, 7_u32)?;
/// nic.reset()?;
/// assert_eq!(mapping.read::<u32>(0)?, 0);
///
/// nic.write(Space::Config, 4, &[0, 0][..])?; // the guest clears PCI_COMMAND.MEM
/// assert!(!nic.is_memory_enabled() && mapping.read::<u32>(0).is_err());
/// let error: PciError = nic.read(Space::Bar(0), 0, &mut [0; 4][..]).unwrap_err();
/// assert_eq!(error.errno(), 5); // EIO, as vfio-pci returns it
/// nic.write(Space::Config, 0x44, &[3, 0][..])?;
/// assert_eq!((nic.name(), nic.power_state()), ("nic", 3));
/// assert_eq!(nic.region(Space::Bar(0)).map(|bar| bar.stats().pins), Some(0));
///
/// /// The same as a virtual function, with what a process has already.
/// fn virtual_nic(monitor: Monitor, kicks: IoEventLoop, dma: Arc<DmaSpace>) -> Result<PciDevice, PciError> {
///     describe().virtual_function().monitor(monitor).io_event_loop(kicks).bus_master(dma).build()
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PciDevice {
    pub(super) device: Arc<Device>,
}

pub(super) struct Device {
    pub(super) name: String,
    /// Locked for single looks and changes only; no thread waits while it holds the lock.
    pub(super) config: Mutex<ConfigSpace>,
    /// The size of `config` in bytes, which never changes.
    pub(super) config_size: usize,
    pub(super) turn: Turn,
    pub(super) slots: [Option<BarSlot>; 6],
    pub(super) rom: Option<Memory>,
    /// The regions of all BARs and the ROM, in the order in which they are locked.
    pub(super) members: Vec<Arc<RegionShared>>,
    /// True if the device decodes memory accesses (`__vfio_pci_memory_enabled`). Changed under the write side of every
    /// member's memory lock, read under the read side of any.
    pub(super) decoding: AtomicBool,
    /// True in runtime low power (`pm_runtime_engaged`). Changed like `decoding`.
    pub(super) low_power: AtomicBool,
    /// A reset has failed, and the memory stays disabled until one succeeds. Changed by the holder of the turn.
    pub(super) failed: AtomicBool,
    pub(super) virtual_function: bool,
    pub(super) reset: Option<Theirs<ResetFn>>,
    pub(super) revoked_after_failed_reset: bool,
    /// Through which it is a bus master.
    pub(super) dma: Option<Arc<DmaSpace>>,
    pub(super) on_command: Option<Theirs<CommandFn>>,
    /// After the memory: dropped later, so that the memory goes first.
    pub(super) followers: Followers,
    pub(super) begun: BegunWrites,
    pub(super) ioeventfds: IoEventFds,
    /// The device itself, if it is a real one.
    pub(super) real: Real,
}

pub(super) enum BarSlot {
    Memory(Memory),
    Io(Ports),
}

impl BarSlot {
    pub(super) fn memory(&self) -> Option<&Memory> {
        match self {
            BarSlot::Memory(memory) => Some(memory),
            BarSlot::Io(_) => None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            BarSlot::Memory(memory) => memory.size,
            BarSlot::Io(ports) => ports.size,
        }
    }
}

pub(super) struct Memory {
    pub(super) region: Region,
    /// The BAR's own size: the region may be longer, up to a page's end.
    pub(super) size: u64,
    /// In order, and not touching each other.
    pub(super) excluded: Box<[Range<u64>]>,
}

pub(super) struct Ports {
    pub(super) ports: Theirs<dyn PortIo>,
    pub(super) size: u64,
}

/// The turn to change the device's registers: one thread at a time, and not from inside another change.
#[derive(Default)]
pub(super) struct Turn {
    /// Its holder may run callbacks.
    taken: parking_lot::Mutex<()>,
    by: AtomicI32,
}

pub(super) struct TurnGuard<'a> {
    turn: &'a Turn,
    _taken: parking_lot::MutexGuard<'a, ()>,
}

impl Turn {
    pub(super) fn try_take(&self) -> Option<TurnGuard<'_>> {
        self.taken.try_lock().map(|taken| self.guard(taken))
    }

    fn take(&self, patience: Patience) -> Option<TurnGuard<'_>> {
        let taken = match patience {
            Patience::Forever => Some(self.taken.lock()),
            Patience::Never => self.taken.try_lock(),
            Patience::Until(deadline) => self.taken.try_lock_until(deadline),
        };
        taken.map(|taken| self.guard(taken))
    }

    /// True if it is the calling thread's turn.
    pub(super) fn is_caller(&self) -> bool {
        // Relaxed, here and below: only ever compared with the reading thread's own id.
        self.by.load(Ordering::Relaxed) == current_tid()
    }

    fn guard<'a>(&'a self, taken: parking_lot::MutexGuard<'a, ()>) -> TurnGuard<'a> {
        self.by.store(current_tid(), Ordering::Relaxed);
        TurnGuard { turn: self, _taken: taken }
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.turn.by.store(0, Ordering::Relaxed);
    }
}

pub(super) type ResetFn = dyn Fn(&PciDevice, ResetKind) -> io::Result<()> + Send + Sync;

/// The cause of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetKind {
    /// [`PciDevice::reset`] (`VFIO_DEVICE_RESET`).
    Call,
    /// Function Level Reset, through the PCI Express capability.
    FunctionLevel,
    /// The reset of the bus, [`Bus::hot_reset`](super::Bus::hot_reset).
    Bus,
}

/// I/O ports of a device, emulated by the implementation. PCI_COMMAND.MEM does not gate them.
///
/// It is called by the thread that reads or writes by call, and by the ioeventfds' loop, where a panic ends only the one
/// write. No lock of the crate is held.
pub trait PortIo: Send + Sync {
    /// A read of 1, 2 or 4 bytes, or of 8 for a caller that asks for 8 at an aligned offset.
    fn read(&self, offset: u64, into: &mut [u8]);
    /// A write of as many bytes.
    fn write(&self, offset: u64, bytes: &[u8]);
}

/// The conditions for memory to be reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// The device decodes memory accesses.
    pub(super) decoding: bool,
    /// The device is in runtime low power: mappings are revoked, calls work.
    pub(super) low_power: bool,
}

impl Reach {
    /// True if mappings reach memory.
    pub(super) fn mapped(self) -> bool {
        self.decoding && !self.low_power
    }

    pub(super) fn state(self) -> State {
        if self.mapped() { State::Enabled } else { State::Disabled }
    }
}

impl Device {
    /// Takes the turn; waits for it as long as `patience` allows, unless its holder may be waiting for the caller.
    pub(super) fn take_turn(&self, patience: Patience) -> Result<TurnGuard<'_>, PciError> {
        if self.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        if let Some(turn) = self.turn.try_take() {
            return Ok(turn);
        }
        if self.members.iter().any(|member| member.protocol.gate.held_by_caller() > 0) {
            return Err(PciError::WouldDeadlock);
        }
        self.turn.take(patience).ok_or_else(|| PciError::Busy { name: self.name.clone() })
    }

    /// True if the calling thread is inside a change of the device, or of one of its regions.
    pub(super) fn is_changed_by_caller(&self) -> bool {
        self.turn.is_caller() || self.members.iter().any(|member| member.protocol.is_changed_by_caller())
    }

    #[inline]
    pub(super) fn memory(&self, space: Space) -> Option<&Memory> {
        match space {
            Space::Bar(index) => self.slots.get(index)?.as_ref()?.memory(),
            Space::Rom => self.rom.as_ref(),
            Space::Config => None,
        }
    }

    pub(super) fn reach(&self) -> Reach {
        // Relaxed: only the holder of the turn changes these; other readers take them as a hint.
        Reach { decoding: self.decoding.load(Ordering::Relaxed), low_power: self.low_power.load(Ordering::Relaxed) }
    }

    /// What the memory bit counts as, if not as itself (`__vfio_pci_memory_enabled`).
    pub(super) fn ungated(&self) -> Option<bool> {
        // Relaxed: as for `reach`.
        match (self.failed.load(Ordering::Relaxed), self.virtual_function) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    }

    /// The caller holds the write side of every member's memory lock.
    pub(super) fn set_reach(&self, reach: Reach) {
        self.decoding.store(reach.decoding, Ordering::Relaxed);
        self.low_power.store(reach.low_power, Ordering::Relaxed);
    }

    pub(super) fn has(&self, member: &RegionShared) -> bool {
        self.members.iter().any(|own| std::ptr::eq(&**own, member))
    }
}
