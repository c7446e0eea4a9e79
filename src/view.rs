//! One range of address space: how it is made to reach nothing, and given its memory back.
//!
//! While a range is not live, nothing of the region's file is mapped in it. So nothing that happens to a descriptor, to a
//! userfaultfd or to the range itself (MADV_COLLAPSE, a duplicate by mremap) can open it. The range contains instead:
//!
//! | content | made of | a load or store | a system call |
//! |---|---|---|---|
//! | cover | an empty file, or a file of ones | SIGBUS at the exact byte, or all-ones | EFAULT, or all-ones |
//! | stand-in | private memory with a userfaultfd of its own | waits | waits during a reset, EFAULT under Block |
//!
//! The strategies differ in what happens to the page tables before that, and in the server of a live range's faults:
//!
//! | strategy | the page tables | faults while live |
//! |---|---|---|
//! | Zap     | are dropped, page by page (`MADV_DONTNEED`) | the mapping's [`Server`] |
//! | Detach  | are moved aside in whole subtrees, and moved back | the kernel |
//! | Replace | are dropped with what is replaced | the kernel |
//!
//! The holder of the write side of the memory lock makes every change (at the start, the only thread that knows the
//! mapping), under the lock of the range's [`Standing`]. The content of a range is replaced, never unmapped first, so the
//! range is never free for another mmap; and the replacing drops all pages that the kernel has mapped there meanwhile.

mod aside;
mod cover;
mod left_over;
mod live;
mod ranges;
mod rights;
mod server;
mod stand_in;
mod strategy;

pub(crate) use cover::Ones;
pub(crate) use live::Prepared;
pub(crate) use server::{Server, refuser};
pub use strategy::Strategy;

use crate::monitor::waiting_room::{WaitingRoom, Waits};
use crate::protocol::policy::OnDisabled;
use crate::sync::inside::{Mutex, MutexGuard, RwLock};
use crate::sys::identity::Identity;
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Prot};
use crate::sys::{Addr, AddrRange, SysError, page_size};
use left_over::release;
use nix::errno::Errno;
use rights::{Part, Rights};
use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;

/// The properties of a view that do not change.
pub(crate) struct ViewSpec {
    pub(crate) len: usize,
    /// Where the range starts in the region's file, in bytes.
    pub(crate) file_offset: u64,
    /// The most rights that any part of it has.
    pub(crate) prot: Prot,
    pub(crate) policy: OnDisabled,
    pub(crate) strategy: Strategy,
    pub(crate) server: Server,
    /// The file of all-ones covers, for that policy.
    pub(crate) ones: Option<Arc<Ones>>,
    /// The file's page size, in bytes: ranges of hugetlb files are multiples of it.
    pub(crate) page: usize,
    /// True for a device's memory, which the kernel maps by huge pages wherever it can.
    pub(crate) is_device: bool,
    /// True for a range that only the crate's accessors use: they wait at the region's lock, not in a page fault.
    pub(crate) accessors_only: bool,
}

/// The content of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A reservation that was never anything else, or the rest of a failed step: maybe a part of the file, without rights.
    Unsettled,
    /// The region's memory.
    Live,
    /// A cover, which refuses.
    Cover,
    /// A stand-in, in which faults wait.
    StandIn(Waits),
    /// Nothing of the view any more.
    Unmapped,
}

struct Standing {
    content: Content,
    /// The address of the page tables while they are aside, which the kernel has chosen.
    aside: Option<AddrRange>,
    /// Their last address, as a hint for the next time.
    hint: Option<Addr>,
    /// A part of the range where nothing is mapped, since a call that was to replace its content failed.
    hole: Option<AddrRange>,
    /// The rooms in which faults of this range may wait that no wake has reached yet.
    waiting: Vec<Arc<WaitingRoom>>,
}

/// How a range refuses or waits: as intended, or in a way that is as safe but not what the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    Intended,
    Degraded,
}

