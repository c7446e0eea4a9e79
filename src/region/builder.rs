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
use crate::region::question::Question;
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
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Makes a [`Region`].
///
/// ```
/// use revocable_mmio::{BuildError, FaultAround, OnDisabled, Region, Strategy};
///
/// let bar = Region::builder(2 << 20)
///     .name("bar2")
///     .strategy(Strategy::Replace) // by default the best that works here
///     .disabled() // as a device's memory is before its driver turns it on
///     .build()?;
/// assert!(!bar.is_enabled());
///
/// assert!(matches!(Region::builder(100).build(), Err(BuildError::Unaligned { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    read_only: bool,
    memory_enabled: Option<Question>,
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
            read_only: false,
            memory_enabled: None,
        }
    }

    /// The name shown in `Debug`, errors and /proc/self/maps (which shows a memfd's name). Default: `mmio`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The file that is the memory. Default: a sealed memfd of the region's own.
    ///
    /// ```
    /// use revocable_mmio::{Backing, Region};
    /// use std::os::fd::AsFd;
    /// # let guest_memory = nix::sys::memfd::memfd_create(c"ram", nix::sys::memfd::MFdFlags::empty())?;
    /// # nix::unistd::ftruncate(&guest_memory, 1 << 20)?;
    ///
    /// let region = Region::builder(64 << 10).backing(Backing::file(guest_memory.as_fd(), 512 << 10)?).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// ```
    /// use revocable_mmio::{MapOptions, OnDisabled, Region, ShareAccess};
    ///
    /// let bar = Region::builder(64 << 10).shared(OnDisabled::Sigbus).build()?;
    /// let for_a_peer = bar.share(ShareAccess::ReadOnly)?; // hand it on, by SCM_RIGHTS for instance
    /// bar.disable()?;
    /// assert_eq!(nix::sys::stat::fstat(&for_a_peer)?.st_size, 0); // the file is empty, so every mapping of it is
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shared(mut self, peers: OnDisabled) -> Self {
        self.strategy = Some(Strategy::Withdraw);
        self.shared = Some(peers);
        self
    }

    /// The monitor that resolves faults. Default: [`Monitor::shared`], started with the first mapping that needs it.
    ///
    /// ```
    /// use revocable_mmio::{Monitor, Region, Strategy};
    ///
    /// # if !revocable_mmio::Support::current().userfaultfd() {
    /// #     eprintln!("SKIP: no userfaultfd");
    /// #     return Ok(());
    /// # }
    /// let monitor = Monitor::with_threads(2)?;
    /// let region = Region::builder(64 << 10).monitor(monitor.clone()).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// How many pages one fault maps (Zap). Default: [`FaultAround::Adaptive`].
    ///
    /// ```
    /// use revocable_mmio::{FaultAround, Region};
    ///
    /// let doorbells = Region::builder(64 << 10).fault_around(FaultAround::Pages(1)).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fault_around(mut self, around: FaultAround) -> Self {
        self.fault_around = around;
        self
    }

    /// Makes a region that can be read only: its mappings are made with [`MapOptions::read_only`](crate::MapOptions). The
    /// owner's view can still be stored to, except of a device's memory.
    ///
    /// Every region over a file that can't be written is one, whether asked for or not, and its owner's view refuses
    /// stores. Zap is not possible there: userfaultfd registers only memory that could be written.
    ///
    /// ```
    /// use revocable_mmio::{MapOptions, Region};
    ///
    /// let rom = Region::builder(64 << 10).read_only().build()?;
    /// rom.owner().write(0, 0xaa55_u16)?;
    /// assert!(!rom.is_writable());
    /// assert!(rom.map(MapOptions::new()).is_err());
    /// assert_eq!(rom.map(MapOptions::new().read_only())?.read::<u16>(0)?, 0xaa55);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// For a device that turns its memory off by itself, such as a BAR of vfio-pci: `enabled` tells whether the memory is
    /// on. It is asked, by a thread that holds no lock of the crate, after an access has failed although the region is
    /// enabled, and for each pin. If it returns false, the access gets what its mapping's policy says for a disabled
    /// region ([`AccessError::Disabled`](crate::AccessError), or all-ones; under
    /// [`OnDisabled::Block`] it is an error too, since nothing would end the wait), and the pin is refused. Without it such
    /// an access is [`AccessError::NoMemory`](crate::AccessError).
    ///
    /// It gets the region's file, and must return soon: a `disable()` that drops the device waits for it. It must not use
    /// this region. A panic counts as true.
    ///
    /// ```
    /// use revocable_mmio::Region;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// let on = Arc::new(AtomicBool::new(true)); // of a real device: its register, see `vfio::MemoryBit`
    /// let asked = Arc::clone(&on);
    /// let bar = Region::builder(64 << 10).memory_enabled(move |_| asked.load(Ordering::Relaxed)).build()?;
    /// on.store(false, Ordering::Relaxed); // the device turns itself off
    /// assert!(bar.pin(0..4096, revocable_mmio::fault::FaultFlags::NOWAIT).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Signal safety
    /// An access in a signal handler calls it there.
    pub fn memory_enabled(mut self, enabled: impl Fn(BorrowedFd<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.memory_enabled = Some(Question::new(enabled));
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Starts enabled, or disabled, whatever was asked for.
    pub(crate) fn starting(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
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
    ///
    /// ```
    /// use revocable_mmio::Region;
    ///
    /// let rarely_on = Region::builder(1 << 30).disabled().trim_detached().build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn trim_detached(mut self) -> Self {
        self.trim_detached = true;
        self
    }

    /// Makes the region.
    ///
    /// # Errors
    /// Nothing is made.
    /// * [`BuildError::Empty`], [`BuildError::Unaligned`], [`BuildError::TooLarge`], [`BuildError::FileTooShort`],
    ///   [`BuildError::Name`]: what was asked for; the numbers are in the error.
    /// * [`BuildError::Strategy`]: the strategy is not possible here, and why. Leave the choice to the builder.
    /// * [`BuildError::Monitor`]: Zap without a userfaultfd.
    /// * [`BuildError::Signal`]: a sandbox forbids sigaction(2). Build the first region before it, or see
    ///   [`signal::own_handlers`](crate::signal::own_handlers).
    /// * [`BuildError::Sys`]: out of memory, descriptors or huge pages. Its message names the limit to raise.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn build(self) -> Result<Region, BuildError> {
        Identity::prepare()?;
        let memory = match self.shared {
            Some(peers) => Memory::Window(self.backing.open_window(&self.name, self.len, peers)?),
            None => {
                let mut file = self.backing.open(&self.name, self.len)?;
                // The kernel's vfio has regions that can be read only, behind a descriptor that can be written.
                file.writable &= !(self.read_only && file.kind == BackingKind::Other);
                Memory::File(file)
            }
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
        let writable = !self.read_only && !matches!(&memory, Memory::File(file) if !file.writable);
        let (known, offset, page, kind, on_revoke, window) = match memory {
            Memory::Window(window) => {
                (Arc::clone(window.file()), 0, page_size(), BackingKind::Shmem, OnRevoke::Keep, Some(Arc::new(window)))
            }
            Memory::File(File { fd, offset, page, kind, on_revoke, .. }) => {
                (Arc::new(KnownFile::new(fd)), offset, page, kind, on_revoke, None)
            }
        };
        let core = RegionCore {
            name: self.name,
            len: self.len,
            page,
            kind,
            file_offset: offset,
            writable,
            file: Mutex::new(Some(known)),
            memory_enabled: self.memory_enabled,
            window,
            owner,
            strategy,
            monitor,
            fault_around: self.fault_around,
            protocol: Protocol::new(initial),
            pinned: PinTable::default(),
            notifiers: Notifiers::new(self.enabled),
            not_restored: Default::default(),
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
        (Strategy::Zap, _) if !file.writable => {
            return Err(("userfaultfd registers only memory that could be written", None));
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
