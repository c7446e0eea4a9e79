//! The memslots and ioeventfds of a BAR, which follow it through the guest's address space.

use super::address_map::AddressMap;
use super::decode::BarPlace;
use super::space::Space;
use crate::bar::Areas;
use crate::ioeventfd::{IoEventFdError, IoEventFds};
use crate::memslot::{Memslot, Memslots, Retention};
use crate::protocol::Protocol;
use crate::protocol::gate::Phase;
use crate::region::mapping::Mapping;
use crate::sync::inside::Mutex;
use std::fmt;
use std::io;
use std::sync::Arc;

type Doorbells = dyn Fn(u64) -> Result<IoEventFds, IoEventFdError> + Send + Sync;

/// The memslots and ioeventfds of one BAR, an [`AddressMap`] for [`PciDevice::follow`](super::PciDevice::follow): they are
/// where the BAR is decoded.
///
/// While memory is off the BAR is decoded nowhere. Its slots are taken out then, and guest accesses exit, unless
/// [`stays_while_off`](Self::stays_while_off) says otherwise.
///
/// ```
/// # use revocable_mmio::ioeventfd::{IoEvent, SetIoEventFd};
/// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
/// use revocable_mmio::ioeventfd::IoEventFds;
/// use revocable_mmio::memslot::{Memslots, Retention};
/// use revocable_mmio::pci::{Bar, BarSlots, PciDevice, Space};
/// use revocable_mmio::{MapOptions, OnDisabled};
/// use std::sync::Arc;
/// # struct Vm;
/// # #[allow(unsafe_code)]
/// # impl SetMemslot for Vm {
/// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// # }
/// # impl SetIoEventFd for Vm {
/// #     fn assign(&self, _: &IoEvent<'_>) -> std::io::Result<()> { Ok(()) }
/// #     fn withdraw(&self, _: &IoEvent<'_>) -> std::io::Result<()> { Ok(()) }
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build()?;
/// let mapping = nic.map(Space::Bar(0), MapOptions::new().on_disabled(OnDisabled::AllOnes))?;
/// let slots = Memslots::new(Arc::new(Vm)); // with feature `kvm` a `kvm_ioctls::VmFd`
/// let bar = BarSlots::new(Space::Bar(0), slots).memslot(1, Arc::new(mapping), Retention::AllOnes);
/// let bar = bar.stays_while_off(); // the guest's loads of disabled memory read ones, without an exit
/// let device = nic.clone(); // held until `_following` is dropped
/// let bar = bar.doorbells(move |gpa| {
///     IoEventFds::new(Arc::new(Vm), device.region(Space::Bar(0)).expect("a memory BAR"), gpa) // and `add`
/// });
/// let _following = nic.follow(Arc::new(bar))?;
///
/// nic.write(Space::Config, 0x10, &0xe000_0000_u32.to_le_bytes()[..])?; // the guest
/// nic.write(Space::Config, 4, &[2, 0][..])?; // the memslot is there
/// # Ok(())
/// # }
/// ```
pub struct BarSlots {
    bar: Space,
    slots: Memslots,
    parts: Vec<Part>,
    areas: Option<Areas>,
    doorbells: Option<Box<Doorbells>>,
    stays: bool,
    /// What is there. Only the device's own calls change it, one at a time; none is made under the lock.
    there: Mutex<There>,
}

struct Part {
    slot: u32,
    mapping: Arc<Mapping>,
    retention: Retention,
}

#[derive(Default)]
struct There {
    /// Dropped first: the guest's stores are accesses to memory again before that goes.
    doorbells: Option<IoEventFds>,
    memslots: Vec<Memslot>,
    /// The BAR is decoded where they are. If not, they stay there while memory is off.
    decoded: bool,
}

impl BarSlots {
    /// For a BAR; without any memslot yet.
    pub fn new(bar: Space, slots: Memslots) -> Self {
        Self { bar, slots, parts: Vec::new(), areas: None, doorbells: None, stays: false, there: Mutex::default() }
    }

    /// Adds a memslot for a mapping of the BAR, or of a part of it. Its place in the BAR is
    /// [`Mapping::offset`](crate::Mapping::offset).
    pub fn memslot(mut self, slot: u32, mapping: Arc<Mapping>, retention: Retention) -> Self {
        self.parts.push(Part { slot, mapping, retention });
        self
    }

