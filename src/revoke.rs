//! Revoking one mapping and giving it back: what stands in its address range, and how that changes.
//!
//! The three strategies are one state machine with two answers each:
//!
//! | strategy | where do the page tables go? | who serves a fault while enabled? |
//! |---|---|---|
//! | Zap     | dropped, page by page             | the mapping's userfaultfd  |
//! | Detach  | to the alias, in whole subtrees   | the kernel                 |
//! | Replace | dropped with the mapping          | the kernel                 |
//!
//! What stands in the range while it is not live is the same for all: see [`Content`]. Every change is made by the
//! holder of the write side of the memory lock (or, at the start, by the only one who knows the mapping), in an
//! order such that the range is never free for another mmap, and that no page which slips in half-way outlives it.

mod cover;
mod left_over;
mod live;
mod park;
mod parts;

pub(crate) use cover::{Tile, prepare};
pub(crate) use live::map_over;

use crate::OnDisabled;
use crate::sync::inside::Mutex;
use crate::sys::map::{self, Advice, Leave, Prot};
use crate::sys::uffd::Uffd;
use crate::sys::{AddrRange, SysError};
use left_over::{release, sweep};
use live::alignment;
use nix::errno::Errno;
use park::Waits;
use parts::Part;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How a region's mappings are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// Drop the page-table entries (`MADV_DONTNEED`); faults are resolved through userfaultfd. What vfio-pci does.
    /// Cost grows with the pages mapped, both ways. Needs Linux 5.14.
    Zap,
    /// Move the page tables aside (`MREMAP_DONTUNMAP`) and back. Cost does not grow with the pages, and nothing
    /// faults after `enable()`. Needs Linux 5.13 and twice the address space; not for hugetlb.
    Detach,
    /// Replace the mapping (`MAP_FIXED`) and map the file anew. For what userfaultfd cannot register: a BAR of a
    /// vfio device, any device file. Works everywhere; the kernel refills the page tables after `enable()`.
    Replace,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Strategy::Zap => "zap",
            Strategy::Detach => "detach",
            Strategy::Replace => "replace",
        })
    }
}

/// Who answers the faults of a mapping, beside the kernel.
#[derive(Clone)]
pub(crate) enum Server {
    /// A monitor reads them.
    Monitor(crate::Monitor),
    /// A userfaultfd in SIGBUS mode: the faulting thread resolves its own.
    Own(Arc<Uffd>),
    /// Nobody: no userfaultfd, or none wanted.
    Nobody,
}

impl Server {
    pub(crate) fn uffd(&self) -> Option<&Uffd> {
        match self {
            Server::Monitor(monitor) => Some(monitor.uffd()),
            Server::Own(uffd) => Some(uffd),
            Server::Nobody => None,
        }
    }
}

/// What stands in a mapping's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A reservation: never been live.
    Reserved,
    /// The region's memory.
    Live,
    /// Nothing can be reached; faults wait in the mapping's userfaultfd, in place.
    Parked,
    /// Nothing can be reached; faults wait in a stand-in that was moved over the range.
    StandIn,
    /// Another mapping, which refuses: an empty file, or all-ones.
    Covered,
    /// The region's mapping itself, no pages mapped, in a userfaultfd in SIGBUS mode. For accessors only, and where
    /// covering fails.
    Barred,
    /// Nothing of the view's own any more.
    Unmapped,
}

#[derive(Debug)]
struct Place {
    content: Content,
    /// The page tables are at the alias.
    detached: bool,
    /// The application has split the range: what of it was revoked, and with which rights.
    parts: Option<Vec<Part>>,
    /// Covering failed half-way: whatever else stands in the range, some of it may be a cover.
    torn: bool,
    /// Faults may wait in the server's userfaultfd that no wake has reached yet.
    parked_since_wake: bool,
    /// What the stand-in's faults wait in.
    stand_in: Option<Uffd>,
}

/// One mapping's range and all that is needed to revoke it and give it back.
pub(crate) struct View {
    pub(crate) range: AddrRange,
    /// Where the range starts in the region's file, in bytes.
    pub(crate) file_offset: u64,
    pub(crate) prot: Prot,
    pub(crate) policy: OnDisabled,
    pub(crate) strategy: Strategy,
    pub(crate) server: Server,
    /// Twice-as-aligned address space for the page tables (Detach).
    pub(crate) alias: Option<AddrRange>,
    pub(crate) ones: Option<Arc<Tile>>,
    /// The file's page size, in bytes: ranges of hugetlb files are multiples of it.
    pub(crate) page: usize,
    /// An address where the region's file is mapped all the time, 0 for none.
    sample: usize,
    /// Revoked, nothing of the file may stay mapped, and the next one may be another ([`OnRevoke::Drop`](crate::OnRevoke)).
    pub(crate) drops_file: bool,
    place: Mutex<Place>,
}

