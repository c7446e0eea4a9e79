//! Regions: device memory, its state, its mappings.

use crate::async_fault::PendingFaults;
use crate::backing::{Backing, File, Kind, OnRevoke};
use crate::error::{BuildError, MapError, RevokeError};
use crate::mapping::{MapOptions, Mapping, Served};
use crate::monitor::Monitor;
use crate::notify::Notifiers;
use crate::owner::OwnerView;
use crate::pin::PinTable;
use crate::protocol::{Mechanism, Protocol, State};
use crate::revoke::{Grade, Server, Strategy};
use crate::stats::{RegionCounters, RegionStats, count};
use crate::sys::SysError;
use crate::sys::probe::{Feature, Support};
use crate::wait::Patience;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How many pages one fault maps (Zap).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FaultAround {
    /// 64 KiB at first, twice as much each time a fault follows on the one before, up to 16 MiB: a single access stays
    /// cheap, walking a region costs a third of what the kernel's own minor faults cost. The default.
    #[default]
    Adaptive,
    /// So many pages, in a window of that size around the fault. 1: nothing but the page itself.
    Pages(usize),
    /// The whole mapping.
    Whole,
}

/// Makes a [`Region`].
#[derive(Debug)]
#[must_use]
pub struct RegionBuilder {
    len: usize,
    name: String,
    backing: Backing,
    strategy: Option<Strategy>,
    monitor: Option<Monitor>,
    fault_around: FaultAround,
    enabled: bool,
    trim_detached: bool,
}

impl RegionBuilder {
    /// A name for `Debug`, errors and /proc/self/maps (which shows a memfd's name). Default: `mmio`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the memory is. Default: a sealed memfd of its own.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// How mappings are revoked. Default: the best that works here, told by [`Region::strategy`].
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Who resolves faults. Default: [`Monitor::shared`], started with the first mapping that needs it.
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

    /// Detach keeps a disabled mapping's page tables (up to 2 MiB for 1 GiB), so that `enable()` need not fill them again.
    /// With this, a background thread frees them after each `disable()`: for those who mostly revoke for good.
    pub fn trim_detached(mut self) -> Self {
        self.trim_detached = true;
        self
    }

    /// Makes the region.
    ///
    /// # Errors
    /// Nothing is left behind: see [`BuildError`].
    pub fn build(self) -> Result<Region, BuildError> {
        let support = Support::current();
        let file = self.backing.open(&self.name, self.len)?;
        let strategy = choose(self.strategy, &file, support, self.monitor.is_some())?;
        let monitor = match self.monitor {
            Some(monitor) => Some(monitor),
            None if support.userfaultfd() => Some(Monitor::shared()?),
            None => None,
        };
        crate::signal::install()?;
        let owner = OwnerView::new(&file, self.len)?;
        crate::revoke::prepare()?;
        let initial = if self.enabled { State::Enabled } else { State::Disabled };
        let File { fd, offset, page, kind, on_revoke } = file;
        let shared = RegionShared {
            name: self.name,
            len: self.len,
            page,
            kind,
            on_revoke,
            file_offset: offset,
            file: Mutex::new(Some(fd)),
            owner,
            strategy,
            monitor,
            fault_around: self.fault_around,
            trim_detached: self.trim_detached,
            protocol: Protocol::new(initial),
            mappings: Mutex::new(BTreeMap::new()),
            pinned: PinTable::default(),
            notifiers: Notifiers::new(self.enabled),
            pending: Arc::default(),
            counters: RegionCounters::default(),
        };
        if on_revoke == OnRevoke::Drop && initial == State::Disabled {
            *shared.file.lock() = None;
        }
        Ok(Region { shared: Arc::new(shared) })
    }
}

