//! Memslots: a mapping in the guest's physical address space, in step with its region's state.

use super::error::MemslotError;
use super::ioctl::{CALL, SetMemslot, change};
use crate::monitor::Monitor;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::region::mapping::Mapping;
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::placed::{Place, Placed, Refused};
use crate::region::subscription::Subscription;
use crate::stats::count;
use crate::sys::SysError;
use crate::sys::thread;
use crate::sys::uffd::UffdSource;
use crate::users::Theirs;
use crate::view::Server;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use nix::errno::Errno;
use parking_lot::RwLock;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What happens to a memslot while its region is disabled or being reset; the [module](super) compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Retention {
    /// It is taken out before the memory is revoked and put back after it is restored: guest accesses exit as
    /// `KVM_EXIT_MMIO`. The default.
    #[default]
    Remove,
    /// It stays: how guest accesses exit depends on the machine.
    Keep,
}

/// A virtual machine's revocable memslots. Cheap to clone: clones are the same set.
#[derive(Clone)]
pub struct Memslots {
    shared: Arc<Set>,
}

pub(super) struct Set {
    vm: Theirs<dyn SetMemslot>,
    pub(super) slots: RwLock<Vec<Arc<SlotCore>>>,
}

impl Memslots {
    /// An empty set for a virtual machine.
    pub fn new(vm: Arc<impl SetMemslot + 'static>) -> Self {
        Self { shared: Arc::new(Set { vm: Theirs::new(vm), slots: RwLock::new(Vec::new()) }) }
    }

    /// Makes `mapping` guest memory at guest physical address `gpa`, as memslot `slot`, which must be free. If the region
    /// is disabled now, the slot is as it would be if the region had been disabled later. Stores to a read-only mapping
    /// exit as `KVM_EXIT_MMIO`, and the exit handler drops them.
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
        suitable(&mapping)?;
        let page = mapping.served.region.page;
        if gpa % page as u64 != 0 || gpa.checked_add(mapping.len() as u64).is_none() {
            return Err(MemslotError::Unaligned { gpa, page });
        }
        let core = Arc::new(SlotCore {
            vm: self.shared.vm.clone(),
            slot,
            gpa,
            mapping,
            retention,
            placed: Placed::default(),
            counters: SlotCounters::default(),
        });
        {
            let mut slots = self.shared.slots.write();
            if let Some(other) = slots.iter().find(|other| other.slot == slot || other.overlaps(&core)) {
                return Err(MemslotError::Overlap { slot, gpa, other: other.slot });
            }
            slots.push(Arc::clone(&core));
        }
        // Dropping `memslot` undoes whatever was done.
        let mut memslot = Memslot { set: Arc::clone(&self.shared), core: Arc::clone(&core), subscription: None };
        let region = &core.mapping.served.region;
        let (subscription, installed) = region.protocol.at_rest(|phase| {
            // No change is under way: the phase seen here is what the first notification will change.
            let start = core.mapping.offset();
            let range = start..start + core.mapping.len();
            let subscription = Subscription::new(region, range, Arc::clone(&core) as _);
            let installed = core.change(|place| {
                place.revoked = phase != Phase::Open;
                place.wanted = !place.revoked || retention == Retention::Keep;
            });
            (subscription, installed)
        })?;
        memslot.subscription = Some(subscription);
        installed.map_err(|source| MemslotError::Kvm { slot, gpa, source })?;
        Ok(memslot)
    }

    pub(super) fn find(&self, gpa: u64) -> Option<Arc<SlotCore>> {
        self.shared.slots.read().iter().find(|core| core.range().contains(&gpa)).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<SlotCore>> {
        self.shared.slots.read().clone()
    }
}

impl fmt::Debug for Memslots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared.slots.read().iter()).finish()
    }
}

