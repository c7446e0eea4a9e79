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
use crate::bar::{self, Areas, AreasTurn, DeviceIo};
use crate::protocol::error::RevokeError;
use crate::protocol::{Failed, State, WaitFor};
use crate::region::Region;
use crate::region::shared::RegionShared;
use crate::sync::inside::Mutex;
use crate::sync::wait::Patience;
use crate::users::Theirs;
use crate::users::turn::{Turn, TurnGuard};
use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Locked for single looks and changes only; no thread waits while it holds the lock, for a real device neither.
    pub(super) config: Mutex<ConfigSpace>,
    /// The size of `config` in bytes, which never changes.
    pub(super) config_size: usize,
    pub(super) turn: Turn,
    pub(super) slots: [Option<BarSlot>; 6],
    pub(super) rom: Option<BarSlot>,
    /// The regions of all BARs and the ROM, but those of areas, in the order in which they are locked.
    pub(super) fixed: Vec<Arc<RegionShared>>,
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
    /// Held over a change of registers and the real device's: it gets them in the order in which they were made. Taken before
    /// `config`.
    pub(super) in_order: Mutex<()>,
}

pub(super) enum BarSlot {
    Memory(Memory),
    Io(Ports),
    Areas(bar::Bar),
}

impl BarSlot {
    pub(super) fn memory(&self) -> Option<&Memory> {
        match self {
            BarSlot::Memory(memory) => Some(memory),
            BarSlot::Io(_) | BarSlot::Areas(_) => None,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            BarSlot::Memory(memory) => memory.size,
            BarSlot::Io(ports) => ports.size,
            BarSlot::Areas(bar) => bar.areas().size(),
        }
    }

    pub(super) fn areas(&self) -> Option<&Areas> {
        match self {
            BarSlot::Areas(bar) => Some(bar.areas()),
            BarSlot::Memory(_) | BarSlot::Io(_) => None,
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
    pub(super) ports: Theirs<dyn DeviceIo>,
    pub(super) size: u64,
}

pub(super) type ResetFn = dyn Fn(&PciDevice, ResetKind) -> io::Result<()> + Send + Sync;

/// The cause of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetKind {
    /// [`PciDevice::reset`] (`VFIO_DEVICE_RESET`).
    Call,
    /// Function Level Reset, through the capability of PCI Express or of Advanced Features.
    FunctionLevel,
    /// The reset of the bus, [`Bus::hot_reset`](super::Bus::hot_reset).
    Bus,
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

/// The turn to change the device's registers: one thread at a time, and not from inside another change. No area comes or
/// goes while it is held.
pub(super) struct DeviceTurn<'a> {
    device: &'a Device,
    /// Given back first.
    areas: Vec<AreasTurn<'a>>,
    _own: TurnGuard<'a>,
}

impl DeviceTurn<'_> {
    /// The regions of all BARs and the ROM, in the order in which they are locked.
    pub(super) fn members(&self) -> Cow<'_, [Arc<RegionShared>]> {
        match self.areas.is_empty() {
            true => Cow::Borrowed(&self.device.fixed),
            false => Cow::Owned(self.device.members_now()),
        }
    }

    /// Ends what is left of areas that were removed: before memory is revoked.
    pub(super) fn end_removed(&self, wait: WaitFor) -> Result<(), Failed<Arc<RegionShared>>> {
        self.device.areas().try_for_each(|areas| areas.shared.end_removed(wait))
    }
}

impl Device {
    /// Takes the turn; waits for it as long as `patience` allows, unless its holder may be waiting for the caller.
    pub(super) fn take_turn(&self, patience: Patience) -> Result<DeviceTurn<'_>, PciError> {
        if !self.begun.are_of_this_process() {
            // Its holder at the fork is not in this process: it is never given back.
            return Err(PciError::Forked);
        }
        if self.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        let own = match self.turn.try_take() {
            Some(own) => Some(own),
            None if self.members_now().iter().any(|member| member.protocol.gate.held_by_caller() > 0) => {
                return Err(PciError::WouldDeadlock);
            }
            None => self.turn.take(patience),
        };
        let busy = || PciError::Busy { name: self.name.clone() };
        self.with_areas(own.ok_or_else(busy)?, patience)
    }

    /// [`take_turn`](Self::take_turn) that does not wait.
    pub(super) fn try_turn(&self) -> Result<DeviceTurn<'_>, PciError> {
        let own = self.turn.try_take().ok_or_else(|| PciError::Busy { name: self.name.clone() })?;
        self.with_areas(own, Patience::Never)
    }

    fn with_areas<'a>(&'a self, own: TurnGuard<'a>, patience: Patience) -> Result<DeviceTurn<'a>, PciError> {
        let turns = self.areas().map(|areas| match areas.shared.take_turn(patience) {
            Err(RevokeError::Reentrant) => Err(PciError::Reentrant),
            Err(RevokeError::WouldDeadlock { .. }) => Err(PciError::WouldDeadlock),
            Err(RevokeError::Forked) => Err(PciError::Forked),
            turn => turn.map_err(|_| PciError::Busy { name: self.name.clone() }),
        });
        Ok(DeviceTurn { device: self, areas: turns.collect::<Result<_, _>>()?, _own: own })
    }

    /// The BARs of areas.
    pub(super) fn areas(&self) -> impl Iterator<Item = &Areas> {
        self.slots.iter().flatten().chain(&self.rom).filter_map(BarSlot::areas)
    }

    /// As [`DeviceTurn::members`], of this moment.
    pub(super) fn members_now(&self) -> Vec<Arc<RegionShared>> {
        let mut members = self.fixed.clone();
        members.extend(self.areas().flat_map(|areas| areas.shared.members()));
        crate::region::group::in_order(&mut members);
        members
    }

    /// True if the calling thread is inside a change of the device, or of one of its regions or areas.
    pub(super) fn is_changed_by_caller(&self) -> bool {
        let changed = |member: &Arc<RegionShared>| member.protocol.is_changed_by_caller();
        self.turn.is_caller()
            || self.fixed.iter().any(changed)
            || self.areas().any(|areas| areas.shared.is_changed_by_caller())
    }

    #[inline]
    pub(super) fn memory(&self, space: Space) -> Option<&Memory> {
        match space {
            Space::Bar(index) => self.slots.get(index)?.as_ref()?.memory(),
            Space::Rom => self.rom.as_ref()?.memory(),
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
}