/// The strategy for a file: the one asked for, if it is possible, or the best that is.
fn choose(asked: Option<Strategy>, file: &File, support: Support, monitor: bool) -> Result<Strategy, BuildError> {
    let minor = if file.kind == Kind::Hugetlb { Feature::MINOR_HUGETLB } else { Feature::MINOR_SHMEM };
    let obstacle = |strategy| match (strategy, file.kind) {
        (Strategy::Replace, _) => None,
        (Strategy::Zap | Strategy::Detach, Kind::Other) => {
            Some("userfaultfd and MREMAP_DONTUNMAP serve memfd, tmpfs and hugetlb files only")
        }
        (Strategy::Detach, Kind::Hugetlb) => Some("MREMAP_DONTUNMAP does not move hugetlb mappings"),
        (Strategy::Detach, Kind::Shmem) if !support.has(Feature::DONTUNMAP) => {
            Some("no MREMAP_DONTUNMAP on shared memory (Linux 5.13)")
        }
        // A monitor that was handed in may have what this process could not get by itself; mapping tells.
        (Strategy::Zap, _) if monitor => None,
        (Strategy::Zap, _) if !support.has(minor) => Some("no userfaultfd with minor faults (Linux 5.14)"),
        (Strategy::Zap, _) if !support.userfaultfd() => Some("no userfaultfd"),
        _ => None,
    };
    match asked {
        Some(strategy) => match obstacle(strategy) {
            None => Ok(strategy),
            Some(why) => Err(BuildError::Strategy { strategy, why }),
        },
        None => {
            let best = [Strategy::Detach, Strategy::Zap, Strategy::Replace];
            Ok(best.into_iter().find(|s| obstacle(*s).is_none()).unwrap_or(Strategy::Replace))
        }
    }
}

pub(crate) struct RegionShared {
    pub(crate) name: String,
    pub(crate) len: usize,
    pub(crate) page: usize,
    pub(crate) kind: Kind,
    pub(crate) on_revoke: OnRevoke,
    pub(crate) file_offset: u64,
    /// `None`: dropped on revocation.
    pub(crate) file: Mutex<Option<OwnedFd>>,
    pub(crate) owner: OwnerView,
    pub(crate) strategy: Strategy,
    pub(crate) monitor: Option<Monitor>,
    pub(crate) fault_around: FaultAround,
    trim_detached: bool,
    pub(crate) protocol: Protocol,
    /// By first address.
    pub(crate) mappings: Mutex<BTreeMap<usize, Arc<Served>>>,
    pub(crate) pinned: PinTable,
    pub(crate) notifiers: Notifiers,
    pub(crate) pending: Arc<PendingFaults>,
    pub(crate) counters: RegionCounters,
}