/// One range, with all that revoking it and giving it back needs.
pub(crate) struct View {
    pub(crate) spec: ViewSpec,
    pub(crate) range: AddrRange,
    /// The process that the range is in. In a forked child there is nothing of the view's.
    identity: Identity,
    standing: Mutex<Standing>,
    /// The rights of the parts of the range. Written under the lock of `standing`, for a moment, by a thread that no signal
    /// handler interrupts.
    rights: RwLock<Rights>,
}

impl View {
    /// Reserves a range of its own, in which nothing can be reached yet.
    pub(crate) fn reserve(spec: ViewSpec) -> Result<Self, SysError> {
        Identity::prepare()?;
        let range = ranges::take(spec.len, alignment(spec.len).max(spec.page))?;
        let standing =
            Standing { content: Content::Unsettled, aside: None, hint: None, hole: None, waiting: Vec::new() };
        let rights = RwLock::new(Rights::whole(range, spec.prot));
        Ok(Self { spec, range, identity: Identity::current(), standing: Mutex::new(standing), rights })
    }

    /// The standing, for threads that change no state: see [`Mutex::lock_quietly`].
    fn look(&self) -> Option<impl DerefMut<Target = Standing>> {
        self.identity.is_current().then(|| self.standing.lock_quietly())
    }

    /// The standing, for the changer of the state; a forked child has no such range.
    fn standing(&self) -> Result<MutexGuard<'_, Standing>, SysError> {
        // Checked first: in a child the lock may be held for ever by a thread of the parent.
        match self.identity.is_current() {
            true => Ok(self.standing.lock()),
            false => Err(SysError::new("fork", Errno::ESRCH)),
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        let standing = self.look().map(|standing| (standing.content, standing.aside.is_some()));
        Shown { range: self.range, standing }
    }

    /// True if the server resolves the faults of the live range.
    pub(crate) fn is_served(&self) -> bool {
        self.spec.strategy == Strategy::Zap
    }

    /// True if the region's memory is in the range. For the changer of the state.
    pub(crate) fn is_live(&self) -> bool {
        self.standing().is_ok_and(|standing| standing.content == Content::Live)
    }

    /// When it returns, nothing reaches the memory any more, and accesses wait.
    pub(crate) fn hold(&self) -> Result<Grade, SysError> {
        let mut standing = self.standing()?;
        match standing.content {
            Content::Live | Content::Unsettled => {}
            Content::Cover | Content::StandIn(_) | Content::Unmapped => return Ok(Grade::Intended),
        }
        let whole = self.take_away(&mut standing);
        match self.spec.accessors_only {
            true => self.cover_empty(&mut standing).map(|()| whole),
            false => self.stand_in(&mut standing, Waits::Everyone).map(|()| whole),
        }
        .or_else(|_| self.refuse_somehow(&mut standing))
    }

    /// When it returns, nothing reaches the memory any more, and accesses get what the policy says. `for_good`: no access
    /// is left waiting.
    pub(crate) fn refuse(&self, for_good: bool) -> Result<Grade, SysError> {
        let mut standing = self.standing()?;
        let waits = self.spec.policy == OnDisabled::Block && !for_good && !self.spec.accessors_only;
        match standing.content {
            Content::Cover | Content::Unmapped => return Ok(Grade::Intended),
            Content::StandIn(Waits::UserMode) if waits => return Ok(Grade::Intended),
            Content::Live | Content::StandIn(_) | Content::Unsettled => {}
        }
        let whole = self.take_away(&mut standing);
        let refused = match (waits, self.spec.policy) {
            (true, _) => self.stand_in(&mut standing, Waits::UserMode),
            (false, OnDisabled::AllOnes) => self.cover_ones(&mut standing),
            (false, OnDisabled::Sigbus | OnDisabled::Block) => self.cover_empty(&mut standing),
        };
        refused.map(|()| whole).or_else(|_| self.refuse_somehow(&mut standing))
    }

