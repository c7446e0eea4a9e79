//! Live: the region's file is mapped in the range, as the mapping was made or as the application has left it.

use super::left_over::release;
use super::parts::Part;
use super::{Content, Place, Server, View};
use crate::sys::map::{self, Advice, Leave, Prot};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

impl View {
    /// All of it, moved over the range in one step: neither a fork nor another mmap ever sees it half-made.
    pub(super) fn map_live(&self, place: &mut Place, file: Option<BorrowedFd<'_>>) -> Result<(), SysError> {
        self.map_parts(place, &[Part { range: self.range, prot: self.prot }], file)
    }

    pub(super) fn map_parts(
        &self,
        place: &mut Place,
        parts: &[Part],
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(), SysError> {
        let file = file.ok_or(SysError::new("mmap", Errno::EBADF))?;
        let mut done = Ok(());
        for part in parts {
            done = self.map_part(part, file);
            if done.is_err() {
                break;
            }
            place.content = Content::Live;
        }
        if place.content != Content::Live {
            return done;
        }
        if done.is_ok() && self.served_live() {
            done = self.serve(place);
        }
        if let Err(e) = done {
            // Some of it is live, or nobody would answer its faults: back to refusing.
            self.cover_empty(place)?;
            return Err(e);
        }
        Ok(())
    }

    fn map_part(&self, part: &Part, file: BorrowedFd<'_>) -> Result<(), SysError> {
        let offset = self.file_offset + (part.range.addr - self.range.addr) as u64;
        map_over(part.range, alignment(part.range.len).max(self.page), file, offset, part.prot)
    }

    /// Registers the live range with its server.
    pub(super) fn serve(&self, place: &Place) -> Result<(), SysError> {
        if matches!(&self.server, Server::Monitor(monitor) if monitor.is_dead()) {
            return Err(SysError::new("UFFDIO_REGISTER", Errno::EBADF));
        }
        match self.server.uffd() {
            Some(uffd) => self.part_ranges(place).into_iter().try_for_each(|range| uffd.register(range, true)),
            None => Err(SysError::new("UFFDIO_REGISTER", Errno::ENOSYS)),
        }
    }
}

/// Builds a mapping of `file` elsewhere, with all its properties, and moves it over `range` in one step. `range` is the
/// caller's own, and nobody relies on what stands there.
#[expect(unsafe_code, reason = "UNSAFETY: maps, moves and unmaps ranges that only the caller knows, or owns")]
pub(crate) fn map_over(
    range: AddrRange,
    align: usize,
    file: BorrowedFd<'_>,
    offset: u64,
    prot: Prot,
) -> Result<(), SysError> {
    let staging = map::reserve(range.len, align)?;
    let staged = stage(staging, file, offset, prot);
    // SAFETY: staging was made by this function, the range is the caller's own.
    let moved = staged.and_then(|()| unsafe { map::move_onto(staging, range, Leave::Hole) });
    if moved.is_err() {
        release(staging);
    }
    moved
}

#[expect(unsafe_code, reason = "UNSAFETY: maps a range that only the caller knows")]
fn stage(staging: AddrRange, file: BorrowedFd<'_>, offset: u64, prot: Prot) -> Result<(), SysError> {
    // SAFETY: a reservation that only the caller knows.
    unsafe { map::map_shared(staging, file, offset, Prot::None) }?;
    for advice in [Advice::DontFork, Advice::DontDump, Advice::NoHugePage] {
        // SAFETY: as above.
        match unsafe { map::advise(staging, advice) } {
            // Device files and hugetlb know no huge-page advice, and kernels without THP no such call.
            Err(e) if advice == Advice::NoHugePage && e.errno == Errno::EINVAL => {}
            other => other?,
        }
    }
    // SAFETY: as above.
    unsafe { map::protect(staging, prot) }
}

/// Alignment at which page tables move in the largest subtrees: 1 GiB, 2 MiB, or a page.
pub(super) fn alignment(len: usize) -> usize {
    const PUD: usize = 1 << 30;
    const PMD: usize = 2 << 20;
    match len {
        PUD.. => PUD,
        PMD.. => PMD,
        _ => crate::sys::page_size(),
    }
}
