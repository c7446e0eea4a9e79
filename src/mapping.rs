//! Mappings: one view of a region, or of a part of it, in this process's address space.

use crate::backing::OnRevoke;
use crate::error::MapError;
use crate::monitor::{self, wake_page};
use crate::policy::OnDisabled;
use crate::protocol::State;
use crate::region::{FaultAround, RegionShared};
use crate::revoke::{Server, Strategy, Tile, View, ViewSpec};
use crate::stats::count;
use crate::sys::map::Prot;
use crate::sys::uffd::{Continued, FaultMessage, Uffd};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[cfg(all(test, not(revocable_model)))]
mod tests;

/// How to map a region; see [`Region::map`](crate::Region::map).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MapOptions {
    offset: usize,
    len: Option<usize>,
    read_only: bool,
    on_disabled: OnDisabled,
    accessors_only: bool,
}

impl MapOptions {
    /// The whole region, read-write, policy [`OnDisabled::Sigbus`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Where in the region the mapping starts, in bytes, a multiple of the region's page size.
    pub fn offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// How long the mapping is, in bytes, a multiple of the region's page size. Default: up to the region's end.
    pub fn len(mut self, len: usize) -> Self {
        self.len = Some(len);
        self
    }

    /// Loads only.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What accesses meet while the region is disabled.
    pub fn on_disabled(mut self, policy: OnDisabled) -> Self {
        self.on_disabled = policy;
        self
    }

    /// For this crate's accessors only (Zap): the faulting thread resolves its own fault, with no monitor and no
    /// hand-over. A raw pointer or a system call that meets a page which is not mapped gets SIGBUS or EFAULT, also while
    /// the region is enabled. Under Detach and Replace the kernel resolves faults and this changes nothing.
    pub fn accessors_only(mut self) -> Self {
        self.accessors_only = true;
        self
    }
}

/// One view of a region.
///
/// A mapping may outlive its region: it then refuses for good. Dropping it unmaps it; a thread that still uses its raw
/// pointer, or waits in a fault of it, then meets what any unmapped address gives (SIGSEGV, EFAULT).
pub struct Mapping {
    pub(crate) served: Arc<Served>,
}

impl Mapping {
    pub(crate) fn new(region: &Arc<RegionShared>, options: MapOptions) -> Result<Self, MapError> {
        if region.protocol.is_inherited() {
            return Err(MapError::Forked);
        }
        let (offset, len) = options.part(region)?;
        let sys = |source| MapError::Sys { len, source };
        let policy = options.on_disabled;
        let server = crate::region::server(region, options.accessors_only)?;
        if policy == OnDisabled::Block && matches!(server, Server::Nobody) {
            return Err(MapError::Policy { policy, why: "waiting needs a userfaultfd, see Support" });
        }
        let ones = match policy {
            OnDisabled::AllOnes => Some(Tile::for_range(len).map_err(sys)?),
            OnDisabled::Sigbus | OnDisabled::Block => None,
        };
        let view = View::reserve(ViewSpec {
            len,
            file_offset: region.file_offset + offset as u64,
            prot: if options.read_only { Prot::Read } else { Prot::ReadWrite },
            policy,
            strategy: region.strategy,
            server,
            ones,
            page: region.page,
            sample: region.owner.as_ptr().addr(),
            drops_file: region.on_revoke == OnRevoke::Drop,
        })
        .map_err(sys)?;
        let served = Arc::new(Served {
            region: Arc::clone(region),
            offset,
            view,
            load_limit: AtomicUsize::new(0),
            store_limit: AtomicUsize::new(0),
            around: Around::new(region.fault_around, region.page),
            spinners: Mutex::default(),
        });
        // From here on dropping it undoes whatever was done.
        let mapping = Self { served };
        mapping.establish().map_err(|e| match e {
            Establish::Sys(source) => sys(source),
            Establish::Monitor(e) => e.into(),
            Establish::Reentrant => MapError::Reentrant,
        })?;
        Ok(mapping)
    }