impl RegionShared {
    /// Ends it for good, whatever it takes; without anybody to tell of a failure, there is only the next try.
    fn end(&self) {
        while let Err(RevokeError::Sys { .. } | RevokeError::Barrier(_)) = self.change(State::Gone, Patience::Forever) {
            if self.mappings.lock().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn grade(&self, done: Result<Grade, SysError>, mapping: &Served) -> Result<(), RevokeError> {
        match done {
            Ok(Grade::Intended) => Ok(()),
            Ok(Grade::Degraded) => {
                count(&self.counters.degraded);
                event!(WARN, region = %self.name, addr = mapping.view.range.addr, "degraded");
                Ok(())
            }
            Err(source) => Err(RevokeError::Sys { addr: mapping.view.range.addr, source }),
        }
    }

    /// Disables, enables or ends for good, measured.
    fn change(&self, to: State, patience: Patience) -> Result<bool, RevokeError> {
        self.change_among(to, patience, patience)
    }

    /// With a patience of its own for those who are in the middle of a single access: see `Protocol::begin_among`.
    fn change_among(&self, to: State, patience: Patience, readers: Patience) -> Result<bool, RevokeError> {
        span!(DEBUG, "change", region = %self.name, to = ?to);
        let since = Instant::now();
        let Some(mut change) = self.protocol.begin_among(self, Some(to), patience, readers)? else {
            return Ok(false);
        };
        let (counter, took) = match to {
            State::Enabled => {
                change.enable()?;
                (&self.counters.enables, &self.counters.enable)
            }
            State::Disabled | State::Gone => {
                change.disable(to)?;
                (&self.counters.disables, &self.counters.disable)
            }
        };
        drop(change);
        count(counter);
        let elapsed = since.elapsed();
        took.record(elapsed);
        match to {
            State::Enabled => event!(DEBUG, region = %self.name, took = ?elapsed, "restored"),
            State::Disabled | State::Gone => event!(DEBUG, region = %self.name, took = ?elapsed, "revoked"),
        }
        Ok(true)
    }

    /// Frees the page tables that Detach has put aside, in the background.
    fn trim(self: &Arc<Self>) {
        let region: Weak<Self> = Arc::downgrade(self);
        let starts: Vec<usize> = self.mappings.lock().keys().copied().collect();
        let trimming = move || {
            for start in starts {
                // One step at a time, so that neither an `enable()` nor the mapping's end waits for more than that. Under the
                // list's lock, and holding nothing of the mapping's: when its drop has returned, it is unmapped.
                let mut done = Some(0);
                while let (Some(from), Some(region)) = (done, region.upgrade()) {
                    done = region.mappings.lock().get(&start).and_then(|served| served.view.trim(from));
                }
            }
        };
        // Without a thread the page tables stay, which costs memory and nothing else.
        let _ = std::thread::Builder::new().name("mmio-trim".to_owned()).spawn(trimming);
    }
}

impl Mechanism for RegionShared {
    fn before_revoke(&self) {
        self.notifiers.before_revoke();
    }

    fn after_restore(&self) {
        self.notifiers.after_restore();
    }

    fn want_pins_back(&self) {
        self.pinned.tell();
    }

    fn hold(&self) -> Result<(), RevokeError> {
        for mapping in self.mappings.lock().values() {
            mapping.close();
            self.grade(mapping.view.hold(), mapping)?;
        }
        Ok(())
    }

    fn refuse(&self, for_good: bool) -> Result<(), RevokeError> {
        let mut refused = Ok(());
        for mapping in self.mappings.lock().values() {
            mapping.close();
            // One that fails does not spare the others.
            refused = refused.and(self.grade(mapping.view.refuse(for_good), mapping));
        }
        refused?;
        if self.on_revoke == OnRevoke::Drop {
            *self.file.lock() = None;
        }
        Ok(())
    }

    fn restore(&self) -> Result<(), RevokeError> {
        let file = self.file.lock();
        if file.is_none() {
            return Err(RevokeError::NoFile);
        }
        for mapping in self.mappings.lock().values() {
            let addr = mapping.view.range.addr;
            let restored = mapping.view.restore(file.as_ref().map(AsFd::as_fd));
            restored.map_err(|source| RevokeError::Sys { addr, source })?;
            mapping.open();
        }
        Ok(())
    }

    fn wake(&self) {
        for mapping in self.mappings.lock().values() {
            mapping.wake();
        }
        self.pending.settle(|| self.protocol.phase());
    }

    fn help(&self) -> bool {
        self.monitor.as_ref().is_some_and(Monitor::help)
    }
}

/// Device memory that can be taken away from everyone who has it mapped, and given back.
///
/// Dropping a region revokes it for good: its mappings stay, refusing, until they are dropped too.
///
/// A forked child inherits no mapping: where its parent has one, it has nothing, and later maybe something else. It can drop
/// what it has inherited, which does nothing, and must not access it.
pub struct Region {
    pub(crate) shared: Arc<RegionShared>,
}

impl Region {
    /// Starts making a region of `len` bytes, a multiple of the page size.
    pub fn builder(len: usize) -> RegionBuilder {
        RegionBuilder {
            len,
            name: "mmio".to_owned(),
            backing: Backing::Memfd,
            strategy: None,
            monitor: None,
            fault_around: FaultAround::default(),
            enabled: true,
            trim_detached: false,
        }
    }

    /// Maps the region, or a part of it, while enabled or disabled alike. Waits while the region is busy.
    ///
    /// # Errors
    /// Nothing is left behind: see [`MapError`].
    pub fn map(&self, options: MapOptions) -> Result<Mapping, MapError> {
        Mapping::new(&self.shared, options)
    }

    /// Is the memory reachable through its mappings? While a change is under way: was it before?
    pub fn is_enabled(&self) -> bool {
        self.shared.protocol.was_enabled()
    }

    /// Revokes every mapping. When it returns, nothing reaches the memory through any of them until
    /// [`enable`](Self::enable). Says whether this call changed the state.
    ///
    /// # Blocking
    /// Waits for guards and pins to be dropped, for another thread's change of state, and for single accesses on a caller's
    /// behalf, as long as it takes.
    ///
    /// # Errors
    /// The state is as before: see [`RevokeError`].
    pub fn disable(&self) -> Result<bool, RevokeError> {
        self.disable_with(Patience::Forever)
    }

    /// [`disable`](Self::disable) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `disable` would wait.
    pub fn try_disable(&self) -> Result<bool, RevokeError> {
        self.disable_with(Patience::Never)
    }

    /// [`disable`](Self::disable) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says for whom it waited.
    pub fn disable_timeout(&self, patience: Duration) -> Result<bool, RevokeError> {
        self.disable_with(until(patience))
    }

    fn disable_with(&self, patience: Patience) -> Result<bool, RevokeError> {
        let changed = self.shared.change(State::Disabled, patience)?;
        if changed && self.shared.trim_detached {
            self.shared.trim();
        }
        Ok(changed)
    }

    /// Gives every mapping its memory back, with the content it had. Says whether this call changed the state.
    ///
    /// # Blocking
    /// Waits for another thread's change of state only.
    ///
    /// # Errors
    /// The region stays disabled: see [`RevokeError`].
    pub fn enable(&self) -> Result<bool, RevokeError> {
        self.shared.change(State::Enabled, Patience::Forever)
    }

    /// [`enable`](Self::enable) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `enable` would wait.
    pub fn try_enable(&self) -> Result<bool, RevokeError> {
        self.shared.change(State::Enabled, Patience::Never)
    }

    /// Runs `reset` while nothing reaches the memory through any mapping. Accesses to an enabled region wait for its
    /// end, none is refused; a disabled region stays disabled.
    ///
    /// `reset` gets the owner's view. It must not change this region's state, nor touch its mappings other than by `try_`
    /// accesses: they would wait for it. A panic in it passes on to the caller, after the mappings are back.
    ///
    /// # Blocking
    /// As [`disable`](Self::disable).
    ///
    /// # Errors
    /// The region is as before; [`RevokeError::Sys`] from giving the memory back leaves it disabled.
    pub fn reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Forever, reset)
    }

