//! Mappings: one view of a region, or of a part of it, in this process's address space.

mod options;
mod protect;

pub use options::MapOptions;

use super::around::Around;
use super::core::RegionCore;
use super::offsets::InRegion;
use super::served::Served;
use super::shared::RegionShared;
use crate::monitor;
use crate::monitor::waiting_room::{WaitingRoom, Waits};
use crate::protocol::State;
use crate::protocol::policy::OnDisabled;
use crate::raw::Medium;
use crate::region::backing::BackingKind;
use crate::region::error::MapError;
use crate::sync::wait::Waited;
use crate::sys::SysError;
use crate::sys::map::Prot;
use crate::view::{Ones, Server, Strategy, View, ViewSpec};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// One view of a region.
///
/// A mapping may outlive its region: it then refuses for good. Dropping it unmaps it. A thread that still uses its raw
/// pointer, or waits in a fault of it, then gets what any unmapped address gives (SIGSEGV, EFAULT). A part that a
/// [`DmaSpace`](crate::pci::DmaSpace) has mapped stays, and is revoked with its region, until it is unmapped there too.
///
/// ```
/// use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region};
///
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = bar.map(MapOptions::new())?;
/// assert_eq!((mapping.offset(), mapping.len()), (0, bar.len()));
/// assert!(mapping.is_writable() && mapping.on_disabled() == OnDisabled::Sigbus);
///
/// mapping.write(0x100, 0xcafe_u16)?;
/// assert_eq!(mapping.read::<u16>(0x100)?, 0xcafe);
/// assert!(matches!(mapping.read::<u16>(0x101), Err(AccessError::Misaligned { .. })));
///
/// bar.disable()?;
/// assert!(matches!(mapping.read::<u16>(0x100), Err(AccessError::Disabled { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mapping {
    pub(crate) served: Arc<Served>,
    /// Dropped after `served`, so `served` is never the last reference.
    pub(crate) listed: Arc<Listed>,
}

/// A mapping's entries in its region's list and in its monitor's table. Code that relies on the range keeps this, not just
/// a [`Served`]: no change of state revokes a range that is in neither.
pub(crate) struct Listed {
    pub(crate) served: Arc<Served>,
    region: Arc<RegionShared>,
}

impl Mapping {
    pub(crate) fn new(region: &Arc<RegionShared>, options: MapOptions) -> Result<Self, MapError> {
        if region.protocol.is_inherited() {
            return Err(MapError::Forked);
        }
        let (offset, len) = options.part(region)?;
        if !options.read_only && !region.writable {
            return Err(MapError::ReadOnly);
        }
        let sys = |source| MapError::Sys { len, source };
        let policy = options.on_disabled;
        let server = server(region, options.accessors_only)?;
        let ones = match policy {
            OnDisabled::AllOnes => Some(Ones::for_range(len).map_err(sys)?),
            OnDisabled::Sigbus | OnDisabled::Block => None,
        };
        if policy == OnDisabled::Block && !options.accessors_only {
            WaitingRoom::prepare(Waits::UserMode).map_err(|source| MapError::Wait { source })?;
        }
        let view = View::reserve(ViewSpec {
            len,
            file_offset: region.file_offset + offset as u64,
            prot: if options.read_only { Prot::Read } else { Prot::ReadWrite },
            policy,
            strategy: region.strategy,
            server,
            ones,
            page: region.page,
            is_device: region.kind == BackingKind::Other,
            accessors_only: options.accessors_only,
        })
        .map_err(sys)?;
        let served = Arc::new(Served {
            region: Arc::clone(&region.core),
            offset: InRegion(offset),
            view,
            medium: Medium::of(region.kind == BackingKind::Other),
            load_limit: AtomicUsize::new(0),
            store_limit: AtomicUsize::new(0),
            around: Around::new(region.fault_around, region.page),
        });
        // From here on dropping `listed` undoes whatever was done.
        let listed = Arc::new(Listed { served: Arc::clone(&served), region: Arc::clone(region) });
        let mapping = Self { served, listed };
        mapping.establish().map_err(|e| match e {
            Establish::Sys(source) => sys(source),
            Establish::Monitor(e) => e.into(),
            Establish::Reentrant => MapError::Reentrant,
            Establish::WouldDeadlock => MapError::WouldDeadlock,
        })?;
        Ok(mapping)
    }