/// Checks that a vCPU's accesses can go through this mapping.
fn suitable(mapping: &Mapping) -> Result<(), MemslotError> {
    let spec = &mapping.served.view.spec;
    let why = match &spec.server {
        _ if spec.policy == OnDisabled::Block => {
            "a vCPU must not wait in a page fault: use another policy, and WhenDisabled::Wait"
        }
        _ if spec.accessors_only => "a mapping for accessors only answers no vCPU's faults",
        Server::Monitor(monitor) if monitor.source() == UffdSource::UserModeOnly => {
            "a userfaultfd for user-mode faults only answers no vCPU's faults: use strategy Detach or Replace"
        }
        Server::Monitor(_) | Server::Own(_) | Server::Kernel => return Ok(()),
    };
    Err(MemslotError::Mapping(why))
}

/// A mapping in the guest's physical address space. Dropping it takes the memslot out.
#[must_use = "dropped at once, the memslot is taken out at once"]
pub struct Memslot {
    set: Arc<Set>,
    core: Arc<SlotCore>,
    subscription: Option<Subscription>,
}

impl Memslot {
    /// The memslot's number.
    pub fn slot(&self) -> u32 {
        self.core.slot
    }

    /// The guest physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.core.range()
    }

    /// True if it is in the guest's memory map now.
    pub fn is_installed(&self) -> bool {
        self.core.placed.now().is_there()
    }

    /// Counters.
    pub fn stats(&self) -> MemslotStats {
        let c = &self.core.counters;
        MemslotStats {
            installs: c.installs.load(Ordering::Relaxed),
            removals: c.removals.load(Ordering::Relaxed),
            withdrawn: c.withdrawn.load(Ordering::Relaxed),
            degraded: c.degraded.load(Ordering::Relaxed),
            served: c.served.load(Ordering::Relaxed),
            unsupported: c.unsupported.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Memslot {
    fn drop(&mut self) {
        // The subscription first, so that no notification puts the slot back; then the slot itself; then its entry in the
        // set.
        self.subscription = None;
        let _ = self.core.change(|place| {
            place.gone = true;
            place.wanted = false;
        });
        self.set.slots.write().retain(|core| !Arc::ptr_eq(core, &self.core));
        if self.is_installed() {
            // The guest still reaches this address range: nothing else may ever be mapped there.
            std::mem::forget(Arc::clone(&self.core.mapping));
        }
    }
}

impl fmt::Debug for Memslot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

/// Counters of a [`Memslot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemslotStats {
    /// How often it was put into the guest's memory map.
    pub installs: u64,
    /// How often it was taken out.
    pub removals: u64,
    /// How often the exit handler took it out ([`Retention::Keep`]); included in `removals`.
    pub withdrawn: u64,
    /// Changes that KVM refused. The memory is revoked all the same, and the exit handler makes accesses to enabled memory.
    pub degraded: u64,
    /// Guest accesses that the exit handler made on the guest's behalf.
    pub served: u64,
    /// Guest accesses that the exit handler answered as Unsupported Requests.
    pub unsupported: u64,
}

#[derive(Default)]
pub(super) struct SlotCounters {
    installs: AtomicU64,
    removals: AtomicU64,
    withdrawn: AtomicU64,
    degraded: AtomicU64,
    pub(super) served: AtomicU64,
    pub(super) unsupported: AtomicU64,
}

/// The part that a memslot, its set and its region's notifications share.
pub(super) struct SlotCore {
    vm: Theirs<dyn SetMemslot>,
    pub(super) slot: u32,
    pub(super) gpa: u64,
    pub(super) mapping: Arc<Mapping>,
    retention: Retention,
    /// Whether it is in the guest's memory map.
    placed: Placed,
    pub(super) counters: SlotCounters,
}

impl SlotCore {
    pub(super) fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.mapping.len() as u64
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.range().start < other.range().end && other.range().start < self.range().end
    }

    /// Changes the slot as `wish` says; the error is KVM's, or the adapter's.
    fn change(&self, wish: impl FnOnce(&mut Place)) -> Result<bool, SysError> {
        let _inside = self.mapping.served.region.protocol.inside();
        let changed = self.placed.change(wish, |there| {
            self.set(if there { self.mapping.len() } else { 0 })?;
            count(if there { &self.counters.installs } else { &self.counters.removals });
            Ok(())
        });
        changed.map_err(|refused| match refused {
            Refused::By(source) => source,
            Refused::Panicked => SysError::new(CALL, Errno::EIO),
        })
    }

    /// Takes the slot of a revoked region out, so that the next access has an address. True if this call did it.
    pub(super) fn withdraw(&self) -> Result<bool, SysError> {
        let due = self.change(|place| place.wanted &= !place.revoked)?;
        if due {
            count(&self.counters.withdrawn);
        }
        Ok(due)
    }

    /// Takes the slot of a device out that has turned its memory off by itself, so that the next access has an address. True
    /// if this call did it.
    pub(super) fn withdraw_turned_off(&self) -> Result<bool, SysError> {
        let due = self.change(|place| place.wanted = false)?;
        if due {
            count(&self.counters.withdrawn);
        }
        Ok(due)
    }

    /// Puts such a slot back, after an access that has found the memory on. If KVM refuses, the next access tries again.
    pub(super) fn put_back(&self) {
        if self.mapping.served.region.memory_enabled.is_some() && !self.placed.now().is_there() {
            self.degraded(self.change(|place| place.wanted = !place.revoked && !place.gone));
        }
    }

    fn set(&self, len: usize) -> Result<(), SysError> {
        let slot = kvm_userspace_memory_region {
            slot: self.slot,
            flags: if self.mapping.is_writable() { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: self.gpa,
            memory_size: len as u64,
            userspace_addr: self.mapping.as_ptr().expose_provenance() as u64,
        };
        let region = &self.mapping.served.region;
        // KVM waits for every vCPU that is inside a page fault. If an event loop resolves those faults, this very thread
        // may run it: so another thread waits for KVM, while this one goes on resolving.
        if !region.monitor.as_ref().is_some_and(Monitor::help) {
            return change(&*self.vm, &slot);
        }
        std::thread::scope(|scope| {
            let helper = std::thread::Builder::new().name("mmio-memslot".to_owned());
            // The helper thread acts for this call, and counts as inside it.
            let run = || {
                let _inside = (region.protocol.inside(), self.placed.inside());
                change(&*self.vm, &slot)
            };
            let started = thread::blocking_signals(|| helper.spawn_scoped(scope, run));
            let ioctl = started.map_err(|e| SysError::new("clone", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
            while !ioctl.is_finished() {
                region.monitor.as_ref().map(Monitor::help);
                std::thread::park_timeout(Duration::from_micros(200));
            }
            ioctl.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn degraded(&self, refused: Result<bool, SysError>) {
        if let Err(error) = refused {
            count(&self.counters.degraded);
            event!(WARN, slot = self.slot, gpa = self.gpa, %error, "memslot degraded");
            let _ = error;
        }
    }
}

impl InvalidateNotifier for SlotCore {
    fn before_revoke(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        // If KVM refuses, the slot stays, as with Keep: the mapping itself refuses as well.
        self.degraded(self.change(|place| {
            place.revoked = true;
            place.wanted &= self.retention == Retention::Keep;
        }));
        Ok(())
    }

    fn after_restore(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        // If KVM refuses, accesses exit as MMIO, and the exit handler makes them.
        self.degraded(self.change(|place| {
            place.revoked = false;
            place.wanted = !place.gone;
        }));
        Ok(())
    }
}

impl fmt::Debug for SlotCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memslot")
            .field("slot", &self.slot)
            .field("gpa", &format_args!("{:#x?}", self.range()))
            .field("retention", &self.retention)
            .field("installed", &self.placed.now().is_there())
            .finish_non_exhaustive()
    }
}