    /// The BAR is one of areas ([`Bar::areas`](super::Bar::areas)): the memslots that it was built with
    /// ([`BarBuilder::memslots`](crate::bar::BarBuilder::memslots)) follow it, and those of areas that come.
    ///
    /// ```
    /// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
    /// use revocable_mmio::Region;
    /// use revocable_mmio::memslot::{Memslots, Retention};
    /// use revocable_mmio::pci::{Bar, BarSlots, PciDevice, Space};
    /// use std::sync::Arc;
    /// # struct Vm;
    /// # #[allow(unsafe_code)]
    /// # impl SetMemslot for Vm {
    /// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
    /// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let slots = Memslots::new(Arc::new(Vm));
    /// let window = revocable_mmio::bar::Bar::builder(1 << 20).memslots(&slots, 8..16, Retention::AllOnes);
    /// let gpu = PciDevice::builder(0x1af4, 0x1050).bar(2, Bar::areas(window).at(0xe000_0000)).build()?;
    /// let areas = gpu.areas(Space::Bar(2)).ok_or("a BAR of areas")?.clone();
    /// let _following = gpu.follow(Arc::new(BarSlots::new(Space::Bar(2), slots).areas(areas.clone())))?;
    /// gpu.write(Space::Config, 4, &[2, 0][..])?;
    /// let _blob = areas.insert(0x1_0000, Region::builder(0x4000))?; // a memslot at 0xe001_0000
    /// assert_eq!(areas.guest_address(), Some(0xe000_0000));
    /// # Ok(())
    /// # }
    /// ```
    pub fn areas(mut self, areas: Areas) -> Self {
        self.areas = Some(areas);
        self
    }

    /// Adds ioeventfds: `make` is called with the BAR's guest physical address, and what it returns is dropped when the BAR
    /// is decoded there no longer.
    pub fn doorbells(
        mut self,
        make: impl Fn(u64) -> Result<IoEventFds, IoEventFdError> + Send + Sync + 'static,
    ) -> Self {
        self.doorbells = Some(Box::new(make));
        self
    }

    /// Slots stay where they are while memory is off, until the BAR is decoded at another place, or memory comes back and it
    /// is decoded nowhere, so that no instruction of the guest's exits there ([`Retention::AllOnes`]). The range is not the BAR's then: choose this where no other device is
    /// put there meanwhile, as guests do that size BARs and leave them.
    pub fn stays_while_off(mut self) -> Self {
        self.stays = true;
        self
    }

    fn put(&self, memslots: &mut Vec<Memslot>, base: u64) -> io::Result<()> {
        for part in &self.parts {
            let at = base.checked_add(part.mapping.offset() as u64).ok_or(io::ErrorKind::InvalidInput)?;
            match memslots.iter().find(|there| there.slot() == part.slot) {
                Some(there) if there.range().start == at => {}
                Some(there) => there.move_to(at).map_err(io::Error::other)?,
                None => {
                    let added = self.slots.add(part.slot, at, Arc::clone(&part.mapping), part.retention);
                    memslots.push(added.map_err(io::Error::other)?);
                }
            }
        }
        Ok(())
    }

    fn move_areas(&self, gpa: Option<u64>) -> io::Result<()> {
        self.areas.as_ref().map_or(Ok(()), |areas| areas.move_to(gpa)).map_err(io::Error::other)
    }

    /// True if memory is off, and nothing of the BAR is to be reached where its slots are.
    fn is_off(&self) -> bool {
        let is_off = |protocol: &Protocol| protocol.phase() != Phase::Open;
        self.parts.iter().all(|part| is_off(&part.mapping.served.region.protocol))
            && self.areas.iter().all(|areas| is_off(&areas.shared.anchor.shared.protocol))
    }
}

impl AddressMap for BarSlots {
    fn insert(&self, place: &BarPlace) -> io::Result<()> {
        if place.space != self.bar {
            return Ok(());
        }
        let mut there = std::mem::take(&mut *self.there.lock());
        // On an error all of it is dropped, and with it taken out.
        self.put(&mut there.memslots, place.address)?;
        self.move_areas(Some(place.address))?;
        let doorbells = self.doorbells.as_ref().map(|make| make(place.address)).transpose();
        there.doorbells = doorbells.map_err(io::Error::other).inspect_err(|_| {
            let _ = self.move_areas(None);
        })?;
        there.decoded = true;
        *self.there.lock() = there;
        Ok(())
    }

    fn remove(&self, place: &BarPlace) {
        if place.space != self.bar {
            return;
        }
        let mut there = std::mem::take(&mut *self.there.lock());
        drop(there.doorbells.take());
        there.decoded = false;
        if self.stays && self.is_off() {
            *self.there.lock() = there;
        } else {
            // It has no errors.
            let _ = self.move_areas(None);
        }
    }

    fn settle(&self) {
        let left = {
            let mut there = self.there.lock();
            if there.decoded {
                return;
            }
            std::mem::take(&mut *there)
        };
        // The user's code that takes them out runs under no lock.
        drop(left);
        let _ = self.move_areas(None);
    }
}

impl fmt::Debug for BarSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Under no lock: what is written to may be a user's.
        let memslots: Vec<_> = self.there.lock().memslots.iter().map(Memslot::shown).collect();
        f.debug_struct("BarSlots").field("bar", &self.bar).field("memslots", &memslots).finish_non_exhaustive()
    }
}