    /// Puts into the range what the region's state requires, under the read side of the memory lock.
    fn establish(&self) -> Result<(), Establish> {
        let served = &self.served;
        let region = &self.listed.region;
        if let Server::Monitor(monitor) = &served.view.spec.server {
            let target: Arc<dyn monitor::Resolver> = Arc::clone(served) as _;
            let adopted = monitor.adopt(served.view.range, target);
            adopted.and_then(|()| monitor.start()).map_err(Establish::Monitor)?;
        }
        let state = region.protocol.read().map_err(|futile| match futile {
            Waited::WouldDeadlock => Establish::WouldDeadlock,
            // Called in the region's own reset callback.
            _ => Establish::Reentrant,
        })?;
        let file = region.file.lock_quietly();
        let mut mappings = region.mappings.lock_quietly();
        match *state {
            State::Enabled => {
                served.view.restore(file.as_deref()).map_err(Establish::Sys)?;
                served.open();
            }
            State::Disabled | State::Gone => {
                served.view.refuse(*state == State::Gone).map_err(Establish::Sys)?;
            }
        }
        mappings.insert(served.view.range.start, Arc::clone(served));
        Ok(())
    }

    /// The address of the first byte, valid until the mapping is dropped. While the region is disabled, accesses through it
    /// get what [`OnDisabled`] says.
    ///
    /// Until then the whole range belongs to the mapping: revoking, restoring and dropping act on all of it, whatever other
    /// code in the process has done there meanwhile. Use [`protect`](Self::protect) to change the rights of a part; the
    /// next `enable()` undoes a change by mprotect. Nothing else may be mapped there. A part that mremap has moved away is
    /// not revoked, but counted ([`RegionStats::degraded`](crate::RegionStats)).
    ///
    /// ```
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let at = mapping.as_ptr(); // for KVM, io_uring, vhost, C code
    /// // SAFETY: aligned, inside the mapping, which lives; the region is enabled, and nothing disables it meanwhile.
    /// unsafe { at.cast::<u32>().write_volatile(7) };
    /// assert_eq!(mapping.read::<u32>(0)?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn as_ptr(&self) -> *mut u8 {
        self.served.view.range.as_ptr()
    }

    /// The length, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a mapping has at least one page")]
    pub fn len(&self) -> usize {
        self.served.view.range.len
    }

    /// Where in the region it starts, in bytes.
    pub fn offset(&self) -> usize {
        self.served.offset.0
    }

    /// True if the mapping can be stored to.
    pub fn is_writable(&self) -> bool {
        self.served.view.spec.prot == Prot::ReadWrite
    }

    /// What accesses get while the region is disabled.
    pub fn on_disabled(&self) -> OnDisabled {
        self.served.view.spec.policy
    }
}

enum Establish {
    Sys(SysError),
    Monitor(crate::monitor::error::MonitorError),
    Reentrant,
    WouldDeadlock,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let range = self.served.view.range;
        let region = &self.region;
        if region.protocol.is_inherited() {
            // A forked child has no mapping here, and may have something else by now. The list is left alone.
            return;
        }
        // The list's lock: no change of state is working on the range, and a later change finds it as long as it is in the
        // list. `disown`: no monitor is working on it.
        let mut mappings = region.mappings.lock_quietly();
        if let Server::Monitor(monitor) = &self.served.view.spec.server {
            monitor.disown(range);
        }
        self.served.view.unmap();
        if mappings.get(&range.start).is_some_and(|m| Arc::ptr_eq(m, &self.served)) {
            mappings.remove(&range.start);
        }
    }
}

/// The server of the faults of a region's mapping while it is live.
fn server(region: &RegionCore, accessors_only: bool) -> Result<Server, MapError> {
    match (region.strategy, &region.monitor) {
        (Strategy::Detach | Strategy::Replace | Strategy::Withdraw, _) => Ok(Server::Kernel),
        (Strategy::Zap, _) if accessors_only => {
            let uffd = crate::view::refuser().map_err(|source| MapError::Sys { len: 0, source })?;
            Ok(Server::Own(uffd))
        }
        (Strategy::Zap, monitor) => Ok(monitor.clone().map_or(Server::Kernel, Server::Monitor)),
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("region", &self.served.region.name)
            .field("offset", &self.offset())
            .field("writable", &self.is_writable())
            .field("on_disabled", &self.on_disabled())
            .field("view", &self.served.view)
            .finish()
    }
}
