//! Start-up: everything that needs files, privileges or threads, before a sandbox closes.

use crate::monitor::Monitor;
use crate::monitor::waiting_room::{WaitingRoom, Waits};
use crate::pci::IoEventLoop;
use crate::raw::signal;
use crate::sys::feature::Feature;
use crate::sys::identity::Identity;
use crate::sys::memory;
use crate::sys::probe::Support;
use crate::view::{self, Ones};
use crate::window;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// What a program will do with regions; see [`init`]. What every region needs is always included.
///
/// ```
/// use revocable_mmio::{InitError, Missing, Need, Needs, init};
///
/// let needs = Needs::new().zap().detach().resets().block().all_ones(64 << 20).shared().ioeventfds();
/// let ready = init(needs).or_else(|InitError { missing, .. }| {
///     for Missing { need, source, .. } in missing {
///         match need {
///             Need::Zap | Need::Block => eprintln!("BARs are slower to revoke: {source}"),
///             _ => eprintln!("{need:?}: {source}"),
///         }
///     }
///     init(Needs::new()) // what every region needs
/// })?;
/// # drop(ready);
/// # Ok::<(), InitError>(())
/// ```
///
/// A monitor of the program's own, whose thread gets a seccomp filter of its own:
/// ```
/// use revocable_mmio::{Monitor, Needs, init};
///
/// if let Ok(monitor) = Monitor::with_threads(1) {
///     monitor.on_thread_start(|| { /* seccomp(2) */ });
///     let ready = init(Needs::new().monitor(monitor))?;
///     assert!(ready.monitor().is_some());
/// }
/// # Ok::<(), revocable_mmio::InitError>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Needs {
    zap: bool,
    monitor: Option<Monitor>,
    detach: bool,
    resets: bool,
    block: bool,
    all_ones: Option<usize>,
    shared: bool,
    ioeventfds: bool,
}

impl Needs {
    /// Regions and guards, strategy Replace, policy `Sigbus`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Strategy Zap with the process's shared monitor, whose thread is started.
    pub fn zap(mut self) -> Self {
        self.zap = true;
        self
    }

    /// Strategy Zap with a monitor of the program's own. Its threads are started, and run its
    /// [`on_thread_start`](Monitor::on_thread_start): the place for their seccomp filter.
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// Strategy Detach.
    pub fn detach(mut self) -> Self {
        self.detach = true;
        self
    }

    /// Accesses by raw pointer wait during a reset.
    pub fn resets(mut self) -> Self {
        self.resets = true;
        self
    }

    /// Policy `Block`.
    pub fn block(mut self) -> Self {
        self.block = true;
        self
    }

    /// Policy `AllOnes`, for mappings of up to `largest` bytes. That takes 2 MiB of memory up to 512 MiB, and up to a 64th
    /// of `largest` beyond. More than half of the machine's memory is refused with [`AllOnesTooLarge`].
    pub fn all_ones(mut self, largest: usize) -> Self {
        self.all_ones = Some(largest);
        self
    }

    /// Regions that other processes map ([`RegionBuilder::shared`](crate::RegionBuilder::shared)).
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Ioeventfds of devices, with the process's shared loop, whose thread is started.
    pub fn ioeventfds(mut self) -> Self {
        self.ioeventfds = true;
        self
    }
}

/// What [`init`] has made. It stays made as long as this lives.
///
/// ```
/// use revocable_mmio::pci::{Bar, PciDevice};
/// use revocable_mmio::{Needs, init};
///
/// let ready = init(Needs::new().ioeventfds())?;
/// assert!(ready.monitor().is_none(), "Zap was not asked for");
/// let kicks = ready.io_event_loop().ok_or("asked for")?.clone();
/// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).io_event_loop(kicks).build()?;
/// # drop(nic);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropped at once, threads end and files are closed at once"]
pub struct Ready {
    monitor: Option<Monitor>,
    io_event_loop: Option<IoEventLoop>,
    _ones: Vec<Arc<Ones>>,
}

impl Ready {
    /// The monitor, for [`RegionBuilder::monitor`](crate::RegionBuilder::monitor). Regions that are given none use it too
    /// if it is the shared one.
    pub fn monitor(&self) -> Option<&Monitor> {
        self.monitor.as_ref()
    }

    /// The loop of ioeventfds, which devices use that are given none.
    pub fn io_event_loop(&self) -> Option<&IoEventLoop> {
        self.io_event_loop.as_ref()
    }
}

/// One of a program's [`Needs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// A page that a fork wipes, by which a forked child is noticed.
    ForkDetection,
    /// The signal handlers by which accesses recover.
    Handlers,
    /// The file that revoked ranges map.
    Covers,
    /// [`Needs::zap`], [`Needs::monitor`].
    Zap,
    /// [`Needs::detach`].
    Detach,
    /// [`Needs::resets`].
    Resets,
    /// [`Needs::block`].
    Block,
    /// [`Needs::all_ones`].
    AllOnes,
    /// [`Needs::shared`].
    Shared,
    /// [`Needs::ioeventfds`].
    IoEventFds,
}

impl Need {
    fn remedy(self) -> &'static str {
        match self {
            Need::ForkDetection => "needs Linux 4.14",
            Need::Handlers => "needs sigaction(2)",
            Need::Covers | Need::AllOnes => "needs memfd_create(2), descriptors, memory",
            Need::Zap => {
                "needs Linux 5.14 and a userfaultfd: /dev/userfaultfd, CAP_SYS_PTRACE or a launcher's descriptor"
            }
            Need::Detach => "needs Linux 5.13; Replace needs nothing",
            Need::Resets => "needs a userfaultfd and a thread",
            Need::Block => "needs Linux 5.11, a userfaultfd for user-mode faults and a thread",
            Need::Shared => "needs pipes of 1 MiB: pipe-user-pages-soft of pipe(7)",
            Need::IoEventFds => "needs epoll, an eventfd and a thread",
        }
    }
}