/// How a mapping came to refuse: as intended, or in a way that is as safe but not as faithful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    Intended,
    Degraded,
}

impl View {
    pub(crate) fn reserve(spec: ViewSpec) -> Result<Self, SysError> {
        sweep();
        let align = alignment(spec.len).max(spec.page);
        let range = map::reserve(spec.len, align)?;
        let alias = match spec.strategy {
            Strategy::Detach => match map::reserve(spec.len, align) {
                Ok(alias) => Some(alias),
                Err(e) => {
                    release(range);
                    return Err(e);
                }
            },
            Strategy::Zap | Strategy::Replace => None,
        };
        let place = Place {
            content: Content::Reserved,
            detached: false,
            parts: None,
            torn: false,
            parked_since_wake: false,
            stand_in: None,
        };
        Ok(Self {
            range,
            file_offset: spec.file_offset,
            prot: spec.prot,
            policy: spec.policy,
            strategy: spec.strategy,
            server: spec.server,
            alias,
            ones: spec.ones,
            page: spec.page,
            sample: spec.sample,
            drops_file: spec.drops_file,
            place: Mutex::new(place),
        })
    }

    /// Is a live range registered with the server's userfaultfd?
    fn served_live(&self) -> bool {
        self.strategy == Strategy::Zap
    }

    /// Nothing reaches the memory any more when it returns, and faults wait.
    pub(crate) fn hold(&self) -> Result<Grade, SysError> {
        let mut place = self.place.lock();
        match place.content {
            Content::Live => {}
            Content::Parked | Content::StandIn => return Ok(Grade::Intended),
            Content::Reserved | Content::Covered | Content::Barred | Content::Unmapped => return Ok(Grade::Intended),
        }
        let done = self.set_aside(&mut place).and_then(|()| self.park(&mut place, Waits::All));
        match done {
            Ok(()) => Ok(Grade::Intended),
            Err(_) => self.refuse_somehow(&mut place).map(|()| Grade::Degraded),
        }
    }

    /// Nothing reaches the memory any more when it returns, and accesses meet what the policy says.
    pub(crate) fn refuse(&self, for_good: bool) -> Result<Grade, SysError> {
        let mut place = self.place.lock();
        if matches!(place.content, Content::Covered | Content::Barred | Content::Unmapped) {
            return Ok(Grade::Intended);
        }
        if place.content == Content::Live && self.set_aside(&mut place).is_err() {
            return self.refuse_whole(&mut place).map(|()| Grade::Degraded);
        }
        let intended = match self.policy {
            // An accessors-only mapping refuses in place: its userfaultfd is in SIGBUS mode all the time.
            _ if self.served_live() && matches!(self.server, Server::Own(_)) && place.content != Content::Reserved => {
                self.bar(&mut place)
            }
            OnDisabled::Block if !for_good => self.park(&mut place, Waits::UserMode),
            OnDisabled::Block | OnDisabled::Sigbus | OnDisabled::AllOnes => self.cover(&mut place),
        };
        match intended {
            Ok(()) => Ok(Grade::Intended),
            Err(_) => match self.refuse_somehow(&mut place) {
                // It waits instead of refusing, and is as unreachable.
                Err(_) if matches!(place.content, Content::Parked | Content::StandIn) => Ok(Grade::Degraded),
                refused => refused.map(|()| Grade::Degraded),
            },
        }
    }

    /// The ways that are left when the intended one failed, from the most faithful to the bluntest.
    fn refuse_somehow(&self, place: &mut Place) -> Result<(), SysError> {
        self.cover_empty(place).or_else(|_| self.bar(place)).or_else(|e| {
            for range in self.part_ranges(place) {
                // SAFETY: the view's own range; nothing is moved or lost.
                #[expect(unsafe_code, reason = "UNSAFETY: changes access rights of the view's own range")]
                let shut = unsafe { map::protect(range, Prot::None) };
                shut.map_err(|_| e)?;
            }
            place.content = Content::Covered;
            Ok(())
        })
    }

    /// Nobody can tell what the range consists of: all of it is covered, so that nothing of the region is reachable.
    fn refuse_whole(&self, place: &mut Place) -> Result<(), SysError> {
        place.parts = None;
        self.cover_empty(place)
    }

    /// The monitor is gone: whatever was to be answered by it refuses instead. Says whether that changed anything.
    pub(crate) fn abandon(&self) -> Result<bool, SysError> {
        let mut place = self.place.lock();
        match place.content {
            // These need no answers.
            Content::Covered | Content::Barred | Content::Unmapped => return Ok(false),
            Content::Live if !self.served_live() => return Ok(false),
            // Only what is the region's own memory is moved to the alias.
            Content::Live => {
                if self.set_aside(&mut place).is_err() {
                    return self.refuse_whole(&mut place).map(|()| true);
                }
            }
            Content::Parked | Content::StandIn | Content::Reserved => {}
        }
        self.refuse_somehow(&mut place).map(|()| true)
    }