    /// Puts in place what the region's state asks for, under the read side of the memory lock.
    fn establish(&self) -> Result<(), Establish> {
        let served = &self.served;
        let region = &served.region;
        if let Server::Monitor(monitor) = &served.view.server {
            // The others' faults come to the monitor too, while a reset makes them wait; but they need no answer, so they
            // start no thread for that.
            let target: Arc<dyn monitor::Served> = Arc::clone(served) as _;
            let adopted = monitor.adopt(served.view.range, target);
            if served.view.strategy == Strategy::Zap || served.view.policy == OnDisabled::Block {
                adopted.and_then(|()| monitor.start()).map_err(Establish::Monitor)?;
            }
        }
        let state = match region.protocol.try_read() {
            Some(state) => state,
            // In its own reset callback: it would wait for itself.
            None if region.protocol.is_changed_by_caller() => return Err(Establish::Reentrant),
            None => region.protocol.read(),
        };
        let file = region.file.lock();
        let file = file.as_ref().map(AsFd::as_fd);
        let mut mappings = region.mappings.lock();
        match *state {
            State::Enabled => {
                served.view.restore(file).map_err(Establish::Sys)?;
                served.open();
            }
            State::Disabled | State::Gone => {
                if served.view.policy == OnDisabled::Block && file.is_some() {
                    // Waiting is arranged in place. Nobody knows this range yet.
                    served.view.restore(file).map_err(Establish::Sys)?;
                }
                served.view.refuse(*state == State::Gone).map_err(Establish::Sys)?;
            }
        }
        mappings.insert(served.view.range.addr, Arc::clone(served));
        Ok(())
    }

    /// The first byte. Accesses through it meet [`OnDisabled`] while the region is disabled. Valid until the mapping is
    /// dropped.
    ///
    /// The whole range is the mapping's until then. Rights may be taken away from a part of it (mprotect) and stay so;
    /// nothing else may be mapped there, and nothing moved away: revoking, restoring and dropping work on the whole range.
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
        self.served.offset
    }

    /// Can it be stored to?
    pub fn is_writable(&self) -> bool {
        self.served.view.prot == Prot::ReadWrite
    }

    /// What accesses meet while the region is disabled.
    pub fn on_disabled(&self) -> OnDisabled {
        self.served.view.policy
    }
}

enum Establish {
    Sys(SysError),
    Monitor(crate::MonitorError),
    Reentrant,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let range = self.served.view.range;
        let region = &self.served.region;
        if region.protocol.is_inherited() {
            // There is no mapping, and there may be something else by now. The list keeps the rest as it is.
            return;
        }
        // The list's lock: no change of state is working on the range. `disown`: no monitor is. The range itself goes
        // with the last reference, which is this one: the list and the monitor gave theirs up.
        let mut mappings = region.mappings.lock();
        if mappings.get(&range.addr).is_some_and(|m| Arc::ptr_eq(m, &self.served)) {
            mappings.remove(&range.addr);
        }
        if let Server::Monitor(monitor) = &self.served.view.server {
            monitor.disown(range);
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("region", &self.served.region.name)
            .field("offset", &self.served.offset)
            .field("writable", &self.is_writable())
            .field("on_disabled", &self.on_disabled())
            .field("view", &self.served.view)
            .finish()
    }
}

impl MapOptions {
    /// Offset and length in the region, checked.
    fn part(&self, region: &RegionShared) -> Result<(usize, usize), MapError> {
        let out = |len| MapError::OutOfRange { offset: self.offset, len, region: region.len };
        let rest = region.len.checked_sub(self.offset).ok_or(out(self.len.unwrap_or(0)))?;
        let len = self.len.unwrap_or(rest);
        if len == 0 {
            return Err(MapError::Empty);
        }
        for (what, value) in [("offset", self.offset), ("length", len)] {
            if value % region.page != 0 {
                return Err(MapError::Unaligned { what, value, page: region.page });
            }
        }
        if len > rest { Err(out(len)) } else { Ok((self.offset, len)) }
    }
}

/// What a mapping, its region and its monitor share.
pub(crate) struct Served {
    pub(crate) region: Arc<RegionShared>,
    /// Where in the region the view starts, in bytes.
    pub(crate) offset: usize,
    pub(crate) view: View,
    /// Accesses below this offset may be tried at once: the mapping's length, or 0 while it is known to refuse or
    /// to wait. One comparison checks the bounds and the state.
    pub(crate) load_limit: AtomicUsize,
    /// The same for stores; 0 for ever if the mapping is read-only.
    pub(crate) store_limit: AtomicUsize,
    around: Around,
    spinners: Mutex<Spinners>,
}

impl Served {
    /// Accesses may be tried. A hint, no more: an access that is tried too early faults and looks again.
    pub(crate) fn open(&self) {
        let len = self.view.range.len;
        self.load_limit.store(len, Ordering::Relaxed);
        self.store_limit.store(if self.view.prot == Prot::ReadWrite { len } else { 0 }, Ordering::Relaxed);
    }

