//! Monitors: they read a userfaultfd and resolve its faults.
//!
//! A monitor is a NOWAIT caller. A fault of a region whose memory lock is write-held is left waiting; the thread that
//! releases the lock makes its waiters fault again. So one region's long reset never holds up another's faults.

pub(crate) use self::error::MonitorError;
use self::waiting_room::WaitingRoom;
use crate::stats::MonitorStats;
use crate::sync::inside::{Mutex, RwLock};
use crate::sys::identity::{Identity, PerProcess};
use crate::sys::thread::{self, Thread};
use crate::sys::uffd::{FaultMessage, Messages, Uffd, UffdFeatures, UffdSource};
use crate::sys::{AddrRange, SysError};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

mod core;
pub(crate) mod error;
pub(crate) mod waiting_room;

pub(crate) use self::core::wake_page;
use self::core::{MonitorCore, MonitorCounters, either};

/// A mapping whose faults a monitor resolves.
pub(crate) trait Resolver: Send + Sync {
    /// Resolves a fault, or leaves it waiting for the holder of the memory lock. Never blocks on a lock.
    fn serve(&self, fault: FaultMessage);
    /// The monitor is gone for good: makes the mapping refuse, so that no access waits for ever or reads what is not there.
    /// True if that worked.
    fn abandon(&self) -> bool;
}

/// Resolves the page faults of mappings; see [`RegionBuilder::monitor`](crate::RegionBuilder::monitor).
///
/// The guide has a page on [event loops and monitors](crate::guide::event_loops).
///
/// Cheap to clone: clones are the same monitor. Its threads start with the first mapping that needs them, and stop
/// and are joined when the last clone and the last region that uses it are gone.
///
/// ```
/// use revocable_mmio::{MapOptions, Monitor, Region, Strategy};
///
/// # if !revocable_mmio::Support::current().userfaultfd() {
/// #     eprintln!("SKIP: no userfaultfd");
/// #     return Ok(());
/// # }
/// let monitor = Monitor::with_threads(2)?;
/// monitor.on_thread_start(|| { /* a seccomp filter, CPUs */ });
/// let bar = Region::builder(64 << 10).strategy(Strategy::Zap).monitor(monitor.clone()).build()?;
/// let mapping = bar.map(MapOptions::new())?;
/// // SAFETY: aligned, inside the mapping, and the region is enabled.
/// unsafe { mapping.as_ptr().write_volatile(1) }; // a page fault, which the monitor resolves
/// assert_eq!((monitor.stats().threads, monitor.stats().mappings), (2, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Monitor {
    core: Arc<MonitorCore>,
    threads: Arc<Threads>,
}

impl Monitor {
    /// The process's shared monitor, with one thread. It is made anew if no clone of it is left.
    ///
    /// ```
    /// use revocable_mmio::Monitor;
    ///
    /// # if !revocable_mmio::Support::current().userfaultfd() {
    /// #     eprintln!("SKIP: no userfaultfd");
    /// #     return Ok(());
    /// # }
    /// let monitor = Monitor::shared()?;
    /// println!("{:?}, {} mappings", monitor.source(), monitor.stats().mappings);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MonitorError::Sys`]: no userfaultfd can be opened; [`Support`](crate::Support) says what each kind needs.
    /// Detach and Replace need none.
    pub fn shared() -> Result<Self, MonitorError> {
        type Shared = (Weak<MonitorCore>, Weak<Threads>);
        static SHARED: PerProcess<Mutex<Shared>> = PerProcess::new(|| Mutex::new((Weak::new(), Weak::new())));
        let mut shared = SHARED.get().lock();
        if let (Some(core), Some(threads)) = (shared.0.upgrade(), shared.1.upgrade()) {
            if !core.dead.load(Ordering::Acquire) {
                return Ok(Self { core, threads });
            }
        }
        let made = Self::with_threads(1)?;
        *shared = (Arc::downgrade(&made.core), Arc::downgrade(&made.threads));
        Ok(made)
    }

    /// A monitor of its own with `count` threads, all reading one userfaultfd.
    ///
    /// # Errors
    /// `count` is 0, or no userfaultfd can be opened.
    pub fn with_threads(count: usize) -> Result<Self, MonitorError> {
        if count == 0 {
            return Err(MonitorError::NoThreads);
        }
        Self::over(Uffd::open(features())?, count)
    }

    /// A monitor without a thread, for a caller's own event loop: poll its [`AsFd`] for readability and call
    /// [`handle_ready`](Self::handle_ready).
    ///
    /// ```
    /// use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    /// use revocable_mmio::Monitor;
    /// use std::os::fd::AsFd;
    ///
    /// # if !revocable_mmio::Support::current().userfaultfd() {
    /// #     eprintln!("SKIP: no userfaultfd");
    /// #     return Ok(());
    /// # }
    /// let monitor = Monitor::manual()?;
    /// let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
    /// if poll(&mut fds, PollTimeout::ZERO)? > 0 {
    ///     monitor.handle_ready(64)?; // at most 64 faults, then the loop's other work
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// No userfaultfd can be opened.
    pub fn manual() -> Result<Self, MonitorError> {
        Self::over(Uffd::open(features())?, 0)
    }

