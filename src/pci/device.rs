//! The device as its user sees it: the spaces that a caller reads, writes and maps.

use super::bar::Wait;
use super::buffer::{Sink, Source};
use super::config_access::{Writer, patience};
use super::error::PciError;
use super::space::{Space, SpaceInfo};
use super::state::{BarSlot, Device, PciDevice};
use crate::bar::Areas;
use crate::protocol::Changes;
use crate::protocol::caller::Caller;
use crate::region::Region;
use crate::region::error::MapError;
use crate::region::mapping::{MapOptions, Mapping};
use crate::region::owner::OwnerView;
use crate::sync::wait::Patience;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl PciDevice {
    /// Reads on a caller's behalf (`pread` of a vfio device): accesses of 1, 2, 4 or 8 bytes, as the offset's alignment
    /// allows, each of them under the read side of the memory lock. Returns how many bytes were read: fewer than asked for
    /// at the end of a BAR.
    ///
    /// # Blocking
    /// Waits while the device is being reset.
    ///
    /// # Errors
    /// See [`PciError`]. A transfer that a revocation cuts short is an error as a whole.
    #[inline]
    pub fn read<B: Sink + ?Sized>(&self, space: Space, offset: u64, into: &mut B) -> Result<usize, PciError> {
        self.device.read(space, offset, into, Wait::ForEver)
    }

    /// Writes on a caller's behalf; see [`read`](Self::read). A write to configuration space has the register's effect: it
    /// revokes memory or gives it back, changes the power state, or resets the function.
    ///
    /// # Blocking
    /// Waits while the device is being reset; a write that revokes also waits as [`Region::disable`] does.
    ///
    /// # Errors
    /// See [`PciError`]. What was written before the error stays written.
    #[inline]
    pub fn write<B: Source + ?Sized>(&self, space: Space, offset: u64, from: &B) -> Result<usize, PciError> {
        self.device.write(space, offset, from, Wait::ForEver)
    }

    /// [`read`](Self::read) for a caller with flags: with `RETRY_NOWAIT` it never waits.
    ///
    /// ```
    /// use revocable_mmio::fault::FaultFlags;
    /// use revocable_mmio::pci::{Bar, PciDevice, PciError, Space};
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
    /// nic.write_with(Space::Bar(0), 8, &[7, 0, 0, 0][..], FaultFlags::NOWAIT)?;
    /// let mut value = [0; 4];
    /// match nic.read_with(Space::Bar(0), 8, &mut value[..], FaultFlags::NOWAIT) {
    ///     Err(PciError::WouldBlock { .. }) => {} // a reset is under way: later
    ///     done => assert_eq!((done?, value), (4, [7, 0, 0, 0])),
    /// }
    /// # Ok::<(), PciError>(())
    /// ```
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

    /// [`write`](Self::write) for a caller with flags: with `RETRY_NOWAIT` it waits for no guard, pin, access or other change
    /// of the device, in configuration space either. It begins no reset, and does not let a device with a
    /// [`DmaSpace`](crate::pci::DmaSpace) of its own become a bus master, since that maps memory. What the write has to do (revoke memory, tell
    /// notifiers and maps) it does; [`begin_write`](Self::begin_write) leaves that to another thread. Without that flag a
    /// write to configuration space waits as `write` does.
    ///
    /// # Errors
    /// See [`PciError`]. EAGAIN: the register is as before.
    pub fn write_with<'a, B: Source + ?Sized>(
        &self,
        space: Space,
        offset: u64,
        from: &B,
        caller: impl Into<Caller<'a>>,
    ) -> Result<usize, PciError> {
        self.device.write(space, offset, from, Wait::As(caller.into()))
    }

    /// Maps a BAR, or a part of it, whatever state the device is in.
    ///
    /// # Errors
    /// I/O ports, the ROM, configuration space and a BAR of areas, which are mapped each by itself, cannot be mapped (EINVAL); otherwise as [`Region::map`].
    pub fn map(&self, bar: Space, options: MapOptions) -> Result<Mapping, PciError> {
        match self.region(bar) {
            Some(region) if bar != Space::Rom => region.map(options).map_err(|e: MapError| e.into()),
            _ => Err(PciError::NoSuchSpace { space: bar, why: "only memory BARs can be mapped" }),
        }
    }

    /// The region of a memory BAR or the ROM: for pins, notifiers, statistics, and the descriptor of a
    /// [shared](super::Bar::shared) BAR ([`Region::share`]). The device changes its state, through its registers; the caller
    /// must not.
    pub fn region(&self, space: Space) -> Option<&Region> {
        self.device.memory(space).map(|memory| &memory.region)
    }

    /// The areas of a BAR that was described by [`Bar::areas`](super::Bar::areas): to insert some.
    pub fn areas(&self, bar: Space) -> Option<&Areas> {
        match bar {
            Space::Bar(index) => self.device.slots.get(index)?.as_ref()?.areas(),
            Space::Rom | Space::Config => None,
        }
    }

    /// The device's own view of a memory BAR or the ROM, which no revocation touches.
    pub fn owner(&self, space: Space) -> Option<&OwnerView> {
        self.region(space).map(Region::owner)
    }

    /// The size of a space, and what can be done with it.
    pub fn info(&self, space: Space) -> SpaceInfo {
        let device = &*self.device;
        match space {
            Space::Config => SpaceInfo { size: device.config_size as u64, read: true, write: true, map: false },
            Space::Rom => {
                let size = device.rom.as_ref().map_or(0, BarSlot::size);
                SpaceInfo { size, read: size > 0, write: false, map: false }
            }
            Space::Bar(index) => match device.slots.get(index).and_then(Option::as_ref) {
                Some(slot) => SpaceInfo { size: slot.size(), read: true, write: true, map: slot.memory().is_some() },
                None => SpaceInfo { size: 0, read: false, write: false, map: false },
            },
        }
    }

    /// True if mappings of its BARs reach memory: PCI_COMMAND.MEM is set, the power state is below D3hot, and the device is
    /// not in low power.
    pub fn is_memory_enabled(&self) -> bool {
        self.device.decoding.load(Ordering::Relaxed) && !self.is_low_power()
    }

    /// The name that the builder was given.
    pub fn name(&self) -> &str {
        &self.device.name
    }

    /// Runs `work`, the owner's accesses, with no other access in between, whatever state the device is in: for setting up
    /// MSI-X, for instance (`vfio_pci_memory_lock_and_enable`). `work` goes through the [owner's views](Self::owner).
    ///
    /// **This bypasses the gate:** it works on a device whose memory is disabled, and no notifier is told. No mapping is
    /// zapped; pages that are mapped already go on reaching the memory meanwhile. Reads and writes by call, faults,
    /// ioeventfds and changes of state wait for the end of `work`. So `work` must touch the device's mappings by `try_`
    /// accesses only: a page fault there would wait for its end too.
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, PciDevice, Space};
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build()?; // memory is off
    /// let table = 0x1_0000; // of MSI-X vectors
    /// nic.privileged(|nic| nic.owner(Space::Bar(0)).map(|bar| bar.write(table, 0xfee0_0000_u32)))?.ok_or("memory")??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Waits for single accesses and for changes of state.
    ///
    /// # Errors
    /// It was called from inside a notifier or a reset callback.
    pub fn privileged<R>(&self, work: impl FnOnce(&Self) -> R) -> Result<R, PciError> {
        let turn = self.device.take_turn(Patience::Forever)?;
        let members = turn.members();
        let _locked = Changes::lock_out(&members)?;
        Ok(work(self))
    }
}

impl Device {
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
            (_, Space::Config) => self.write_config(at, from, patience(wait)?, Writer::Caller),
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
                Some(BarSlot::Memory(memory)) => shown.field("bar", &(index, &memory.region)),
                Some(BarSlot::Io(ports)) => shown.field("bar", &(index, "io", ports.size)),
                Some(BarSlot::Areas(bar)) => shown.field("bar", &(index, bar.areas())),
                None => &mut shown,
            };
        }
        shown.finish_non_exhaustive()
    }
}

impl Space {
    /// From vfio's region index (`VFIO_PCI_BAR0_REGION_INDEX` and so on).
    ///
    /// # Errors
    /// An index that devices do not have here, such as 8 (VGA).
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