    /// The memory is reachable again. On an error the range still refuses (or waits) as before.
    pub(crate) fn restore(&self, file: Option<BorrowedFd<'_>>) -> Result<(), SysError> {
        let mut place = self.place.lock();
        match place.content {
            Content::Live if !place.torn => return Ok(()),
            Content::Unmapped => return Ok(()),
            Content::Parked if !place.detached && !place.torn => self.unpark(&mut place)?,
            Content::Barred if !place.detached && !place.torn => self.unbar(&mut place)?,
            _ if place.detached => self.reattach(&mut place)?,
            _ => match place.parts.clone() {
                Some(parts) => self.map_parts(&mut place, &parts, file)?,
                None => self.map_live(&mut place, file)?,
            },
        }
        place.parts = None;
        place.torn = false;
        Ok(())
    }

    /// For a range of an enabled region, under the read side of the memory lock: puts right what a change whose system
    /// calls failed has left behind. A live range that is none of a userfaultfd's business is registered with none.
    /// Says whether the range is live.
    pub(crate) fn heal(&self, file: Option<BorrowedFd<'_>>) -> bool {
        let live = {
            let place = self.place.lock();
            place.content == Content::Live && !place.torn
        };
        match self.server.uffd() {
            Some(uffd) if live && !self.served_live() => match uffd.unregister(self.range) {
                // What cannot be registered is not (`vma_can_userfault`), nor is anything any more with what was closed, or
                // whose number is another file's by now.
                Err(e) => matches!(e.errno, Errno::EINVAL | Errno::EBADF | Errno::ENOTTY),
                Ok(()) => true,
            },
            _ if live => true,
            _ => self.restore(file).is_ok(),
        }
    }

    /// Makes everyone who may wait in this range fault again and meet what is there now.
    pub(crate) fn wake(&self) {
        let mut place = self.place.lock();
        let parked = place.parked_since_wake;
        place.parked_since_wake = place.content == Content::Parked;
        if let (Some(uffd), true) = (self.server.uffd(), parked || self.served_live()) {
            let _ = uffd.wake(self.range);
        }
        if place.content != Content::StandIn {
            if let Some(uffd) = place.stand_in.take() {
                let _ = uffd.wake(self.range);
            }
        }
    }

    /// Moves the page tables out of the way in one step, where the strategy can. A range that was split by the
    /// application does not move (EFAULT); nor does one whose userfaultfd is in the way. It is then zapped or
    /// covered like any other: slower, as safe.
    #[expect(unsafe_code, reason = "UNSAFETY: moves between the view's own range and its own alias")]
    fn set_aside(&self, place: &mut Place) -> Result<(), SysError> {
        // Of a range that is partly covered already, only what was known before tells the parts.
        if !place.torn {
            place.parts = self.parts()?;
        }
        if let (Some(alias), false) = (self.alias, place.detached) {
            // Asked first: mremap unmaps its target before it finds that the source does not move (`mremap_to`).
            if place.parts.is_some() {
                return Ok(());
            }
            // SAFETY: range and alias are the view's own. The kernel leaves a mapping in the range, whose page
            // tables are empty; whatever a concurrent access faults into it is dropped by what comes next
            // (`cover`, `park` and `bar` all drop the range's pages as their last step).
            place.detached = unsafe { map::move_onto(self.range, alias, Leave::Mapping) }.is_ok();
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "UNSAFETY: moves between the view's own range and its own alias")]
    fn reattach(&self, place: &mut Place) -> Result<(), SysError> {
        let Some(alias) = self.alias else { return Err(SysError::new("mremap", Errno::EINVAL)) };
        // SAFETY: both ranges are the view's own; what stands in the range (a cover, or the emptied mapping) is
        // replaced under the kernel's mmap_lock.
        unsafe { map::move_onto(alias, self.range, Leave::Mapping) }?;
        place.detached = false;
        place.content = Content::Live;
        Ok(())
    }

    /// Drops every page-table entry of the range.
    fn zap(&self, place: &Place) -> Result<(), SysError> {
        self.part_ranges(place).into_iter().try_for_each(zap)
    }