    /// The remaining ways to refuse, after the intended one failed.
    fn refuse_somehow(&self, standing: &mut Standing) -> Result<Grade, SysError> {
        match self.cover_empty(standing).or_else(|_| self.shut(standing)) {
            // It waits instead of refusing, and is just as unreachable.
            Err(_) if matches!(standing.content, Content::StandIn(_)) => Ok(Grade::Degraded),
            refused => refused.map(|()| Grade::Degraded),
        }
    }

    /// After the end of the monitor: makes a live range refuse whose faults the monitor resolved. True if that changed
    /// anything.
    pub(crate) fn abandon(&self) -> Result<bool, SysError> {
        let mut standing = self.standing()?;
        if standing.content != Content::Live || !self.is_served() {
            return Ok(false);
        }
        self.take_away(&mut standing);
        self.refuse_somehow(&mut standing).map(|_| true)
    }

    /// Puts something else into a part of the range by a call that replaces its content. The content counts as unsettled
    /// until all of it is replaced; then the caller sets it.
    ///
    /// A call that fails leaves the old content, or nothing at all. In that case the part is reserved, before another
    /// thread's mmap finds it free, or is remembered as a hole.
    #[expect(unsafe_code, reason = "UNSAFETY: reserves a part of the view's own range where it has become a hole")]
    fn replace(
        &self,
        standing: &mut Standing,
        part: AddrRange,
        call: impl FnOnce() -> Result<(), SysError>,
    ) -> Result<(), SysError> {
        if let Some(hole) = standing.hole {
            // SAFETY: a part of the view's own range, in which nothing was mapped; a mapping that other code has made there
            // stays.
            let plugged = unsafe { map::plug(hole) };
            // A mapping that the kernel gave the crate there since has stayed there.
            plugged.or_else(|e| if ranges::was_filled(self.range) { Ok(()) } else { Err(e) })?;
            standing.hole = None;
        }
        let replaced = call();
        // Looks at what is mapped, not at the result of the call that would fill a hole: at the limit of mappings that is
        // refused anyway. Where foreign code has unmapped a part, the rest is still there.
        if replaced.is_err() && !map::is_hole(part) {
            return replaced;
        }
        standing.content = Content::Unsettled;
        if replaced.is_err() {
            // SAFETY: a part of the view's own range, in which there is nothing, as above.
            standing.hole = unsafe { map::plug(part) }.is_err().then_some(part);
        }
        replaced
    }

    /// Makes the memory reachable again. On an error the range refuses, or waits as before.
    pub(crate) fn restore(&self, file: Option<&KnownFile>) -> Result<(), SysError> {
        let mut standing = self.standing()?;
        match (standing.content, standing.aside) {
            (Content::Unmapped, _) | (Content::Live, None) => Ok(()),
            // Nothing was put over the range after all: without its page tables the kernel fills in new ones.
            (Content::Live, Some(aside)) => match self.move_back(&mut standing, aside) {
                Err(_) if standing.content == Content::Live => {
                    release(aside);
                    standing.aside = None;
                    Ok(())
                }
                moved => moved,
            },
            (_, Some(aside)) => self.move_back(&mut standing, aside),
            (_, None) => self.map_live(&mut standing, file),
        }
    }

    /// Gives a part of the range these rights from now on, whatever its content.
    #[expect(unsafe_code, reason = "UNSAFETY: changes access rights in the view's own range")]
    pub(crate) fn protect(&self, part: AddrRange, prot: Prot) -> Result<(), SysError> {
        let mut standing = self.look().ok_or(SysError::new("fork", Errno::ESRCH))?;
        match standing.content {
            Content::Live | Content::Cover | Content::StandIn(_) => {
                // SAFETY: a part of the view's own range, as the caller has checked; this moves nothing and loses nothing.
                let changed = unsafe { map::protect(part, prot) };
                // It stops where nothing is mapped: the pages before that have the new rights by then.
                changed.inspect_err(|_| self.put_rights_back(part))?;
            }
            // The missing rights are all that keeps this content from being reached; the next content gets the new ones.
            Content::Unsettled => {}
            Content::Unmapped => return Ok(()),
        }
        let mut rights = self.rights.read().clone();
        rights.set(part, prot);
        // The earlier rights are freed without the lock.
        let earlier = std::mem::replace(&mut *self.rights.write(), rights);
        drop(earlier);
        // Page tables that are aside are one mapping with the old rights: they are dropped, and the range is filled anew.
        standing.aside.take().into_iter().for_each(release);
        Ok(())
    }