    /// [`reset`](Self::reset) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `reset` would wait.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Never, reset)
    }

    fn reset_with<R>(&self, patience: Patience, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        let shared = &*self.shared;
        span!(DEBUG, "reset", region = %shared.name);
        let Some(mut change) = shared.protocol.begin(shared, None, patience)? else { return Err(RevokeError::Gone) };
        change.hold()?;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reset(&shared.owner)));
        let released = change.release();
        drop(change);
        count(&shared.counters.resets);
        event!(DEBUG, region = %shared.name, "reset");
        match done {
            Ok(value) => released.map(|()| value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Hands in a file for a device that was dropped on revocation ([`OnRevoke::Drop`]), before `enable()`. An `enable()` that
    /// fails drops it again.
    ///
    /// # Errors
    /// The region has its file; `device` is handed back.
    pub fn supply(&self, device: OwnedFd) -> Result<(), OwnedFd> {
        let mut file = self.shared.file.lock();
        match *file {
            Some(_) => Err(device),
            None => {
                *file = Some(device);
                Ok(())
            }
        }
    }

    /// The device side's view, which no revocation touches.
    pub fn owner(&self) -> &OwnerView {
        &self.shared.owner
    }

    /// The length, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        self.shared.len
    }

    /// The page size of its memory, in bytes: offsets and lengths of mappings are multiples of it.
    pub fn page_size(&self) -> usize {
        self.shared.page
    }

    /// The name given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How its mappings are revoked.
    pub fn strategy(&self) -> Strategy {
        self.shared.strategy
    }

    /// Counters and latencies.
    pub fn stats(&self) -> RegionStats {
        use std::sync::atomic::Ordering::Relaxed;
        let c = &self.shared.counters;
        let mappings = self.shared.mappings.lock();
        RegionStats {
            disables: c.disables.load(Relaxed),
            enables: c.enables.load(Relaxed),
            resets: c.resets.load(Relaxed),
            faults_mapped: c.faults_mapped.load(Relaxed),
            pages_mapped: c.pages_mapped.load(Relaxed),
            faults_parked: c.faults_parked.load(Relaxed),
            faults_failed: c.faults_failed.load(Relaxed),
            refused: self.shared.protocol.gate.turned_away(),
            degraded: c.degraded.load(Relaxed),
            notifier_errors: self.shared.notifiers.errors.load(Relaxed),
            notifier_panics: self.shared.notifiers.panics.load(Relaxed),
            mappings: mappings.len(),
            guards: self.shared.protocol.gate.held_guards().iter().map(|held| held.count).sum(),
            pins: self.shared.protocol.pins(),
            alias_bytes: mappings.values().map(|m| m.view.alias_bytes()).sum(),
            page_tables_kept: mappings.values().map(|m| m.view.page_tables_kept()).sum(),
            disable: c.disable.snapshot(),
            enable: c.enable.snapshot(),
        }
    }
}