    /// Under the read side of the memory lock of an enabled region: puts right what a change that failed half-way left.
    pub(crate) fn heal(&self) {
        self.heal_with(&self.region.file.lock());
    }

    /// [`heal`](Self::heal) for the monitor, which has its table of mappings and so waits for nobody: who has the file may
    /// wait for the list of mappings, and who has that for the table. The thread that faulted will fault again, and the
    /// next try is as good.
    fn try_heal(&self) {
        if let Some(file) = self.region.file.try_lock() {
            self.heal_with(&file);
        }
    }

    fn heal_with(&self, file: &Option<OwnedFd>) {
        if self.view.heal(file.as_ref().map(AsFd::as_fd)) {
            self.open();
        }
    }

    /// Accesses had better look first. A hint: the refusal itself is in the page tables.
    pub(crate) fn close(&self) {
        self.load_limit.store(0, Ordering::Relaxed);
        self.store_limit.store(0, Ordering::Relaxed);
    }

    /// Has everyone who waits here look again.
    pub(crate) fn wake(&self) {
        // First: the faults that this makes are none of a thread that spins.
        self.spinners.lock().faults.clear();
        self.view.wake();
    }

    /// Maps the page at `at` (an offset in the mapping, in bytes) and those around it. The caller holds the read side of
    /// the memory lock and has seen the region enabled; so nothing that a revocation has dropped comes back.
    pub(crate) fn map_pages(&self, uffd: &Uffd, at: usize) -> Result<(), SysError> {
        let page = self.region.page;
        let first = at / page * page;
        let (start, end) = self.around.window(first, self.view.range.len);
        let mut from = start;
        let mut mapped = 0;
        while from < end {
            let part = AddrRange::new(self.view.range.addr + from, end - from);
            match uffd.map_present(part) {
                Ok(Continued::Bytes(n)) => {
                    mapped += n / page;
                    from += n;
                }
                // Somebody was faster. Its waiters were woken by whoever mapped it, unless they came in between.
                Ok(Continued::AlreadyMapped) => {
                    if from == first {
                        let _ = uffd.wake(AddrRange::new(self.view.range.addr + from, page));
                    }
                    from += page;
                }
                Ok(Continued::Hole) if from == first => self.region.owner.populate(self.offset + first, page)?,
                // Around the fault only what the file has is mapped.
                Ok(Continued::Hole) => from += page,
                // Part of the window was unmapped or split off by the application: the page itself, or nothing.
                Ok(Continued::NotRegistered) if from == first && part.len == page => {
                    return Err(SysError::new("UFFDIO_CONTINUE", Errno::ENOENT));
                }
                Err(e) if from == first => return Err(e),
                Ok(Continued::NotRegistered) | Err(_) if from <= first => {
                    return self.map_page(uffd, first);
                }
                // What is wrong behind it is not this fault's business.
                Ok(Continued::NotRegistered) | Err(_) => break,
                Ok(Continued::TryAgain) => std::thread::yield_now(),
            }
        }
        count(&self.region.counters.faults_mapped);
        self.region.counters.pages_mapped.fetch_add(mapped as u64, Ordering::Relaxed);
        Ok(())
    }

    fn map_page(&self, uffd: &Uffd, first: usize) -> Result<(), SysError> {
        let page = AddrRange::new(self.view.range.addr + first, self.region.page);
        loop {
            match uffd.map_present(page)? {
                Continued::Bytes(_) => return Ok(()),
                Continued::AlreadyMapped => return uffd.wake(page),
                Continued::Hole => self.region.owner.populate(self.offset + first, self.region.page)?,
                Continued::NotRegistered => return Err(SysError::new("UFFDIO_CONTINUE", Errno::ENOENT)),
                Continued::TryAgain => std::thread::yield_now(),
            }
        }
    }
}

