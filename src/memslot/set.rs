//! A virtual machine's revocable memslots.

use super::core::{Neighbours, SlotCore, is_slot_address};
use super::error::MemslotError;
use super::retention::Retention;
use super::slot::Memslot;
use super::vm::SetMemslot;
use crate::monitor::Monitor;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::region::mapping::Mapping;
use crate::region::subscription::Subscription;
use crate::sys::uffd::UffdSource;
use crate::users::{Theirs, guarded};
use crate::view::Server;
use parking_lot::RwLock;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// A virtual machine's revocable memslots. Cheap to clone: clones are the same set.
///
/// ```
/// use revocable_mmio::memslot::{MemslotError, Memslots, Retention};
/// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
/// use revocable_mmio::{MapOptions, OnDisabled, Region};
/// use std::sync::Arc;
/// # struct Vm;
/// # #[allow(unsafe_code)]
/// # impl SetMemslot for Vm {
/// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let slots = Memslots::new(Arc::new(Vm)); // with feature `kvm` a `kvm_ioctls::VmFd`
/// slots.on_error(|error| eprintln!("the guest's accesses exit now: {error}"));
///
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?);
/// let _slot = slots.add(1, 0xe000_0000, Arc::clone(&mapping), Retention::AllOnes)?;
/// let second = slots.add(2, 0xe000_0000, mapping, Retention::AllOnes);
/// assert!(matches!(second, Err(MemslotError::Overlap { other: 1, .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Memslots {
    pub(super) shared: Arc<Set>,
}

type OnError = dyn Fn(&MemslotError) + Send + Sync;

pub(super) struct Set {
    vm: Theirs<dyn SetMemslot>,
    slots: RwLock<Vec<Arc<SlotCore>>>,
    on_error: RwLock<Option<Theirs<OnError>>>,
}

impl Memslots {
    /// An empty set for a virtual machine.
    pub fn new(vm: Arc<impl SetMemslot + 'static>) -> Self {
        Self { shared: Arc::new(Set { vm: Theirs::new(vm), slots: RwLock::default(), on_error: RwLock::default() }) }
    }

    /// Calls `told` when a change of a region's state has revoked or given back the memory, and a memslot could not
    /// follow. It is called in the thread that changes the state, before `enable()`, `disable()` or `reset()` returns, and
    /// must not change that state. After a restoration guest accesses exit, and [`Exits`](super::Exits) makes them; once
    /// the cause is gone, [`Memslot::retry`] installs the slot. Replaces an earlier one.
    pub fn on_error(&self, told: impl Fn(&MemslotError) + Send + Sync + 'static) {
        let told: Arc<OnError> = Arc::new(told);
        let earlier = self.shared.on_error.write().replace(Theirs::new(told));
        drop(earlier);
    }

    /// Makes `mapping` guest memory at guest physical address `gpa`, as memslot `slot`, which must be free. If the region
    /// is disabled now, the slot is as it would be if the region had been disabled later; one that is to be taken out is
    /// installed for a moment, to see that it can be. Guest stores to a read-only mapping exit, and are dropped.
    ///
    /// # Blocking
    /// Waits for a change of the region's state that is under way.
    ///
    /// # Errors
    /// Nothing is changed: see [`MemslotError`].
    pub fn add(
        &self,
        slot: u32,
        gpa: u64,
        mapping: Arc<Mapping>,
        retention: Retention,
    ) -> Result<Memslot, MemslotError> {
        suitable(&mapping, retention)?;
        is_slot_address(gpa, &mapping)?;
        let (vm, set) = (self.shared.vm.clone(), Arc::downgrade(&self.shared) as Weak<dyn Neighbours>);
        let core = Arc::new(SlotCore::new(vm, set, slot, gpa, mapping, retention));
        {
            let mut slots = self.shared.slots.write();
            if slots.iter().any(|other| other.slot == slot) {
                return Err(MemslotError::Overlap { slot, gpa, other: slot });
            }
            slots.push(Arc::clone(&core));
        }
        // Dropping `memslot` undoes whatever was done.
        let mut memslot = Memslot::new(Arc::clone(&self.shared) as _, Arc::clone(&core));
        let region = &core.mapping.served.region;
        let (subscription, installed) = region.protocol.at_rest(|phase| {
            // No change is under way: the phase seen here is what the first notification will change.
            let start = core.mapping.offset();
            let range = start..start + core.mapping.len();
            let subscription = Subscription::new(region, range, Arc::clone(&core) as _);
            (subscription, core.start(phase != Phase::Open))
        })?;
        memslot.follow(subscription);
        installed?;
        Ok(memslot)
    }

    /// The slot at a guest address, one that is there before one that is not, and how far into it the address is. The slot
    /// may be moving.
    pub(super) fn find(&self, gpa: u64) -> Option<(Arc<SlotCore>, u64)> {
        let slots = self.shared.slots.read();
        let here = slots.iter().map(|core| (core, core.range())).filter(|(_, range)| range.contains(&gpa));
        let found = here.min_by_key(|(core, _)| !core.is_there());
        found.map(|(core, range)| (Arc::clone(core), gpa - range.start))
    }

    pub(super) fn all(&self) -> Vec<Arc<SlotCore>> {
        self.shared.slots.read().clone()
    }
}

impl Neighbours for Set {
    fn reserve(&self, core: &SlotCore, ranges: Vec<Range<u64>>) -> Result<(), u32> {
        // For writing: no other reservation comes between the look and this one.
        let slots = self.slots.write();
        let mut others = slots.iter().filter(|other| other.slot != core.slot);
        if let Some(other) = ranges.first().and_then(|wished| others.find(|other| other.takes(wished))) {
            return Err(other.slot);
        }
        core.set_reserved(ranges);
        Ok(())
    }

    fn forget(&self, gone: &Arc<SlotCore>) {
        self.slots.write().retain(|core| !Arc::ptr_eq(core, gone));
    }

    fn tell(&self, error: &MemslotError) {
        let told = self.on_error.read().clone();
        if let Some(told) = told {
            let _ = guarded(|| told(error));
        }
    }
}

impl fmt::Debug for Memslots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Under no lock: what is written to may be a user's.
        f.debug_list().entries(self.all()).finish()
    }
}

/// Checks that a vCPU's accesses can go through this mapping.
fn suitable(mapping: &Mapping, retention: Retention) -> Result<(), MemslotError> {
    let spec = &mapping.served.view.spec;
    let why = match &spec.server {
        _ if spec.policy == OnDisabled::Block => {
            "a vCPU must not wait in a page fault: use another policy, and WhenDisabled::Wait"
        }
        _ if spec.accessors_only => "a mapping for accessors only answers no vCPU's faults",
        _ if retention == Retention::AllOnes && spec.policy != OnDisabled::AllOnes => {
            "Retention::AllOnes needs a mapping of policy OnDisabled::AllOnes"
        }
        Server::Monitor(monitor) if is_user_mode_only(monitor) => {
            "a userfaultfd for user-mode faults only answers no vCPU's faults: use strategy Detach or Replace"
        }
        Server::Monitor(_) | Server::Own(_) | Server::Kernel => return Ok(()),
    };
    Err(MemslotError::Mapping(why))
}

fn is_user_mode_only(monitor: &Monitor) -> bool {
    monitor.source() == UffdSource::UserModeOnly
}