pub(crate) fn until(patience: Duration) -> Patience {
    // More than the clock can tell is for ever.
    Instant::now().checked_add(patience).map_or(Patience::Forever, Patience::Until)
}

impl Drop for Region {
    fn drop(&mut self) {
        let shared = &self.shared;
        // A drop waits for nobody: what guards and pins still promise is kept, and ended in the background.
        // Nor is a monitor in the middle of an answer a reason to leave it reachable when this returns.
        let readers = until(crate::group::READERS);
        match shared.change_among(State::Gone, Patience::Never, readers) {
            Ok(_) | Err(RevokeError::Gone | RevokeError::Forked) => {}
            Err(e) => {
                let later = Arc::clone(shared);
                let spawned = std::thread::Builder::new().name("mmio-drop".to_owned()).spawn(move || later.end());
                // No thread can be had: better wait than leave it reachable, unless that would be for ever.
                if spawned.is_err() && !matches!(e, RevokeError::WouldDeadlock { .. } | RevokeError::Reentrant) {
                    shared.end();
                }
            }
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("Region")
            .field("name", &shared.name)
            .field("len", &shared.len)
            .field("state", &shared.protocol.phase())
            .field("strategy", &shared.strategy)
            .field("memory", &shared.kind)
            .field("page", &shared.page)
            .field("mappings", &shared.mappings.lock().values().map(|m| &m.view).collect::<Vec<_>>())
            .field("pins", &shared.protocol.pins())
            .finish_non_exhaustive()
    }
}

/// Which server a mapping of a region gets.
pub(crate) fn server(shared: &RegionShared, own: bool) -> Result<Server, MapError> {
    // An access that does not recover would end the process where it is to resolve its own fault: a monitor does, then.
    if own && shared.strategy == Strategy::Zap && crate::access::raw::RECOVERABLE {
        let uffd = crate::revoke::refuser().map_err(|source| MapError::Sys { len: 0, source })?;
        return Ok(Server::Own(uffd));
    }
    Ok(shared.monitor.clone().map_or(Server::Nobody, Server::Monitor))
}