    /// A monitor over a userfaultfd that was opened elsewhere in this process, for example before privileges were dropped.
    /// `threads` may be 0, as for [`manual`](Self::manual). If the `UFFDIO_API` handshake of `fd` is already done, it must
    /// have asked for `UFFD_FEATURE_MINOR_SHMEM` (and no event features).
    ///
    /// A userfaultfd serves the process that made it and no other, even after it was passed on: a launcher passes on
    /// `/dev/userfaultfd` instead, see [`from_device`](Self::from_device).
    ///
    /// ```
    /// use revocable_mmio::{Monitor, MonitorError};
    /// # fn opened_before_the_jail() -> std::os::fd::OwnedFd { std::fs::File::open("/dev/null").unwrap().into() }
    ///
    /// let uffd = opened_before_the_jail();
    /// match Monitor::from_fd(uffd, 1) {
    ///     Ok(monitor) => println!("{:?}", monitor.source()),
    ///     Err(MonitorError::Foreign) => println!("it serves another process: hand on /dev/userfaultfd"),
    ///     Err(e) => println!("{e}"), // no userfaultfd
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `fd` is not a userfaultfd, or serves another process ([`MonitorError::Foreign`]): in that process nothing changes,
    /// except that the handshake is done.
    pub fn from_fd(fd: OwnedFd, threads: usize) -> Result<Self, MonitorError> {
        let uffd = Uffd::from_fd(fd, features())?.ok_or(MonitorError::Foreign)?;
        Self::over((uffd, UffdSource::HandedIn), threads)
    }

    /// A monitor over a new userfaultfd, from a `/dev/userfaultfd` that another process opened: a privileged launcher that
    /// passed it on over a socket or through exec. Needs no privilege. `threads` may be 0, as for [`manual`](Self::manual).
    ///
    /// ```
    /// use revocable_mmio::Monitor;
    /// use std::os::fd::AsFd;
    /// # let Ok(device) = std::fs::File::open("/dev/userfaultfd") else {
    /// #     eprintln!("SKIP: /dev/userfaultfd cannot be opened");
    /// #     return Ok(());
    /// # };
    ///
    /// // `device`: /dev/userfaultfd, from a launcher.
    /// let monitor = Monitor::from_device(device.as_fd(), 1)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `device` is not `/dev/userfaultfd` (Linux 6.1).
    pub fn from_device(device: BorrowedFd<'_>, threads: usize) -> Result<Self, MonitorError> {
        let uffd = Uffd::by_device(device, features(), UffdSource::Device)?;
        // The waiting rooms for resets have to come from the device as well.
        WaitingRoom::supply(device);
        Self::over((uffd, UffdSource::Device), threads)
    }

    fn over((uffd, source): (Uffd, UffdSource), count: usize) -> Result<Self, MonitorError> {
        Identity::prepare()?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let bell = bell.map_err(|e| SysError::new("eventfd", e))?;
        let ready = either(&uffd, &bell)?;
        let core = Arc::new(MonitorCore {
            process: Identity::current(),
            ready,
            uffd,
            source,
            mappings: RwLock::new(BTreeMap::new()),
            bell,
            stopping: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            counters: MonitorCounters::default(),
        });
        let threads = Arc::new(Threads {
            core: Arc::clone(&core),
            count,
            running: Mutex::new(Vec::new()),
            first: Mutex::default(),
        });
        Ok(Self { core, threads })
    }

    /// Makes every thread of the monitor call `first` before it resolves its first fault: to install a seccomp filter, or
    /// to choose its CPUs. Call this before the first mapping that needs the monitor, which starts the threads. If `first`
    /// panics, the monitor is dead, and its mappings refuse.
    pub fn on_thread_start(&self, first: impl Fn() + Send + Sync + 'static) {
        let earlier = self.threads.first.lock().replace(Arc::new(first));
        // A user's closure: dropped without the lock.
        crate::users::discard(earlier);
    }

