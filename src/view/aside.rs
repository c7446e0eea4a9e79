//! Taking the pages away from a live range, before its content is replaced.

use super::{Content, Grade, Standing, Strategy, View, alignment, ranges};
use crate::sys::map::{self, Advice};
use crate::sys::{Addr, AddrRange, SysError, page_size};
use nix::errno::Errno;

impl View {
    /// Takes the pages of a live range away as the strategy does. The content that the caller puts into the range next is
    /// what certainly drops them, so a failure here costs time (page tables to be filled again) and nothing else.
    ///
    /// Degraded: other code in the process has taken a part of the range away. Where that part has been moved to, the
    /// memory may still be reached.
    pub(super) fn take_away(&self, standing: &mut Standing) -> Grade {
        if standing.content != Content::Live {
            return Grade::Intended;
        }
        let taken = match self.spec.strategy {
            Strategy::Zap => zap(self.range),
            Strategy::Detach => self.move_aside(standing),
            Strategy::Replace | Strategy::Withdraw => Ok(()),
        };
        // Zap and Detach have found out whether it is whole. Withdraw reaches the memory wherever it is mapped.
        let whole = taken.is_ok() && self.spec.strategy != Strategy::Replace;
        if whole || !map::has_hole(self.range) { Grade::Intended } else { Grade::Degraded }
    }

    /// Moves the page tables aside in one step. A range of several mappings (different rights, mlock of a part) does not
    /// move, and keeps its pages until the next content drops them.
    #[expect(unsafe_code, reason = "UNSAFETY: moves page tables out of the view's own range")]
    fn move_aside(&self, standing: &mut Standing) -> Result<(), SysError> {
        // Only one set: the first would be forgotten.
        if standing.aside.is_some() {
            return Ok(());
        }
        // Several rights are several mappings, unless foreign code has made them equal. A mapping that fills a hole is not
        // the view's.
        if self.parts().len() > 1 || ranges::was_filled(self.range) {
            return Err(SysError::new("mremap", Errno::EFAULT));
        }
        let align = alignment(self.range.len);
        let hint = match standing.hint {
            Some(hint) => hint,
            // Any address is as good.
            None if align == page_size() => Addr(0),
            None => ranges::free_address(self.range.len, align).unwrap_or(Addr(0)),
        };
        // SAFETY: the view's own range. The kernel leaves a mapping in it, whose page tables are empty; the caller's next
        // content drops whatever a concurrent access faults into it.
        let aside = unsafe { map::move_aside(self.range, hint) }?;
        if !ranges::is_outside(aside) {
            // They are in a hole of another view's range, which would replace them. They move back, and are dropped with
            // the range's pages.
            // SAFETY: both are the view's own, as in `move_back`.
            let back = unsafe { map::move_over(aside, self.range) };
            if back.is_ok() {
                return Err(SysError::new("mremap", Errno::EEXIST));
            }
        }
        standing.hint = aside.start.is_multiple_of(align).then_some(aside.start);
        standing.aside = Some(aside);
        Ok(())
    }

    /// Puts the page tables back over the range, whatever its content, with the rights that the range should have: foreign
    /// code may have changed them.
    #[expect(unsafe_code, reason = "UNSAFETY: moves page tables back into the view's own range")]
    pub(super) fn move_back(&self, standing: &mut Standing, aside: AddrRange) -> Result<(), SysError> {
        for part in self.parts() {
            // SAFETY: the view's own, from `move_aside`: one mapping, of one part.
            unsafe { map::protect(aside, part.prot) }?;
        }
        self.replace(standing, self.range, || {
            // SAFETY: both ranges are the view's own: one from `reserve`, the other from `move_aside`, as the kernel chose
            // it. The content of the range is replaced under the kernel's mmap_lock.
            unsafe { map::move_over(aside, self.range) }
        })?;
        standing.aside = None;
        standing.content = Content::Live;
        Ok(())
    }

    /// Frees a part of the page tables that are aside, from `done` bytes on. Returns how far it came, `None` at the end.
    #[expect(unsafe_code, reason = "UNSAFETY: drops page-table entries of shared memory that are aside")]
    pub(crate) fn trim(&self, done: usize) -> Option<usize> {
        const STEP: usize = 64 << 20;
        let standing = self.standing().ok()?;
        let aside = standing.aside.filter(|aside| done < aside.len)?;
        let part = aside.part(done, STEP.min(aside.len - done));
        // SAFETY: a part of the view's own page tables, as in `move_back`, which nothing accesses; shared memory, whose
        // content stays in the file. Foreign code may have put private memory of its own in their place, whose content is
        // lost (ARCHITECTURE, "What it was told"): nobody holds a reference to memory in a mapping's range.
        unsafe { map::advise(part, Advice::DontNeed) }.ok()?;
        Some(done + part.len)
    }

    /// Bytes of page tables that are aside, an upper bound: one entry of 8 bytes for each page.
    pub(crate) fn page_tables_kept(&self) -> usize {
        self.aside_bytes() / self.spec.page * 8
    }

    /// Bytes of address space of the page tables that are aside.
    pub(crate) fn aside_bytes(&self) -> usize {
        self.look().and_then(|standing| standing.aside).map_or(0, |aside| aside.len)
    }
}

/// Drops every page-table entry of shared memory in `range`.
#[expect(unsafe_code, reason = "UNSAFETY: drops page-table entries of shared memory in a view's own range")]
fn zap(range: AddrRange) -> Result<(), SysError> {
    if crate::sys::left_out("zap") {
        return Ok(());
    }
    // SAFETY: the view's own range, and shared memory: its content stays in the file.
    match unsafe { map::advise(range, Advice::DontNeed) } {
        // A locked mapping (mlock, mlockall) refuses the plain advice.
        // SAFETY: as above.
        Err(e) if e.errno == Errno::EINVAL => unsafe { map::advise(range, Advice::DontNeedLocked) },
        other => other,
    }
}
