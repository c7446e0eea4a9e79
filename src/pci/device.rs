//! The device: its parts, and the spaces that a caller reads, writes and maps.

use super::bar::Wait;
use super::buffer::{Sink, Source};
use super::builder::{PciBuilder, PortIo};
use super::config::ConfigSpace;
use super::error::PciError;
use super::ioeventfd::IoEventFds;
use super::reset::ResetFn;
use crate::protocol::Changes;
use crate::protocol::caller::Caller;
use crate::region::error::MapError;
use crate::region::mapping::{MapOptions, Mapping};
use crate::region::owner::OwnerView;
use crate::region::{Region, RegionShared};
use crate::sync::current_tid;
use crate::sync::inside::Mutex;
use crate::users::Theirs;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// What of a device is read, written or mapped; vfio's region indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A base address register's memory or ports, 0 to 5.
    Bar(usize),
    /// The expansion ROM.
    Rom,
    /// Configuration space.
    Config,
}

impl Space {
    /// From vfio's region index (`VFIO_PCI_BAR0_REGION_INDEX` and so on).
    ///
    /// # Errors
    /// An index that PCI devices do not have here; 8 (VGA) among them.
    pub fn from_vfio_index(index: u32) -> Result<Self, PciError> {
        match index {
            0..=5 => Ok(Space::Bar(index as usize)),
            6 => Ok(Space::Rom),
            7 => Ok(Space::Config),
            _ => {
                let space = Space::Bar(usize::try_from(index).unwrap_or(usize::MAX));
                Err(PciError::NoSuchSpace { space, why: "no such region index" })
            }
        }
    }
}

/// What a space is good for (`VFIO_DEVICE_GET_REGION_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceInfo {
    /// In bytes; 0 for one that the device does not have.
    pub size: u64,
    /// Can it be read?
    pub read: bool,
    /// Can it be written?
    pub write: bool,
    /// Can it be mapped?
    pub map: bool,
}

/// A PCI device whose memory is revoked and given back as vfio-pci does it; see the [module](crate::pci).
///
/// A clone is the same device. With the last one its memory goes for good: mappings refuse.
#[derive(Clone)]
pub struct PciDevice {
    pub(super) device: Arc<Device>,
}

pub(super) struct Device {
    pub(super) name: String,
    /// Held for single looks and changes only; nothing is waited for under it.
    pub(super) config: Mutex<ConfigSpace>,
    pub(super) turn: Turn,
    pub(super) slots: [Option<Slot>; 6],
    pub(super) rom: Option<Memory>,
    /// The regions of all of them, in the order in which they are locked.
    pub(super) members: Vec<Arc<RegionShared>>,
    /// Does the device answer memory accesses? (`__vfio_pci_memory_enabled`.) Changed under the write side of every
    /// member's memory lock, asked under the read side of any.
    pub(super) decoding: AtomicBool,
    /// In runtime low power (`pm_runtime_engaged`). Changed like `decoding`.
    pub(super) low_power: AtomicBool,
    pub(super) virtual_function: bool,
    pub(super) reset: Option<Theirs<ResetFn>>,
    pub(super) ioeventfds: IoEventFds,
}

pub(super) enum Slot {
    Memory(Memory),
    Io(Ports),
}

impl Slot {
    pub(super) fn memory(&self) -> Option<&Memory> {
        match self {
            Slot::Memory(memory) => Some(memory),
            Slot::Io(_) => None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Slot::Memory(memory) => memory.size,
            Slot::Io(ports) => ports.size,
        }
    }
}

pub(super) struct Memory {
    pub(super) region: Region,
    /// The BAR's own size: the region may be longer, up to a page's end.
    pub(super) size: u64,
    /// In order, and apart from each other.
    pub(super) excluded: Box<[Range<u64>]>,
}

pub(super) struct Ports {
    pub(super) ports: Theirs<dyn PortIo>,
    pub(super) size: u64,
}

/// One change of the device's registers at a time, and none from inside another.
#[derive(Default)]
pub(super) struct Turn {
    /// Its holder runs callbacks.
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

    /// Is it the calling thread's turn?
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

impl PciDevice {
    /// Starts describing a device.
    pub fn builder(vendor: u16, device: u16) -> PciBuilder {
        PciBuilder::new(vendor, device)
    }

    /// Reads on a caller's behalf (`pread` of a vfio device): accesses of 1, 2, 4 or 8 bytes, as the offset's alignment
    /// allows, each by itself under the read side of the memory lock. Answers how many bytes were read, fewer than
    /// asked for at the end of a BAR.
    ///
    /// # Blocking
    /// While the device is being reset.
    ///
    /// # Errors
    /// See [`PciError`]. A transfer that is cut by a revocation is an error as a whole.
    #[inline]
    pub fn read<B: Sink + ?Sized>(&self, space: Space, offset: u64, into: &mut B) -> Result<usize, PciError> {
        self.device.read(space, offset, into, Wait::ForEver)
    }

    /// Writes on a caller's behalf; see [`read`](Self::read). Writing to configuration space does what the register
    /// does: revoke and give back memory, change the power state, reset the function.
    ///
    /// # Blocking
    /// While the device is being reset; a write that revokes, as [`Region::disable`] does.
    ///
    /// # Errors
    /// See [`PciError`]. What was written before the error stays written.
    #[inline]
    pub fn write<B: Source + ?Sized>(&self, space: Space, offset: u64, from: &B) -> Result<usize, PciError> {
        self.device.write(space, offset, from, Wait::ForEver)
    }

    /// [`read`](Self::read) for a caller with flags: with `RETRY_NOWAIT` it never waits.
    ///
    /// # Errors
    /// See [`PciError`].
    pub fn read_with<'a, B: Sink + ?Sized>(
        &self,
        space: Space,
        offset: u64,
        into: &mut B,
        caller: impl Into<Caller<'a>>,
    ) -> Result<usize, PciError> {
        self.device.read(space, offset, into, Wait::As(caller.into()))
    }