/// Why [`Need::AllOnes`] is missing, in [`Missing::source`]: files of ones for such mappings would leave the machine too
/// little memory.
///
/// ```
/// use revocable_mmio::{AllOnesTooLarge, Needs, init};
///
/// let refused = init(Needs::new().all_ones(usize::MAX)).unwrap_err();
/// let why: &AllOnesTooLarge = refused.missing[0].source.downcast_ref().unwrap();
/// assert!(why.largest == usize::MAX && why.needed > why.most);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "all-ones memory for mappings of {largest} bytes takes {needed} bytes, {most} at most: half of the machine's memory"
)]
#[non_exhaustive]
pub struct AllOnesTooLarge {
    /// What [`Needs::all_ones`] was given, in bytes.
    pub largest: usize,
    /// The memory that the files would take, in bytes.
    pub needed: u64,
    /// The most that they may take, in bytes.
    pub most: u64,
}

fn make_ones(largest: usize) -> Result<Vec<Arc<Ones>>, Box<dyn Error + Send + Sync>> {
    let sizes = Ones::sizes(largest);
    let needed = sizes.iter().fold(0_u64, |sum, len| sum.saturating_add(Ones::size_of_file(*len) as u64));
    let most = memory() / 2;
    if needed > most {
        return Err(AllOnesTooLarge { largest, needed, most }.into());
    }
    Ok(sizes.into_iter().map(Ones::for_range).collect::<Result<_, _>>()?)
}

/// A need that cannot be met here.
#[derive(Debug, thiserror::Error)]
#[error("{need:?}: {source} ({})", need.remedy())]
#[non_exhaustive]
pub struct Missing {
    /// What is missing.
    pub need: Need,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

/// Not all needs can be met: see [`init`].
#[derive(Debug)]
#[non_exhaustive]
pub struct InitError {
    /// All that is missing, in the order of [`Need`].
    pub missing: Vec<Missing>,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("missing: ")?;
        for (i, missing) in self.missing.iter().enumerate() {
            write!(f, "{}{missing}", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl Error for InitError {}

/// Does everything that needs files, privileges or new threads: signal handlers, membarrier, userfaultfds, the empty file,
/// files of ones, and the crate's threads. Afterwards regions can be built, mapped and revoked under the seccomp filters
/// that SECCOMP.md lists, and without a file system or a capability.
///
/// May be called again, for more needs. Kernel features that the needs ask for are tried, and the findings remembered. The
/// guide has a page on [sandboxes](crate::guide::sandboxes).
///
/// # Example
/// ```
/// use revocable_mmio::{MapOptions, Needs, OnDisabled, Region, init};
///
/// let ready = init(Needs::new().detach().resets().all_ones(64 << 20));
/// let _ready = match ready {
///     Ok(ready) => ready,
///     Err(e) => {
///         eprintln!("{e}"); // every need that is missing, why, and what it needs
///         init(Needs::new())?
///     }
/// };
/// // The sandbox closes here. Later a BAR is hot-plugged:
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?;
/// # drop(mapping);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`InitError`] lists every need that is missing. The others are met, as long as the program makes regions that use them;
/// a call with fewer needs succeeds.
///
/// # Signal safety
/// Not for signal handlers.
pub fn init(needs: Needs) -> Result<Ready, InitError> {
    let mut missing = Vec::new();
    let mut need = |need: Need, met: Result<(), Box<dyn Error + Send + Sync>>| {
        if let Err(source) = met {
            missing.push(Missing { need, source });
        }
    };
    let mut ready = Ready { monitor: None, io_event_loop: None, _ones: Vec::new() };
    need(Need::ForkDetection, Identity::prepare().map_err(Into::into));
    need(Need::Handlers, signal::install().map_err(Into::into));
    need(Need::Covers, view::prepare_covers().map_err(Into::into));
    // Without membarrier guards cost a fence, and nothing is missing.
    let _ = Support::check(Feature::MEMBARRIER);
    // Remembered, so that a build under a filter does not try.
    let _ = Support::check(Feature::MINOR_SHMEM);
    if needs.zap || needs.monitor.is_some() {
        let monitor = needs.monitor.map_or_else(Monitor::shared, Ok);
        let started = monitor.and_then(|monitor| monitor.start().map(|()| monitor));
        need(Need::Zap, started.map(|monitor| ready.monitor = Some(monitor)).map_err(Into::into));
    }
    let detach = Support::check(Feature::DONTUNMAP);
    if needs.detach {
        need(Need::Detach, detach.map_err(Into::into));
    }
    if needs.resets {
        need(Need::Resets, WaitingRoom::prepare(Waits::Everyone).map_err(Into::into));
    }
    if needs.block {
        need(Need::Block, WaitingRoom::prepare(Waits::UserMode).map_err(Into::into));
    }
    if let Some(largest) = needs.all_ones {
        need(Need::AllOnes, make_ones(largest).map(|ones| ready._ones = ones));
    }
    if needs.shared {
        need(Need::Shared, window::prepare().map_err(Into::into));
    }
    if needs.ioeventfds {
        let kicks = IoEventLoop::shared();
        need(Need::IoEventFds, kicks.map(|kicks| ready.io_event_loop = Some(kicks)).map_err(Into::into));
    }
    if missing.is_empty() { Ok(ready) } else { Err(InitError { missing }) }
}