    #[expect(unsafe_code, reason = "UNSAFETY: changes access rights in the view's own range")]
    fn put_rights_back(&self, part: AddrRange) {
        for (range, prot) in self.parts().iter().filter_map(|had| Some((had.range.common(part)?, had.prot))) {
            // SAFETY: as in `protect`.
            let _ = unsafe { map::protect(range, prot) };
        }
    }

    /// True if all of `part`, a part of the range, has these rights, as far as the crate was told. It never waits, since
    /// signal handlers ask too: while `protect` exchanges the rights, for a moment, nothing is allowed.
    pub(crate) fn allows(&self, part: AddrRange, prot: Prot) -> bool {
        // A few tries: the lock is held only while two pointers are exchanged.
        let rights = (0..64).find_map(|_| self.rights.try_read());
        rights.is_some_and(|rights| rights.parts().iter().all(|had| had.prot >= prot || !had.range.overlaps(part)))
    }

    /// A copy of the parts, for a change of the range's content.
    fn parts(&self) -> Vec<Part> {
        self.rights.read().parts().to_vec()
    }

    /// Wakes every thread that waits in a fault of this range: it faults again, at the present content.
    pub(crate) fn wake(&self) {
        let Ok(mut standing) = self.standing() else { return };
        if let Some(uffd) = self.spec.server.uffd().filter(|_| self.is_served()) {
            let _ = uffd.wake(self.range);
        }
        let still = match standing.content {
            // Faults wait in the last room now.
            Content::StandIn(_) => standing.waiting.pop(),
            _ => None,
        };
        standing.waiting.drain(..).for_each(|room| room.wake(self.range));
        standing.waiting.extend(still);
    }

    /// Gives the range up; afterwards the view cannot be used.
    pub(crate) fn unmap(&self) {
        let Ok(mut standing) = self.standing() else { return };
        if std::mem::replace(&mut standing.content, Content::Unmapped) == Content::Unmapped {
            return;
        }
        ranges::give_up(self.range, standing.hole);
        standing.aside.take().into_iter().for_each(release);
        drop(standing);
        // munmap wakes no thread: those that waited here fault again, and get what an unmapped address gives.
        self.wake();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.unmap();
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

/// A view as its `Debug` shows it: what is written to may be a user's, and waits for no lock.
pub(crate) struct Shown {
    range: AddrRange,
    /// `None`: it is another process's.
    standing: Option<(Content, bool)>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((content, aside)) = self.standing else { return write!(f, "{:?} of another process", self.range) };
        write!(f, "{:?} {content:?}{}", self.range, if aside { ", page tables aside" } else { "" })
    }
}

/// Makes the files and rooms that the process needs for revoking: later, a sandbox or a limit may forbid them.
pub(crate) fn prepare() -> Result<(), SysError> {
    // Without the room a reset refuses accesses by raw pointer, which `RegionStats::degraded` counts.
    let _ = WaitingRoom::prepare(Waits::Everyone);
    prepare_covers()
}

/// Makes the file that revoked ranges map.
pub(crate) fn prepare_covers() -> Result<(), SysError> {
    cover::prepare()
}

/// The alignment at which page tables move in the largest subtrees: 1 GiB, 2 MiB, or a page.
fn alignment(len: usize) -> usize {
    const PUD: usize = 1 << 30;
    const PMD: usize = 2 << 20;
    match len {
        PUD.. => PUD,
        PMD.. => PMD,
        _ => page_size(),
    }
}
