//! The builder of a region, and the choice of its strategy.

use super::Region;
use super::around::FaultAround;
use super::core::RegionCore;
use super::pin_table::PinTable;
use super::shared::RegionShared;
use crate::monitor::Monitor;
use crate::protocol::policy::OnDisabled;
use crate::protocol::{Protocol, State};
use crate::region::backing::{Backing, BackingKind, File, OnRevoke};
use crate::region::error::BuildError;
use crate::region::notify::Notifiers;
use crate::region::owner::OwnerView;
use crate::stats::RegionCounters;
use crate::sync::inside::Mutex;
use crate::sys::feature::Feature;
use crate::sys::identity::Identity;
use crate::sys::known::KnownFile;
use crate::sys::probe::Support;
use crate::sys::{SysError, page_size};
use crate::view::Strategy;
use crate::window::Window;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes a [`Region`].
#[derive(Debug)]
#[must_use]
pub struct RegionBuilder {
    len: usize,
    name: String,
    backing: Backing,
    strategy: Option<Strategy>,
    /// What peers get while the region is disabled.
    shared: Option<OnDisabled>,
    monitor: Option<Monitor>,
    fault_around: FaultAround,
    enabled: bool,
    trim_detached: bool,
}

impl RegionBuilder {
    pub(super) fn new(len: usize) -> Self {
        Self {
            len,
            name: "mmio".to_owned(),
            backing: Backing::Memfd,
            strategy: None,
            shared: None,
            monitor: None,
            fault_around: FaultAround::default(),
            enabled: true,
            trim_detached: false,
        }
    }

    /// The name shown in `Debug`, errors and /proc/self/maps (which shows a memfd's name). Default: `mmio`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The file that is the memory. Default: a sealed memfd of the region's own.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// How mappings are revoked. Default: the best strategy that works here; [`Region::strategy`] returns it.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.shared = (strategy == Strategy::Withdraw).then(|| self.shared.unwrap_or_default());
        self.strategy = Some(strategy);
        self
    }

    /// Lets other processes map the memory ([`Region::share`]), and revokes it in all of them: the strategy
    /// [`Strategy::Withdraw`]. `peers` says what their accesses get while the region is disabled or being reset:
    /// [`OnDisabled::Sigbus`], to the letter what a revoked BAR of vfio-pci gives, or [`OnDisabled::AllOnes`]. Under
    /// [`OnDisabled::Block`] only mappings of this process wait, and a peer gets SIGBUS. Each mapping of the region's own
    /// has its own policy, as always.
    ///
    /// With all-ones a peer reads zeroes for the moment that it takes to write the ones, at most 2 MiB at a time, may read
    /// a word that is half ones, and reads its own stores back until `enable()`. Pages that a peer has copied for itself (a
    /// private mapping) stay with it; with SIGBUS they go too.
    ///
    /// The region takes twice its length of memory and, without its mappings, of address space. All shared regions of a
    /// process use the same pipes, with room for a huge page (2 MiB where base pages have 4 KiB; pipe(7)); with base
    /// pages of 64 KiB a huge page has 512 MiB, and building fails. The memory must be a memfd of the region's own
    /// ([`Backing::Memfd`]).
    pub fn shared(mut self, peers: OnDisabled) -> Self {
        self.strategy = Some(Strategy::Withdraw);
        self.shared = Some(peers);
        self
    }

    /// The monitor that resolves faults. Default: [`Monitor::shared`], started with the first mapping that needs it.
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// How many pages one fault maps (Zap). Default: [`FaultAround::Adaptive`].
    pub fn fault_around(mut self, around: FaultAround) -> Self {
        self.fault_around = around;
        self
    }

    /// Starts disabled, as a device's memory is before its driver turns it on. Default: enabled.
    pub fn disabled(mut self) -> Self {
        self.enabled = false;
        self
    }

    /// Frees the page tables of disabled mappings (Detach) in a background thread after each `disable()`. Without this they
    /// are kept (up to 2 MiB for 1 GiB), so that `enable()` need not fill them again. For regions that are mostly revoked
    /// for good.
    pub fn trim_detached(mut self) -> Self {
        self.trim_detached = true;
        self
    }

    /// Makes the region.
    ///
    /// # Errors
    /// Nothing is left behind: see [`BuildError`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn build(self) -> Result<Region, BuildError> {
        Identity::prepare()?;
        let memory = match self.shared {
            Some(peers) => Memory::Window(self.backing.open_window(&self.name, self.len, peers)?),
            None => Memory::File(self.backing.open(&self.name, self.len)?),
        };
        let strategy = match &memory {
            Memory::Window(_) => Strategy::Withdraw,
            Memory::File(file) => choose(self.strategy, file, self.monitor.is_some())?,
        };
        let monitor = match self.monitor {
            None if strategy == Strategy::Zap => Some(Monitor::shared()?),
            monitor => monitor,
        };
        crate::raw::signal::install()?;
        let owner = match &memory {
            Memory::Window(window) => OwnerView::moving(window.file(), self.len)?,
            Memory::File(file) => OwnerView::new(file, self.len)?,
        };
        crate::view::prepare()?;
        let initial = if self.enabled { State::Enabled } else { State::Disabled };
        let (known, offset, page, kind, on_revoke, window) = match memory {
            Memory::Window(window) => {
                (Arc::clone(window.file()), 0, page_size(), BackingKind::Shmem, OnRevoke::Keep, Some(Arc::new(window)))
            }
            Memory::File(File { fd, offset, page, kind, on_revoke }) => {
                (Arc::new(KnownFile::new(fd)), offset, page, kind, on_revoke, None)
            }
        };
        let core = RegionCore {
            name: self.name,
            len: self.len,
            page,
            kind,
            file_offset: offset,
            file: Mutex::new(Some(known)),
            window,
            owner,
            strategy,
            monitor,
            fault_around: self.fault_around,
            protocol: Protocol::new(initial),
            pinned: PinTable::default(),
            notifiers: Notifiers::new(self.enabled),
            pending: Arc::default(),
            counters: RegionCounters::default(),
        };
        if on_revoke == OnRevoke::Drop && initial == State::Disabled {
            *core.file.lock() = None;
        }
        let shared = RegionShared {
            core: Arc::new(core),
            on_revoke,
            trim_detached: self.trim_detached,
            mappings: Mutex::new(BTreeMap::new()),
        };
        if let (State::Disabled, Some(window)) = (initial, shared.prepare(true)?) {
            window.withdraw()?;
        }
        Ok(Region { shared: Arc::new(shared) })
    }
}