    /// Frees a part of the page tables that are aside, from `done` bytes on; how far it came, `None` at the end.
    #[expect(unsafe_code, reason = "UNSAFETY: drops page-table entries of shared memory in the view's own alias")]
    pub(crate) fn trim(&self, done: usize) -> Option<usize> {
        const STEP: usize = 64 << 20;
        let place = self.place.lock();
        let alias = self.alias.filter(|alias| place.detached && done < alias.len)?;
        let part = AddrRange::new(alias.addr + done, STEP.min(alias.len - done));
        // SAFETY: a part of the view's own alias, which nobody accesses; shared memory, whose content stays in the file.
        unsafe { map::advise(part, Advice::DontNeed) }.ok()?;
        Some(done + part.len)
    }

    /// Gives the range up; the view is of no use afterwards.
    pub(crate) fn unmap(&self) {
        let mut place = self.place.lock();
        if std::mem::replace(&mut place.content, Content::Unmapped) == Content::Unmapped {
            return;
        }
        release(self.range);
        self.alias.into_iter().for_each(release);
        place.detached = false;
        drop(place);
        // munmap wakes nobody: who waited here faults again and meets what an unmapped address gives.
        self.wake();
    }

    /// Bytes of page tables that are aside, at the most: one entry of 8 bytes for each page.
    pub(crate) fn page_tables_kept(&self) -> usize {
        let detached = self.place.lock().detached;
        if detached { self.range.len / self.page * 8 } else { 0 }
    }

    /// Bytes of address space kept beside the range.
    pub(crate) fn alias_bytes(&self) -> usize {
        self.alias.map_or(0, |a| a.len)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.unmap();
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place.lock();
        write!(f, "{:?} {:?}{}", self.range, place.content, if place.detached { ", page tables aside" } else { "" })
    }
}

/// Drops every page-table entry of shared memory in `range`, and has the kernel put none there by itself.
#[expect(unsafe_code, reason = "UNSAFETY: drops page-table entries of shared memory in a view's own range")]
fn zap(range: AddrRange) -> Result<(), SysError> {
    // Where the application has allowed huge pages, MADV_COLLAPSE by anybody, another process too, maps one behind the
    // userfaultfd's back. Forbidden first: a collapse under way looks again before it maps (`collapse_pte_mapped_thp`).
    // SAFETY: the view's own range; this drops nothing.
    match unsafe { map::advise(range, Advice::NoHugePage) } {
        // hugetlb knows no such advice, nor does a kernel without huge pages.
        Err(e) if e.errno == Errno::EINVAL => {}
        other => but_for_holes(range, other)?,
    }
    // SAFETY: the view's own range, and shared memory: its content stays in the file.
    let zapped = unsafe { map::advise(range, Advice::DontNeed) };
    let zapped = match zapped {
        // A locked mapping (mlock, mlockall) refuses the plain advice.
        // SAFETY: as above.
        Err(e) if e.errno == Errno::EINVAL => unsafe { map::advise(range, Advice::DontNeedLocked) },
        other => other,
    };
    but_for_holes(range, zapped)
}

/// Holes that the application has made are passed over and told at the end (madvise(2)).
fn but_for_holes(range: AddrRange, advised: Result<(), SysError>) -> Result<(), SysError> {
    match advised {
        Err(e) if e.errno == Errno::ENOMEM && map::has_hole(range) => Ok(()),
        other => other,
    }
}

/// What a view is made from.
pub(crate) struct ViewSpec {
    pub(crate) len: usize,
    pub(crate) file_offset: u64,
    pub(crate) prot: Prot,
    pub(crate) policy: OnDisabled,
    pub(crate) strategy: Strategy,
    pub(crate) server: Server,
    pub(crate) ones: Option<Arc<Tile>>,
    pub(crate) page: usize,
    /// An address where the region's file is mapped all the time, 0 for none.
    pub(crate) sample: usize,
    pub(crate) drops_file: bool,
}

/// The process-wide userfaultfd in SIGBUS mode: nobody reads it, whoever faults in it gets SIGBUS.
pub(crate) fn refuser() -> Result<Arc<Uffd>, SysError> {
    // By process: a userfaultfd that a forked child has inherited is its parent's.
    static REFUSER: Mutex<Option<(crate::sys::identity::Identity, Arc<Uffd>)>> = Mutex::new(None);
    let mut refuser = REFUSER.lock();
    let here = crate::sys::identity::Identity::current();
    if let Some((_, uffd)) = refuser.as_ref().filter(|(made, _)| *made == here) {
        return Ok(Arc::clone(uffd));
    }
    use crate::sys::uffd::UffdFeatures;
    let features = UffdFeatures::MINOR_SHMEM | UffdFeatures::MINOR_HUGETLBFS | UffdFeatures::SIGBUS;
    let uffd = Arc::new(Uffd::open(features)?.0);
    *refuser = Some((here, Arc::clone(&uffd)));
    Ok(uffd)
}

pub(crate) fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
    fd.try_clone_to_owned().map_err(|e| SysError::new("fcntl(F_DUPFD_CLOEXEC)", errno(e)))
}