impl monitor::Served for Served {
    fn serve(&self, fault: FaultMessage) {
        let Some(uffd) = self.view.server.uffd() else { return };
        let counters = &self.region.counters;
        // NOWAIT: whoever holds the write side wakes this mapping's waiters after releasing it, and they fault again.
        let Some(state) = self.region.protocol.try_read() else {
            count(&counters.faults_parked);
            event!(TRACE, region = %self.region.name, addr = fault.addr, tid = fault.tid, "fault, region busy");
            return;
        };
        event!(TRACE, region = %self.region.name, addr = fault.addr, tid = fault.tid, state = ?*state, "fault");
        match *state {
            State::Enabled if self.view.strategy == Strategy::Zap => {
                if self.map_pages(uffd, fault.addr - self.view.range.addr).is_err() {
                    count(&counters.faults_failed);
                    // The file gives no page there: it was truncated, or its file system is full. Left to the kernel, the
                    // thread meets what that answers, SIGBUS; else it would come here again and again. Whatever the kernel
                    // maps there after all is revoked with the rest, which registers the page again.
                    // A page by itself is one more mapping, for which there may be no memory either; all of the range is none.
                    let page = self.region.page;
                    let page = AddrRange::new(fault.addr / page * page, page);
                    let _ = uffd.unregister(page).or_else(|_| uffd.unregister(self.view.range));
                    wake_page(uffd, fault.addr);
                }
            }
            State::Disabled if self.view.policy == OnDisabled::Block => {
                count(&counters.faults_parked);
                let spins = self.spinners.lock().spins(fault.tid);
                if spins && self.view.refuse_kernel_faults().is_err() {
                    count(&counters.degraded);
                }
            }
            // A late message: what waited here has something else to meet by now. Or one that a failed change left in.
            State::Enabled => {
                self.try_heal();
                wake_page(uffd, fault.addr);
            }
            State::Disabled | State::Gone => wake_page(uffd, fault.addr),
        }
    }

    fn abandon(&self) -> bool {
        self.close();
        let refused = self.view.abandon().is_ok();
        if !refused {
            count(&self.region.counters.degraded);
        }
        // Replacing a mapping wakes nobody who waits in it.
        self.view.wake();
        refused
    }
}

/// Finds threads that fault again and again without being woken: in a system call with a signal pending they don't sleep
/// (see `View::refuse_kernel_faults`). What is woken faults again too, once or twice for each change of state, and a region
/// may change its state as often as it likes: so each wake begins the count anew. A thread in user mode runs its handler
/// instead, and faults once for each signal.
#[derive(Default)]
struct Spinners {
    since: Option<Instant>,
    faults: Vec<(u32, u32)>,
}

impl Spinners {
    /// So many faults of one thread within `WINDOW` are no signal handlers' doing.
    const MANY: u32 = 24;
    const WINDOW: Duration = Duration::from_millis(8);

    fn spins(&mut self, tid: u32) -> bool {
        if self.since.is_none_or(|since| since.elapsed() > Self::WINDOW) {
            self.since = Some(Instant::now());
            self.faults.clear();
        }
        match self.faults.iter_mut().find(|(known, _)| *known == tid) {
            Some((_, faults)) => {
                *faults += 1;
                *faults >= Self::MANY
            }
            None => {
                self.faults.push((tid, 1));
                false
            }
        }
    }
}

/// How many pages a fault maps: see [`FaultAround`].
struct Around {
    kind: FaultAround,
    page: usize,
    /// Where the last window ended, and how long it was, in bytes.
    last_end: AtomicUsize,
    last_len: AtomicUsize,
}

const ADAPTIVE_FIRST: usize = 64 << 10;
const ADAPTIVE_MOST: usize = 16 << 20;

impl Around {
    fn new(kind: FaultAround, page: usize) -> Self {
        Self { kind, page, last_end: AtomicUsize::new(usize::MAX), last_len: AtomicUsize::new(0) }
    }

    /// The bytes to map for a fault at `first` in a mapping of `len` bytes; contains `first`.
    fn window(&self, first: usize, len: usize) -> (usize, usize) {
        match self.kind {
            FaultAround::Whole => (0, len),
            FaultAround::Pages(pages) => {
                let size = pages.max(1).saturating_mul(self.page).min(len);
                let start = first / size * size;
                (start, start.saturating_add(size).min(len))
            }
            FaultAround::Adaptive => {
                // Races between faulting threads cost a smaller window, nothing else.
                let follows = self.last_end.load(Ordering::Relaxed) == first;
                let last = self.last_len.load(Ordering::Relaxed);
                let size = if follows { (2 * last).clamp(ADAPTIVE_FIRST, ADAPTIVE_MOST) } else { ADAPTIVE_FIRST };
                let size = size.max(self.page);
                let start = if follows { first } else { first / size * size };
                let end = start.saturating_add(size).min(len);
                self.last_end.store(end, Ordering::Relaxed);
                self.last_len.store(size, Ordering::Relaxed);
                (start, end)
            }
        }
    }
}