/// What a region's memory is.
enum Memory {
    File(File),
    /// Shared with other processes.
    Window(Window),
}

/// The strategy for a file: the requested one, if it is possible; without a request, the best one that is possible.
fn choose(asked: Option<Strategy>, file: &File, monitor: bool) -> Result<Strategy, BuildError> {
    let candidates = [Strategy::Detach, Strategy::Zap, Strategy::Replace];
    let mut refused = None;
    for strategy in candidates.into_iter().filter(|candidate| asked.is_none_or(|asked| asked == *candidate)) {
        match possible(strategy, file, monitor) {
            Ok(()) => return Ok(strategy),
            Err((why, source)) => {
                let passes = source.is_some_and(|e| e.is_passing());
                refused = Some(BuildError::Strategy { strategy, why, source });
                if passes {
                    break;
                }
            }
        }
    }
    refused.map_or(Ok(Strategy::Replace), Err)
}

/// Whether a strategy is possible for a file; if not, what is missing, and the kernel's error.
fn possible(strategy: Strategy, file: &File, monitor: bool) -> Result<(), (&'static str, Option<SysError>)> {
    let minor = if file.kind == BackingKind::Hugetlb { Feature::MINOR_HUGETLB } else { Feature::MINOR_SHMEM };
    let (needs, lacks, failed) = match (strategy, file.kind) {
        // Withdraw makes its own file.
        (Strategy::Replace | Strategy::Withdraw, _) => return Ok(()),
        (Strategy::Zap | Strategy::Detach, BackingKind::Other) => {
            return Err(("userfaultfd and MREMAP_DONTUNMAP serve memfd, tmpfs and hugetlb files only", None));
        }
        (Strategy::Detach, BackingKind::Hugetlb) => {
            return Err(("MREMAP_DONTUNMAP does not move hugetlb mappings", None));
        }
        (Strategy::Detach, BackingKind::Shmem) => {
            let lacks = "the kernel has no MREMAP_DONTUNMAP on shared memory (Linux 5.13)";
            (Feature::DONTUNMAP, lacks, "MREMAP_DONTUNMAP cannot be tried now")
        }
        // A monitor of the caller's may have a userfaultfd that this process could not open itself; mapping finds out.
        (Strategy::Zap, _) if monitor => return Ok(()),
        (Strategy::Zap, _) => {
            let lacks = "the kernel has no userfaultfd with minor faults (Linux 5.14)";
            (minor, lacks, "no userfaultfd can be had now")
        }
    };
    Support::check(needs).map_err(|e| (if e.is_lasting() { lacks } else { failed }, Some(e)))
}