    /// Resolves waiting faults, at most `budget` of them, without blocking; returns how many there were.
    ///
    /// For a [`manual`](Self::manual) monitor; harmless on one with threads. It blocks no longer than resolving a page
    /// takes; a fault of a region that is busy is left waiting.
    ///
    /// # Errors
    /// The userfaultfd is gone: every mapping that it served refuses from now on. [`MonitorError::Foreign`] in a forked
    /// child, which cannot resolve its parent's faults: nothing is changed.
    ///
    /// # Signal safety
    /// Not for signal handlers. The thread that drives a [`manual`](Self::manual) monitor must not fault in a mapping of
    /// that monitor, not even in a handler: it would wait for itself.
    pub fn handle_ready(&self, budget: usize) -> Result<usize, MonitorError> {
        if !self.core.process.is_current() {
            return Err(MonitorError::Foreign);
        }
        let mut messages = Messages::none();
        let mut done = 0;
        while done < budget {
            match self.core.pump(&mut messages, budget - done) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) => {
                    self.core.die();
                    return Err(e.into());
                }
            }
        }
        Ok(done)
    }

    /// Where its userfaultfd is from.
    pub fn source(&self) -> UffdSource {
        self.core.source
    }

    /// Counters, and the latency of resolving faults.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn stats(&self) -> MonitorStats {
        let c = &self.core.counters;
        MonitorStats {
            faults: c.faults.load(Ordering::Relaxed),
            stale: c.stale.load(Ordering::Relaxed),
            panics: c.panics.load(Ordering::Relaxed),
            mappings: self.core.mappings.look().len(),
            threads: self.threads.count,
            answer: c.answer.snapshot(),
        }
    }

    /// Starts the threads if there are none yet.
    pub(crate) fn start(&self) -> Result<(), MonitorError> {
        self.threads.ensure_running()
    }

    /// True if it has failed, so that faults are no longer resolved.
    pub(crate) fn is_dead(&self) -> bool {
        self.core.dead.load(Ordering::Acquire)
    }

    pub(crate) fn uffd(&self) -> &Uffd {
        &self.core.uffd
    }

    /// From now on `served` resolves the faults of `range`.
    pub(crate) fn adopt(&self, range: AddrRange, served: Arc<dyn Resolver>) -> Result<(), MonitorError> {
        let mut mappings = self.core.mappings.write();
        // Checked under the table's lock: `die` sets the flag, then goes through the table. Either `die` finds the mapping
        // in the table, or this finds the flag.
        if self.is_dead() {
            return Err(MonitorError::Dead);
        }
        mappings.insert(range.start, (range, served));
        Ok(())
    }

    /// The opposite of [`adopt`](Self::adopt). When it returns, no fault of `range` is being resolved, so its addresses may
    /// be used for something else.
    pub(crate) fn disown(&self, range: AddrRange) {
        self.core.mappings.write().remove(&range.start);
    }

    /// For a caller that waits for something that a fault may hold up: resolves faults if this is a manual monitor, whose
    /// event loop may be the very caller. True if it is a manual one.
    pub(crate) fn help(&self) -> bool {
        if self.threads.count == 0 {
            let _ = self.handle_ready(64);
        }
        self.threads.count == 0
    }
}

fn features() -> UffdFeatures {
    UffdFeatures::MINOR_SHMEM | UffdFeatures::MINOR_HUGETLBFS | UffdFeatures::THREAD_ID | UffdFeatures::EXACT_ADDRESS
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.uffd.as_fd()
    }
}

/// The `userfaultfd` crate's own features do not name `UFFD_FEATURE_MINOR_SHMEM`, which strategy Zap needs:
/// `UffdBuilder::require_features(FeatureFlags::from_bits_retain(1 << 10))`, with `user_mode_only(false)`.
#[cfg(feature = "userfaultfd")]
#[cfg_attr(docsrs, doc(cfg(feature = "userfaultfd")))]
impl TryFrom<userfaultfd::Uffd> for Monitor {
    type Error = MonitorError;

    /// [`Monitor::from_fd`] with one thread.
    fn try_from(uffd: userfaultfd::Uffd) -> Result<Self, MonitorError> {
        // Not by `into_raw_fd`, which closes the descriptor (userfaultfd 0.9).
        Self::from_fd(crate::sys::map::dup(uffd.as_fd())?, 1)
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mappings: Vec<_> = self.core.mappings.look().values().map(|(range, _)| *range).collect();
        f.debug_struct("Monitor")
            .field("source", &self.core.source)
            .field("threads", &self.threads.count)
            .field("mappings", &mappings)
            .field("dead", &self.core.dead)
            .finish()
    }
}

struct Threads {
    core: Arc<MonitorCore>,
    count: usize,
    running: Mutex<Vec<Thread>>,
    /// The closure that each thread calls first: see [`Monitor::on_thread_start`].
    first: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Threads {
    fn ensure_running(&self) -> Result<(), MonitorError> {
        let mut running = self.running.lock();
        while running.len() < self.count {
            let core = Arc::clone(&self.core);
            let first = self.first.lock().clone();
            let name = format!("mmio-monitor-{}", running.len());
            running.push(thread::spawn(&name, move || {
                match catch_unwind(AssertUnwindSafe(|| first.map(|first| first()))) {
                    Ok(_) => core.run(),
                    Err(_) => core.fail(),
                }
            })?);
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.core.process.is_current() {
            // A forked child has none of the threads, and the eventfd is shared with its parent.
            return;
        }
        self.core.stopping.store(true, Ordering::Release);
        self.core.ring();
        // One of them can be the monitor's last owner, if a served mapping drops it there: that one is not joined.
        self.running.get_mut().drain(..).for_each(Thread::join);
    }
}

#[cfg(test)]
pub(crate) mod tests;