    /// [`write`](Self::write) for a caller with flags. They are about BARs: a write to configuration space that revokes
    /// memory waits all the same.
    ///
    /// # Errors
    /// See [`PciError`].
    pub fn write_with<'a, B: Source + ?Sized>(
        &self,
        space: Space,
        offset: u64,
        from: &B,
        caller: impl Into<Caller<'a>>,
    ) -> Result<usize, PciError> {
        self.device.write(space, offset, from, Wait::As(caller.into()))
    }

    /// Maps a BAR, or a part of it, in whatever state the device is.
    ///
    /// # Errors
    /// I/O ports, the ROM and configuration space cannot be mapped (EINVAL); as [`Region::map`] otherwise.
    pub fn map(&self, bar: Space, options: MapOptions) -> Result<Mapping, PciError> {
        match self.region(bar) {
            Some(region) if bar != Space::Rom => region.map(options).map_err(|e: MapError| e.into()),
            _ => Err(PciError::NoSuchSpace { space: bar, why: "only memory BARs can be mapped" }),
        }
    }

    /// The region behind a memory BAR or the ROM: for pins, notifiers and statistics. Its state is the device's to
    /// change, by its registers.
    pub fn region(&self, space: Space) -> Option<&Region> {
        self.device.memory(space).map(|memory| &memory.region)
    }

    /// The device side's view of a memory BAR or the ROM, which no revocation touches.
    pub fn owner(&self, space: Space) -> Option<&OwnerView> {
        self.region(space).map(Region::owner)
    }

    /// What a space is good for.
    pub fn info(&self, space: Space) -> SpaceInfo {
        let device = &*self.device;
        match space {
            Space::Config => {
                SpaceInfo { size: device.config.lock().size() as u64, read: true, write: true, map: false }
            }
            Space::Rom => {
                let size = device.rom.as_ref().map_or(0, |rom| rom.size);
                SpaceInfo { size, read: size > 0, write: false, map: false }
            }
            Space::Bar(index) => match device.slots.get(index).and_then(Option::as_ref) {
                Some(slot) => SpaceInfo { size: slot.size(), read: true, write: true, map: slot.memory().is_some() },
                None => SpaceInfo { size: 0, read: false, write: false, map: false },
            },
        }
    }

    /// Can mappings of its BARs reach memory? PCI_COMMAND.MEM is set, the power state is below D3hot, and it is not in low
    /// power.
    pub fn is_memory_enabled(&self) -> bool {
        self.device.decoding.load(Ordering::Relaxed) && !self.is_low_power()
    }

    /// The name given.
    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// Lets the owner make accesses that no other access comes in between, whatever state the device is in: setting up
    /// MSI-X, for one (`vfio_pci_memory_lock_and_enable`). `work` goes through the [owner's views](Self::owner).
    ///
    /// **This bypasses the gate:** it works on a device whose memory is disabled, and nobody is told. No mapping is zapped;
    /// what is mapped already goes on reaching the memory meanwhile. Reads and writes by call, faults, ioeventfds and
    /// changes of state wait for its end. So `work` does not touch the device's mappings other than by `try_` accesses: a page
    /// fault there would wait for its end too.
    ///
    /// # Blocking
    /// Waits for single accesses and for changes of state.
    ///
    /// # Errors
    /// Called from inside a notifier or a reset callback.
    pub fn privileged<R>(&self, work: impl FnOnce(&Self) -> R) -> Result<R, PciError> {
        let _turn = self.device.take_turn()?;
        let _locked = Changes::lock_out(&self.device.members)?;
        Ok(work(self))
    }
}

impl Device {
    /// Waits for the turn, unless its owner may be waiting for the caller.
    pub(super) fn take_turn(&self) -> Result<TurnGuard<'_>, PciError> {
        if self.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        if let Some(turn) = self.turn.try_take() {
            return Ok(turn);
        }
        if self.members.iter().any(|member| member.protocol.gate.held_by_caller() > 0) {
            return Err(PciError::WouldDeadlock);
        }
        Ok(self.turn.guard(self.turn.taken.lock()))
    }

    /// Is the calling thread inside a change of the device, or of one of its regions?
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

    #[inline]
    fn read<B: Sink + ?Sized>(&self, space: Space, at: u64, into: &mut B, wait: Wait<'_>) -> Result<usize, PciError> {
        match (into.is_empty(), space) {
            (true, _) => Ok(0),
            (_, Space::Config) => self.read_config(at, into),
            _ => self.read_space(space, at, into, wait),
        }
    }

    #[inline]
    fn write<B: Source + ?Sized>(
        self: &Arc<Self>,
        space: Space,
        at: u64,
        from: &B,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        match (from.is_empty(), space) {
            (true, _) => Ok(0),
            (_, Space::Config) => self.write_config(at, from),
            (_, Space::Rom) => Err(PciError::NoSuchSpace { space, why: "the ROM is read-only" }),
            _ => self.write_space(space, at, from, wait),
        }
    }
}

impl fmt::Debug for PciDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &*self.device;
        let mut shown = f.debug_struct("PciDevice");
        shown.field("name", &device.name).field("decoding", &device.decoding).field("low_power", &device.low_power);
        for (index, slot) in device.slots.iter().enumerate() {
            match slot {
                Some(Slot::Memory(memory)) => shown.field("bar", &(index, &memory.region)),
                Some(Slot::Io(ports)) => shown.field("bar", &(index, "io", ports.size)),
                None => &mut shown,
            };
        }
        shown.finish_non_exhaustive()
    }
}
